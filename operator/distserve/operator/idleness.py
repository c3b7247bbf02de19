"""Finds units that are idle: asks their engines, one unit after the other, beside the reconciles.

    ask --> deployment's follower --> /instance of all engines of the unit that is due
                     ^                    | idle for long enough: wake, the answer holds a moment
                     +--- next unit <-----+ not yet, or no answer: due when it could be

What is not known is not idle. The reconciler asks and gets what is known just now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from distserve.operator.asking import Instance, NotAnswered, WrongKey
from distserve.operator.errors import ClusterError
from distserve.operator.idle import Idle, IdleQuestion
from distserve.operator.keyring import Keyring, ReadKey
from distserve.operator.model import Key
from distserve.operator.pairs import Member

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdleSettings:
    asked: int = 16
    """Engines at a time, of all deployments: nothing waits for them."""
    pause_seconds: float = 5.0
    """Between the units of a deployment, so that each is decided about before the next one."""
    holds_seconds: float = 10.0
    """An answer is of use so long, since a request may come at any time."""
    longest_seconds: float = 3600.0
    """Until a unit that stays idle is looked at again: a better place may have come free."""


class Asks(Protocol):
    """`asking.Asking`. Raises NotAnswered."""

    async def instance(self, member: Member, key: bytes) -> Instance: ...


@dataclass
class _Followed:
    """A deployment's units."""

    question: IdleQuestion
    due: dict[str, float] = field(default_factory=dict)
    """When each unit is looked at next."""
    idle: Idle | None = None
    holds_until: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def ask(self, question: IdleQuestion) -> None:
        if question == self.question:
            return
        before, self.question = self.question, question
        kept = before.units if before.after_seconds == question.after_seconds else {}
        units = question.units
        self.due = {u: at for u, at in self.due.items() if u in units and kept.get(u) == units[u]}
        if self.idle is not None and self.idle.unit not in self.due:
            self.idle = None
        self.changed.set()


class Idleness:
    def __init__(
        self,
        asks: Asks,
        read_key: ReadKey,
        wake: Callable[[Key], None],
        settings: IdleSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asks = asks
        self._keyring = Keyring(read_key)
        self._wake = wake
        self._settings = settings or IdleSettings()
        self._clock = clock
        self._followed: dict[Key, _Followed] = {}
        self._asked = asyncio.Semaphore(self._settings.asked)

    def ask(self, key: Key, question: IdleQuestion) -> Idle | None:
        """A unit that is idle now; None where none is, as far as is known."""
        if key in self._followed:
            self._followed[key].ask(question)
        else:
            followed = self._followed[key] = _Followed(question)
            followed.task = asyncio.create_task(self._follow(key, followed))
        return self.known(key)

    def known(self, key: Key) -> Idle | None:
        """The answer to the last question, as it is now."""
        followed = self._followed.get(key)
        if followed is None or self._clock() > followed.holds_until:
            return None
        return followed.idle

    def release(self, key: Key) -> None:
        """The deployment is gone, or none of its units is to be moved."""
        followed = self._followed.pop(key, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()
        self._keyring.release(key)

    async def run(self) -> None:
        """As long as the replica leads: ends what was begun."""
        try:
            await asyncio.Event().wait()
        finally:
            for key in list(self._followed):
                self.release(key)

    # ---- one deployment -------------------------------------------------------------------------

    async def _follow(self, key: Key, followed: _Followed) -> None:
        while True:
            unit = await self._next(followed)
            try:
                await self._look(key, followed, unit)
            except Exception:
                log.exception("%s/%s %s: not looked at", *key, unit)
                followed.due[unit] = self._clock() + followed.question.after_seconds
            await asyncio.sleep(self._settings.pause_seconds)

    async def _next(self, followed: _Followed) -> str:
        """The unit that is due first, once it is."""
        while True:
            followed.changed.clear()
            due = {unit: followed.due.get(unit, 0.0) for unit in followed.question.units}
            unit = min(due, key=lambda one: due[one], default="")
            left = due[unit] - self._clock() if unit else None
            if left is not None and left <= 0:
                return unit
            try:
                async with asyncio.timeout(left):
                    await followed.changed.wait()
            except TimeoutError:
                pass

    async def _look(self, key: Key, followed: _Followed, unit: str) -> None:
        question = followed.question
        members, after = question.units[unit], question.after_seconds
        told = await asyncio.gather(*(self._seconds(key, question.secret, one) for one in members))
        if followed.question.units.get(unit) != members:
            return  # Others are asked about by now.
        seconds = min((one for one in told if one is not None), default=0.0)
        idle = None not in told and seconds >= after
        if None in told:
            wait = after  # Who could not be asked may be busy.
        elif not idle:
            wait = after - seconds  # Who had a request then is not idle before.
        else:  # Each look at one that stays costs a search for a better place: they grow rare.
            wait = max(after, min(seconds, self._settings.longest_seconds))
        followed.due[unit] = self._clock() + wait
        followed.idle = Idle(unit, seconds) if idle else None
        if idle:
            followed.holds_until = self._clock() + self._settings.holds_seconds
            self._wake(key)

    async def _seconds(self, key: Key, secret: str, member: Member) -> float | None:
        """For how long this engine had no request; None where it cannot be known."""
        shown = b""
        try:
            shown = await self._keyring.of(key, secret)
            async with self._asked:
                said = await self._asks.instance(member, shown)
        except (NotAnswered, ClusterError) as error:
            if isinstance(error, WrongKey):
                self._keyring.wrong(key, shown)
            log.info("whether pod %s is idle is not known: %s", member.pod, error)
            return None
        return said.idle_seconds
