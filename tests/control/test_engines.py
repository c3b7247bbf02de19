"""How the operator follows the links of units: whom it asks, how often, and whom it wakes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from distserve.operator.asking import Instance, NotAnswered, PeerLink, Probe, WrongKey
from distserve.operator.engines import (
    FINGERPRINT_CHARACTERS,
    KEPT_CHARACTERS,
    Engines,
    EngineSettings,
)
from distserve.operator.errors import Unavailable
from distserve.operator.fabric_metrics import FabricCollector
from distserve.operator.model import Key
from distserve.operator.pairs import LinksQuestion, Member, Pair

KEY = Key("llm", "tiny")
AT_ONCE = EngineSettings(asked=8, measured=4, retry_seconds=0.001, pause_seconds=0.0)


def member(name: str, **changes: Any) -> Member:
    return replace(Member(name, f"uid-{name}", "10.0.0.1", "node-a"), **changes)


def pair(number: int = 0, **changes: Any) -> Pair:
    made = Pair(member(f"d{number}"), member(f"p{number}"), "leaf", 1_000_000_000)
    return replace(made, **changes)


def question(**units: tuple[Pair, ...]) -> LinksQuestion:
    return LinksQuestion("tiny-key", units)


class Fleet:
    """Engines and migrators as the operator hears them."""

    def __init__(self) -> None:
        self.key = b"k" * 32
        self.bandwidths: Callable[[], float] = lambda: 2e9
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.at_work = self.most_at_work = 0
        self.measuring = self.most_measuring = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0
        self.closed = False

    async def read_key(self, namespace: str, secret: str) -> bytes:
        assert (namespace, secret) == ("llm", "tiny-key")
        self.reads += 1
        return self.key

    async def instance(self, member: Member, key: bytes) -> Instance:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await self.gate.wait()
            self.asked.append(member.pod)
            if key != self.key:
                raise WrongKey("it has another key")
            if member.pod in self.silent:
                raise NotAnswered(f"{member.pod}: no answer")
            return Instance(fingerprint="f", migrator=f"{member.pod}:8101")
        finally:
            self.at_work -= 1

    async def measure(self, reader: Member, peer: str, key: bytes) -> PeerLink:
        self.asked.append(f"{reader.pod}<{peer}")
        self.measuring += 1
        self.most_measuring = max(self.most_measuring, self.measuring)
        await asyncio.sleep(0)
        self.measuring -= 1
        return PeerLink(
            "up", "TCP", {"SharedMemory": "the peer shares no memory"},
            probe=Probe(0.2, self.bandwidths(), "TCP"),
        )  # fmt: skip

    async def close(self) -> None:
        self.closed = True


class Room:
    def __init__(self, fleet: Fleet, settings: EngineSettings = AT_ONCE) -> None:
        self.fleet = fleet
        self.woken: asyncio.Queue[Key] = asyncio.Queue()
        self.engines = Engines(fleet, fleet.read_key, self.woken.put_nowait, settings)

    async def until(self, asked: LinksQuestion, holds: Callable[[Any], bool]) -> Any:
        """Asks as a reconciler does, each time that it is woken."""
        async with asyncio.timeout(20):
            while not holds(found := self.engines.ask(KEY, asked)):
                assert await self.woken.get() == KEY
        return found


def all_measured(found: Any) -> bool:
    return all(link.measured for unit in found.values() for link in unit.links)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    found = Room(Fleet())
    yield found
    found.engines.release(KEY)


async def test_what_a_pair_measured_is_there_when_its_deployment_is_woken(room: Room) -> None:
    asked = question(u0=(pair(),))
    (first,) = room.engines.ask(KEY, asked)["u0"].links
    assert not first.measured, "a reconcile never waits for it"
    found = await room.until(asked, all_measured)
    (link,) = found["u0"].links
    assert (link.transport, link.latency_ms, link.bandwidth) == ("TCP", 0.2, 2e9)
    assert link.trouble == "SharedMemory: the peer shares no memory"
    assert found["u0"].fingerprints == ("f",)
    assert room.fleet.asked == ["p0", "d0", "d0<p0:8101"]
    assert room.engines.ask(KEY, asked) == found
    assert room.fleet.asked == ["p0", "d0", "d0<p0:8101"], "known is known until the refresh"


async def test_other_expectations_are_no_reason_to_measure_again(room: Room) -> None:
    await room.until(question(u0=(pair(),)), all_measured)
    (link,) = room.engines.ask(KEY, question(u0=(pair(expected=4_000_000_000),)))["u0"].links
    assert link.measured and link.slow
    assert len(room.fleet.asked) == 3


@pytest.mark.parametrize("change", [{"uid": "another"}, {"restarts": 1}])
async def test_a_pod_or_a_container_that_is_new_is_measured_anew(room: Room, change: Any) -> None:
    await room.until(question(u0=(pair(),)), all_measured)
    room.fleet.bandwidths = lambda: 3e9
    renewed = question(u0=(pair(reader=member("d0", **change)),))
    (link,) = room.engines.ask(KEY, renewed)["u0"].links
    assert not link.measured
    (link,) = (await room.until(renewed, all_measured))["u0"].links
    assert link.bandwidth == 3e9


async def test_what_seems_slow_is_measured_again_and_the_best_counts(room: Room) -> None:
    figures: Iterator[float] = iter([0.3e9, 0.9e9, 0.5e9])
    room.fleet.bandwidths = lambda: next(figures)
    (link,) = (await room.until(question(u0=(pair(),)), all_measured))["u0"].links
    assert link.bandwidth == 0.9e9
    figures = iter([0.3e9, 1.2e9])
    await room.until(question(u1=(pair(1),)), all_measured)
    assert next(figures, None) is None, "enough is enough"


async def test_who_does_not_answer_is_asked_again_and_the_reason_is_known(room: Room) -> None:
    room.fleet.silent = {"d0"}
    asked = question(u0=(pair(),))

    def told(found: Any) -> bool:
        return "d0: no answer" in found["u0"].links[0].trouble

    await room.until(asked, told)
    room.fleet.silent = set()
    await room.until(asked, all_measured)


async def test_a_figure_stays_while_nobody_answers() -> None:
    fleet = Fleet()
    room = Room(fleet, replace(AT_ONCE, refresh_seconds=0.001))
    asked = question(u0=(pair(),))
    found = await room.until(asked, all_measured)
    fleet.silent = {"p0"}
    before = len(fleet.asked)
    async with asyncio.timeout(20):
        while len(fleet.asked) < before + 6:
            await asyncio.sleep(0)
    assert room.engines.ask(KEY, asked)["u0"].links == found["u0"].links
    room.engines.release(KEY)


async def test_a_link_that_gets_slow_wakes_its_deployment() -> None:
    fleet = Fleet()
    room = Room(fleet, replace(AT_ONCE, refresh_seconds=0.001))
    asked = question(u0=(pair(),))
    await room.until(asked, all_measured)
    fleet.bandwidths = lambda: 0.1e9
    await room.until(asked, lambda found: found["u0"].links[0].slow)
    room.engines.release(KEY)


async def test_a_key_that_was_made_anew_is_read_anew(room: Room) -> None:
    await room.until(question(u0=(pair(),)), all_measured)
    await room.until(question(u0=(pair(),), u1=(pair(1),)), all_measured)
    assert room.fleet.reads == 1
    room.fleet.key = b"n" * 32
    await room.until(question(u2=(pair(2),)), all_measured)
    assert room.fleet.reads == 2


async def test_an_api_server_that_fails_is_a_reason_and_no_end(room: Room) -> None:
    fails = [Unavailable("get secret: busy")]
    read = room.fleet.read_key

    async def read_key(namespace: str, secret: str) -> bytes:
        if fails:
            raise fails.pop()
        return await read(namespace, secret)

    room.engines = Engines(room.fleet, read_key, room.woken.put_nowait, AT_ONCE)
    await room.until(question(u0=(pair(),)), all_measured)
    room.engines.release(KEY)


async def test_so_many_are_asked_at_a_time_and_units_that_went_no_more(room: Room) -> None:
    room.fleet.gate.clear()
    many = question(**{f"u{number}": (pair(number),) for number in range(20)})
    room.engines.ask(KEY, many)
    async with asyncio.timeout(20):
        while room.fleet.at_work < AT_ONCE.asked:
            await asyncio.sleep(0)
    one = question(u7=(pair(7),))
    assert room.engines.ask(KEY, one).keys() == {"u7"}
    room.fleet.gate.set()
    await room.until(one, all_measured)
    assert set(room.fleet.asked) == {"p7", "d7", "d7<p7:8101"}
    assert room.fleet.most_at_work == AT_ONCE.asked


async def test_few_links_are_measured_at_a_time(room: Room) -> None:
    many = question(**{f"u{number}": (pair(number),) for number in range(20)})
    await room.until(many, all_measured)
    assert room.fleet.most_measuring == AT_ONCE.measured


async def test_the_instances_of_a_unit_are_asked_together(room: Room) -> None:
    """However many are silent, their time is waited for once."""
    room.fleet.gate.clear()
    room.engines.ask(KEY, question(u0=(pair(), pair(1))))
    async with asyncio.timeout(20):
        while room.fleet.at_work < 4:
            await asyncio.sleep(0)
    room.fleet.gate.set()


async def test_the_end_of_leading_ends_all_of_it(room: Room) -> None:
    running = asyncio.create_task(room.engines.run())
    await room.until(question(u0=(pair(),)), all_measured)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert room.fleet.closed
    assert not list(room.engines.seen())


async def test_metrics_show_the_slowest_link_of_each_unit(room: Room) -> None:
    figures = iter([2e9, 1.5e9, 3e9])
    room.fleet.bandwidths = lambda: next(figures)
    two = (pair(), pair(reader=member("d1")))
    await room.until(question(u0=two, u1=(pair(2, level="", expected=None),)), all_measured)
    samples = {
        (sample.name.removeprefix("distserve_fabric_"), sample.labels["unit"]): sample.value
        for family in FabricCollector(room.engines.seen).collect()
        for sample in family.samples
        if sample.labels["deployment"] == "llm/tiny" and sample.labels["transport"] == "TCP"
    }
    slowest = min(samples["bandwidth_bytes_per_second", unit] for unit in ("u0", "u1"))
    assert slowest == 1.5e9
    assert samples["expected_bytes_per_second", "u0"] == 1e9
    assert samples["expected_bytes_per_second", "u1"] == 0
    assert samples["latency_seconds", "u0"] == pytest.approx(0.0002)


async def test_what_a_tenants_engines_say_is_kept_short() -> None:
    """There may be thousands of them; and a transport is a label of metrics."""
    long = "x" * (1 << 20)

    class Talkers(Fleet):
        async def instance(self, member: Member, key: bytes) -> Instance:
            return Instance(fingerprint=long, migrator=f"{member.pod}:8101")

        async def measure(self, reader: Member, peer: str, key: bytes) -> PeerLink:
            if reader.pod == "d1":
                return PeerLink(error=long)
            return PeerLink("up", long, {long: long}, probe=Probe(0.2, 2e9, long))

    room = Room(Talkers())
    two = question(u0=(pair(), pair(1)))
    found = await room.until(two, lambda found: all(one.trouble for one in found["u0"].links))
    measured, failed = found["u0"].links
    assert measured.transport == "other" and not failed.measured
    assert len(measured.trouble) == len(failed.trouble) == KEPT_CHARACTERS
    assert found["u0"].fingerprints == ("x" * FINGERPRINT_CHARACTERS,)
    room.engines.release(KEY)
