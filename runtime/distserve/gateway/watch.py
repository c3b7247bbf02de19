"""Keeps the fleet up to date: one task per endpoint follows what the instance says of itself.

    in discovery ----> left it, streams are open ----> forgotten
                         '-- it does not answer: they are broken off, and go on elsewhere --^

Discovery does not say why an instance left it: its node may be lost without a word, or it may be
there and stream on. So it is followed for as long as something is open at it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import chain

from distserve.gateway.client import ENGINE_ERRORS, EngineClient
from distserve.gateway.discovery import Discovery, Endpoint
from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.prefix import EventGap, PrefixIndex

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 2.0
LOST_AFTER = 3
"""Connections in a row that fail before what is open at the instance is given up."""


class Mismatch(Exception):
    """The instance is not one of this deployment."""


@dataclass(eq=False)
class FleetWatcher:
    fleet: Fleet
    client: EngineClient
    discovery: Discovery
    model: str
    index: PrefixIndex | None = None
    on_instance: Callable[[Member], Awaitable[None]] | None = None
    """Called before a member takes work: whoever needs something of it gets it here."""
    _states: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Who follows an instance's state, by its name."""
    _caches: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Who follows its cache, once it has answered."""
    _leaving: set[asyncio.Task[None]] = field(default_factory=set)
    """Follow the states of instances that left discovery."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async for endpoints in self.discovery.watch():
                self._reconcile(endpoints)
        finally:
            for task in chain(self._states.values(), self._caches.values(), self._leaving):
                task.cancel()

    def _reconcile(self, endpoints: list[Endpoint]) -> None:
        wanted = {endpoint.name: endpoint for endpoint in endpoints}
        for name in [n for n in self.fleet.members if n not in wanted]:
            log.info("instance %s is gone", name)
            self._drop(name)
        for name, endpoint in wanted.items():
            member = self.fleet.members.get(name)
            if member is not None and member.url != endpoint.url:
                # A pod that came back elsewhere.
                self._drop(name)
                member = None
            if member is None:
                self._add(endpoint)
            else:
                member.endpoint = endpoint
        self.fleet.notify()

    def _add(self, endpoint: Endpoint) -> None:
        log.info("instance %s at %s", endpoint.name, endpoint.url)
        member = self.fleet.members[endpoint.name] = Member(endpoint)
        self._states[endpoint.name] = asyncio.create_task(self._follow_state(member))

    def _drop(self, name: str) -> None:
        state, member = self._states.pop(name), self.fleet.members.pop(name)
        if not member.flights:
            state.cancel()
        self._leaving.add(state)
        state.add_done_callback(self._leaving.discard)
        self._forget_cache(name)

    def _forget_cache(self, name: str) -> None:
        if cache := self._caches.pop(name, None):
            cache.cancel()
        if self.index is not None:
            self.index.forget(name)

    async def _follow_state(self, member: Member) -> None:
        failures = 0
        while self._is_of_use(member):
            try:
                await self._introduce(member)
                self._follow_cache_anew(member)
                async with contextlib.aclosing(self.client.states(member.url)) as states:
                    async for state in states:
                        failures = 0
                        member.observe(state)
                        self.fleet.notify()
                        if not self._is_of_use(member):
                            return
                log.info("instance %s ended its state stream", member.name)
            except Mismatch as error:
                log.error("instance %s is not used: %s", member.name, error)
            except ENGINE_ERRORS as error:
                level = logging.INFO if failures < LOST_AFTER else logging.DEBUG
                log.log(level, "instance %s does not answer: %r", member.name, error)
            failures += 1
            member.forget()
            if failures >= LOST_AFTER:  # again: legs dispatched before may have opened since
                member.lost()
            self.fleet.notify()
            await asyncio.sleep(_pause_seconds(failures))

    def _is_of_use(self, member: Member) -> bool:
        return self.fleet.members.get(member.name) is member or bool(member.flights)

    async def _introduce(self, member: Member) -> None:
        info = await self.client.instance(member.url)
        if info.instance != member.name:
            # Its address went to another one, and discovery lags behind: not to be counted twice.
            raise Mismatch(f"at {member.url} answers {info.instance!r}")
        if info.model != self.model:
            raise Mismatch(f"it serves {info.model!r}, not {self.model!r}")
        member.introduce(info)
        if self.on_instance is not None:
            await self.on_instance(member)

    def _follow_cache_anew(self, member: Member) -> None:
        """With each connection: events are seldom, and a cut network ends no stream of them."""
        if self.index is not None and self.fleet.members.get(member.name) is member:
            self._forget_cache(member.name)
            following = self._follow_cache(member, self.index)
            self._caches[member.name] = asyncio.create_task(following)

    async def _follow_cache(self, member: Member, index: PrefixIndex) -> None:
        failures = 0
        while True:
            try:
                async for event in self.client.kv_events(member.url):
                    failures = 0
                    index.apply(member.name, event)
            except EventGap as gap:
                log.info("cache events: %s", gap)
            except (*ENGINE_ERRORS, ValueError) as error:
                log.debug("cache events of %s: %r", member.name, error)
            index.forget(member.name)
            failures += 1
            await asyncio.sleep(_pause_seconds(failures))


def _pause_seconds(failures: int) -> float:
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 8), MAX_PAUSE_SECONDS)
