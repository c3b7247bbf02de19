"""Answers questions about links: asks engines and migrators, few at a time, beside the reconciles.

    ask --> unit's follower --> /instance of its instances --> /links of its readers --> wake
                  ^                                                                       |
                  +-- pairs changed, or refresh; sooner, ever rarer, while some fail -----+

The reconciler asks and gets what is known; its deployment is queued when something else is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from distserve.api.kv_transfer import Transport
from distserve.operator.asking import Instance, NotAnswered, PeerLink, WrongKey
from distserve.operator.errors import ClusterError
from distserve.operator.keyring import Keyring, ReadKey
from distserve.operator.model import Key
from distserve.operator.pairs import Life, Link, LinksQuestion, Member, Pair, UnitLinks

log = logging.getLogger(__name__)

KEPT_CHARACTERS: Final = 256
"""Of what an engine or a migrator says: a tenant may have thousands of pairs."""
FINGERPRINT_CHARACTERS: Final = 64
"""Of a fingerprint. Ours have 32."""
KNOWN_TRANSPORTS: Final = frozenset(Transport) - {Transport.AUTO}
"""Each name is a label of metrics."""


@dataclass(frozen=True)
class EngineSettings:
    asked: int = 64
    """Instances at a time: a call takes milliseconds, one that is not answered seconds, in which
    the others of its unit are asked."""
    measured: int = 4
    """Links at a time: few, as they may share a switch."""
    refresh_seconds: float = 600.0
    """A link that gets slow is noticed this late; measuring takes it for a tenth of a second."""
    retry_seconds: float = 5.0
    """After the first failure, doubled with each further one up to the refresh."""
    tries: int = 3
    """A link that seems slow is measured so often, and the best counts: others may use it."""
    pause_seconds: float = 1.0
    """Between those."""


class Asks(Protocol):
    """`asking.Asking`. Raises NotAnswered."""

    async def instance(self, member: Member, key: bytes) -> Instance: ...
    async def measure(self, reader: Member, peer: str, key: bytes) -> PeerLink: ...
    async def close(self) -> None: ...


class Seen(NamedTuple):
    """A link that is known, for metrics."""

    key: Key
    unit: str
    link: Link


@dataclass
class _Unit:
    """What is followed of one unit."""

    secret: str
    pairs: tuple[Pair, ...]
    known: dict[tuple[Life, Life], Link] = field(default_factory=dict)
    """By the lives of the pair's members."""
    engines: Mapping[Life, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def links(self) -> UnitLinks:
        """As it is asked for now: what is expected may have changed since it was measured."""
        links = (replace(self.known.get(p.lives, Link(p)), pair=p) for p in self.pairs)
        return UnitLinks(tuple(links), self.engines)

    def ask(self, secret: str, pairs: tuple[Pair, ...]) -> None:
        lives = {pair.lives for pair in pairs}
        if lives - {pair.lives for pair in self.pairs}:
            self.failures = 0
            self.changed.set()
        self.secret, self.pairs = secret, pairs
        self.known = {of: link for of, link in self.known.items() if of in lives}


class Engines:
    def __init__(
        self,
        asks: Asks,
        read_key: ReadKey,
        wake: Callable[[Key], None],
        settings: EngineSettings | None = None,
    ) -> None:
        self._asks = asks
        self._keyring = Keyring(read_key)
        self._wake = wake
        self._settings = settings or EngineSettings()
        self._units: dict[Key, dict[str, _Unit]] = {}
        self._asked = asyncio.Semaphore(self._settings.asked)
        self._measured = asyncio.Semaphore(self._settings.measured)

    def ask(self, key: Key, question: LinksQuestion) -> Mapping[str, UnitLinks]:
        """What is known, by unit. Units that are not named are no longer looked at."""
        units = self._units.setdefault(key, {})
        for name in units.keys() - question.units.keys():
            self._drop(units.pop(name))
        for name, pairs in question.units.items():
            if name in units:
                units[name].ask(question.secret, pairs)
            else:
                unit = units[name] = _Unit(question.secret, pairs)
                unit.task = asyncio.create_task(self._follow(key, name, unit))
        return self.known(key)

    def known(self, key: Key) -> Mapping[str, UnitLinks]:
        """The answer to the last question, as it is now."""
        return {name: unit.links for name, unit in self._units.get(key, {}).items()}

    def release(self, key: Key) -> None:
        """The deployment is gone, or none of its pairs runs."""
        for unit in self._units.pop(key, {}).values():
            self._drop(unit)
        self._keyring.release(key)

    def seen(self) -> Iterator[Seen]:
        for key, units in self._units.items():
            for name, unit in units.items():
                for link in unit.links.links:
                    if link.measured:
                        yield Seen(key, name, link)

    async def run(self) -> None:
        """As long as the replica leads: ends what was begun."""
        try:
            await asyncio.Event().wait()
        finally:
            for key in list(self._units):
                self.release(key)
            await self._asks.close()

    @staticmethod
    def _drop(unit: _Unit) -> None:
        if unit.task is not None:
            unit.task.cancel()

    # ---- one unit -------------------------------------------------------------------------------

    async def _follow(self, key: Key, name: str, unit: _Unit) -> None:
        while True:
            unit.changed.clear()
            before = unit.links
            try:
                await self._look(key, unit)
            except Exception:
                log.exception("links of %s/%s %s: not looked at", *key, name)
                unit.failures += 1
            if unit.links != before:
                self._wake(key)
            try:
                async with asyncio.timeout(self._wait_seconds(unit)):
                    await unit.changed.wait()
            except TimeoutError:
                pass

    def _wait_seconds(self, unit: _Unit) -> float:
        settings = self._settings
        if not unit.failures:
            return settings.refresh_seconds
        doubled = settings.retry_seconds * 2.0 ** min(unit.failures - 1, 16)
        return min(doubled, settings.refresh_seconds)

    async def _look(self, key: Key, unit: _Unit) -> None:
        """Asks all members and measures all pairs; what fails keeps the figure that it had."""
        pairs, failed = unit.pairs, False
        members = dict.fromkeys(one for pair in pairs for one in (pair.source, pair.reader))
        said = await asyncio.gather(*(self._instance(key, unit, one) for one in members))
        instances = dict(zip(members, said, strict=True))
        for pair in pairs:
            found = await self._pair(key, unit, pair, instances)
            found = replace(found, trouble=found.trouble[:KEPT_CHARACTERS])
            failed |= not found.measured
            before = unit.known.get(pair.lives)
            if found.measured or before is None or not before.measured:
                unit.known[pair.lives] = found
        unit.engines = {
            member.life: one.fingerprint[:FINGERPRINT_CHARACTERS]
            for member, one in instances.items()
            if isinstance(one, Instance)
        }
        unit.failures = unit.failures + 1 if failed else 0

    async def _instance(self, key: Key, unit: _Unit, member: Member) -> Instance | str:
        """What it says of itself, or why it says nothing."""
        shown = b""
        try:
            shown = await self._keyring.of(key, unit.secret)
            async with self._asked:
                return await self._asks.instance(member, shown)
        except WrongKey as error:
            self._keyring.wrong(key, shown)
            return str(error)
        except (NotAnswered, ClusterError) as error:
            return str(error)

    async def _pair(
        self, key: Key, unit: _Unit, pair: Pair, instances: Mapping[Member, Instance | str]
    ) -> Link:
        source, reader = instances[pair.source], instances[pair.reader]
        for found in (source, reader):
            if isinstance(found, str):
                return Link(pair, trouble=found)
        assert isinstance(source, Instance)
        if not source.migrator:
            return Link(pair, trouble=f"{pair.source.pod} has no migrator yet")
        best = Link(pair)
        for attempt in range(self._settings.tries):
            if attempt:
                await asyncio.sleep(self._settings.pause_seconds)
            try:
                shown = await self._keyring.of(key, unit.secret)
                async with self._measured:
                    said = await self._asks.measure(pair.reader, source.migrator, shown)
            except (NotAnswered, ClusterError) as error:
                return best if best.measured else Link(pair, trouble=str(error))
            link = _link(pair, said)
            best = link if link.bandwidth >= best.bandwidth else best
            if not link.measured or not best.slow:
                break
        return best


def _link(pair: Pair, said: PeerLink) -> Link:
    if said.probe is None:
        return Link(pair, trouble=said.error or f"the link is {said.state or 'not there'} and busy")
    return Link(
        pair,
        transport=_transport(said.probe.transport or said.transport),
        latency_ms=said.probe.latency_ms,
        bandwidth=said.probe.bandwidth_bytes_per_second,
        trouble="; ".join(f"{name}: {why}" for name, why in said.not_used.items()),
    )


def _transport(name: str) -> str:
    return name if name in KNOWN_TRANSPORTS or not name else "other"
