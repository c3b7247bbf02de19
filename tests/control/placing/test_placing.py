"""Room is given once: while units wait, between decision and pods, and when they are gone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from distserve.operator import placing
from distserve.operator.model import Key, NoPlace, Pending, Placement
from distserve.operator.placing import AGAIN_SECONDS, Placing
from distserve.placement.inventory import Inventory
from distserve.placement.placing import place
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest

GPU = "nvidia.com/gpu"


def node(name: str, gpus: int = 8) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {GPU: str(gpus), "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def unit(deployment: str, gpus: int = 8, name: str = "u0") -> UnitRequest:
    instance = InstanceRequest(f"{deployment}-{name}-prefill-0", 1, {GPU: gpus})
    return UnitRequest(UnitId("ns", deployment, name), (instance,), waiting_since=0.0)


class World:
    """One node, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.woken: list[Key] = []
        self.inventory = Inventory()
        self.inventory.put_node(node("one"))
        self.placing = Placing(self.inventory, self.woken.append, lambda: self.now, self.stated)

    def stated(self, unit_id: UnitId, sets: Sequence[Any]) -> tuple[UnitRequest, Mapping[str, str]]:
        request = unit(unit_id.deployment, name=unit_id.unit)
        return request, dict.fromkeys(request.pod_names, "one")

    def ask(self, deployment: str, *units: UnitRequest) -> Any:
        self.now += 1.0
        return self.placing.ask(Key("ns", deployment), units).get("u0")

    @property
    def free(self) -> int:
        return self.inventory.free("one").get(GPU, 0)


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_unit_that_fits_is_placed_at_once_and_its_room_is_taken(world: World) -> None:
    found = world.ask("a", unit("a"))
    assert isinstance(found, Placement)
    assert found.nodes == {"a-u0-prefill-0": ("one",)}
    assert world.free == 0
    waits = world.ask("b", unit("b"))
    assert isinstance(waits, NoPlace) and waits.message


async def test_units_that_come_together_are_decided_together(world: World) -> None:
    """The larger of them first, whoever came first."""
    world.inventory.put_node(node("two", gpus=2))

    def come(deployment: str, gpus: int) -> Any:
        world.now += 0.1
        return world.placing.ask(Key("ns", deployment), [unit(deployment, gpus)])["u0"]

    assert isinstance(come("first", 2), Placement), "it cannot be told from one that is alone"
    assert isinstance(come("small", 6), Pending)
    assert isinstance(come("large", 8), Pending)
    assert world.placing.gathers(Key("ns", "small"))
    assert not world.placing.gathers(Key("ns", "first"))
    world.now += 1.0
    assert not world.placing.gathers(Key("ns", "small"))
    assert isinstance(come("small", 6), NoPlace)
    assert isinstance(come("large", 8), Placement)


async def test_a_clock_that_is_put_back_holds_nobody_up(world: World) -> None:
    for name in ("a", "b"):
        world.placing.ask(Key("ns", name), [unit(name, 1)])
    world.now -= 3600.0
    assert isinstance(world.ask("b", unit("b", 1)), Placement)


async def test_how_long_it_waits_is_known_from_its_first_question(world: World) -> None:
    """The condition that says so later has whole seconds."""
    found = world.ask("a", unit("a"))
    later = replace(unit("a"), waiting_since=5.0)
    assert world.ask("a", later) is found


async def test_asking_again_is_the_same_answer(world: World) -> None:
    assert world.ask("a", unit("a")) == world.ask("a", unit("a"))
    assert world.free == 0


async def test_room_that_becomes_free_wakes_who_waits(world: World) -> None:
    world.ask("a", unit("a"))
    world.ask("b", unit("b"))
    world.placing.release(Key("ns", "a"))
    world.woken.clear()
    assert isinstance(world.ask("b", unit("b")), Placement)
    assert world.woken == [Key("ns", "b")]


async def test_a_unit_that_was_placed_otherwise_than_it_is_asked_is_placed_anew(
    world: World,
) -> None:
    world.ask("a", unit("a", gpus=8))
    world.ask("a", unit("a", gpus=2))
    assert world.free == 6


async def test_a_unit_that_is_not_asked_for_any_more_gives_its_room_back(world: World) -> None:
    world.ask("a", unit("a"))
    world.placing.keep(Key("ns", "a"), {unit("a").id})
    assert world.free == 0
    world.placing.keep(Key("ns", "a"), ())
    assert world.free == 8


async def test_half_a_question_takes_nothing_back(world: World) -> None:
    """A unit that a decision names only when it knows more is not placed over and over."""
    key, extra = Key("ns", "a"), unit("a", gpus=2, name="u1")
    world.ask("b", unit("b", gpus=1))
    world.placing.ask(key, [extra])
    assert world.placing.gathers(key)
    world.placing.ask(key, [])
    world.now += 1.0
    found = world.placing.ask(key, [extra])["u1"]
    assert isinstance(found, Placement)
    world.placing.ask(key, [])
    assert world.placing.ask(key, [extra])["u1"] is found


async def test_a_unit_keeps_its_room_as_long_as_it_has_statefulsets(world: World) -> None:
    key = Key("ns", "a")
    world.ask("a", unit("a"))
    world.placing.settle(key, {"u0": [{}]})
    world.placing.keep(key, ())
    assert world.free == 0
    world.placing.settle(key, {})
    assert world.free == 8


async def test_placed_just_now_is_not_gone(world: World) -> None:
    world.ask("a", unit("a"))
    world.placing.settle(Key("ns", "a"), {})
    assert world.free == 0


async def test_room_for_a_better_place_is_kept_until_the_unit_is_asked_for(world: World) -> None:
    """The unit leaves its room for a fuller node, and no one else takes that meanwhile."""
    key = Key("ns", "a")
    world.inventory.put_node(node("two", gpus=4))
    moving = unit("a", gpus=4)
    world.ask("a", moving)
    world.placing.settle(key, {"u0": [{}]})
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    found = world.placing.better(key, moving)
    assert found is not None and found.nodes == {"a-u0-prefill-0": ("two",)}
    assert world.placing.better(key, moving) == found
    assert world.inventory.free("two").get(GPU, 0) == 0
    waits = world.ask("b", unit("b", gpus=5))
    assert isinstance(waits, NoPlace)
    world.placing.settle(key, {})
    assert world.ask("a", moving) == found
    assert world.inventory.free("two").get(GPU, 0) == 0
    assert world.free == 3, "who waited has what it left"


async def test_room_that_is_kept_for_nobody_any_more_is_free(world: World) -> None:
    key = Key("ns", "a")
    world.inventory.put_node(node("two", gpus=4))
    moving = unit("a", gpus=4)
    world.ask("a", moving)
    world.placing.settle(key, {"u0": [{}]})
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    for ends in (lambda: world.placing.better(key, None), lambda: world.placing.release(key)):
        assert world.placing.better(key, moving) is not None
        ends()
        assert world.inventory.free("two").get(GPU, 0) == 4


async def test_a_place_that_a_unit_left_is_no_better(world: World) -> None:
    key = Key("ns", "a")
    world.inventory.put_node(node("two", gpus=4))
    moving = unit("a", gpus=4)
    world.ask("a", moving)
    world.placing.settle(key, {"u0": [{}]})
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    found = world.placing.better(key, moving)
    assert isinstance(found, Placement)
    world.placing.better(key, None)
    assert world.placing.better(key, moving, frozenset({found.names[1], "rack r9"})) is None
    assert world.inventory.free("two").get(GPU, 0) == 4
    assert world.placing.better(key, moving, frozenset({"rack r9"})) == found


async def test_a_better_place_leaves_room_for_an_extra_unit(world: World) -> None:
    key = Key("ns", "a")
    world.inventory.put_node(node("two", gpus=4))
    moving, extra = unit("a", gpus=4), unit("a", name="u1", gpus=4)
    world.ask("a", moving)
    world.placing.settle(key, {"u0": [{}]})
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    found = world.placing.better(key, moving, beside=extra)
    assert isinstance(found, Placement), "where it is there is room for the extra one"
    world.placing.better(key, None)
    assert world.placing.better(key, moving, beside=unit("a", name="u1", gpus=5)) is None
    assert world.inventory.free("two").get(GPU, 0) == 4, "nothing is kept"


async def test_a_new_leader_compares_places_once_it_knows_what_was_given(world: World) -> None:
    mine, other = Key("ns", "a"), Key("ns", "b")
    world.placing.begin([mine, other])
    world.placing.settle(mine, {"u0": [{}]})
    assert world.placing.better(mine, unit("a")) == Pending()
    world.woken.clear()
    world.placing.settle(other, {})
    assert world.woken == [mine], "it asks again"
    assert world.placing.better(mine, unit("a")) is None


async def test_a_new_leader_places_nothing_before_it_knows_what_was_given(world: World) -> None:
    given, new = Key("ns", "a"), Key("ns", "b")
    world.placing.begin([given, new])
    world.placing.settle(new, {})
    assert isinstance(world.ask("b", unit("b")), Pending)
    world.placing.settle(given, {"u0": [{}]})
    assert isinstance(world.ask("b", unit("b")), NoPlace)
    assert world.free == 0


# ---- what is not as it should be ----------------------------------------------------------------


def misspelt(deployment: str) -> UnitRequest:
    term = {"matchExpressions": [{"key": "gpu", "operator": "in", "values": ["h200"]}]}
    good = unit(deployment)
    instance = replace(good.instances[0], node_affinity_terms=(term,))
    return replace(good, instances=(instance,))


async def test_a_unit_that_nobody_can_read_is_answered_and_stands_in_nobodys_way(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = Key("ns", "bad")
    for _ in range(3):
        said = world.ask("bad", misspelt("bad"))
        assert isinstance(said, NoPlace) and said.reason == "NoMatchingNodes"
        assert "one of In, NotIn" in said.message and "not 'in'" in said.message
    told = [one.getMessage() for one in caplog.records]
    assert told == [f"left out of placement: bad-{said.message.partition(': bad-')[2]}"], "once"
    assert not world.placing.gathers(key)
    assert isinstance(world.ask("a", unit("a")), Placement)
    world.placing.release(Key("ns", "a"))
    assert isinstance(world.ask("bad", unit("bad")), Placement), "mended"


async def test_nothing_is_better_for_what_nobody_can_read_nor_beside_it(world: World) -> None:
    key, moving = Key("ns", "a"), unit("a", gpus=4)
    world.inventory.put_node(node("two", gpus=4))
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    assert world.placing.better(key, misspelt("a")) is None
    assert world.placing.better(key, moving, beside=misspelt("a")) is None
    assert world.placing.better(key, moving) is not None


@pytest.fixture
def tripping(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Deployments over whose units placement trips."""
    deployments: set[str] = set()

    def trips(inventory: Any, waiting: Sequence[UnitRequest], now: float) -> Any:
        for one in waiting:
            if one.id.deployment in deployments:
                raise RuntimeError(f"a fault\nwith {one.id.deployment}")
        return place(inventory, waiting, now)

    monkeypatch.setattr("distserve.operator.placing.place", trips)
    return deployments


async def test_the_loop_goes_on_after_a_fault(
    world: World, tripping: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    tripping.add("a")
    said = world.ask("a", unit("a"))
    assert isinstance(said, NoPlace) and said.reason == "Placing", "who asks does not end by it"
    assert "trips over finding its place: RuntimeError: a fault with a." in said.message
    assert "a fault of the operator" in caplog.text and "RuntimeError: a fault" in caplog.text
    caplog.clear()
    found = asyncio.Event()
    world.placing._wake = lambda _: found.set()
    running = asyncio.create_task(world.placing.run())
    world.now += AGAIN_SECONDS
    passed = world.now
    world.placing.look()
    async with asyncio.timeout(10):
        while world.placing._passed < passed:
            assert not running.done(), "it ended"
            await asyncio.sleep(0)
    assert not found.is_set() and not caplog.text, "told once"
    tripping.clear()
    world.now += AGAIN_SECONDS
    world.placing.look()
    async with asyncio.timeout(10):
        await found.wait()
    assert isinstance(world.ask("a", unit("a")), Placement)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_unit_that_placement_trips_over_stands_in_nobodys_way(
    world: World, tripping: set[str]
) -> None:
    tripping.update(("bad", "worse"))
    names = ["a", "bad", "b", "c", "worse"]
    world.placing.begin([Key("ns", "z")])
    for name in names:
        world.ask(name, unit(name, gpus=2))
    world.placing.settle(Key("ns", "z"), {})
    found = {name: world.ask(name, unit(name, gpus=2)) for name in names}
    assert {name for name, one in found.items() if isinstance(one, Placement)} == {"a", "b", "c"}
    assert "a fault with worse" in found["worse"].message
    assert world.free == 2
    tripping.clear()
    assert isinstance(world.ask("d", unit("d", gpus=1)), Placement)
    assert world.ask("bad", unit("bad", gpus=2)) == found["bad"], "not at each turn of others"
    assert isinstance(world.ask("bad", unit("bad", gpus=1)), Placement), "asked otherwise"


async def test_who_asks_for_a_better_place_is_not_held_up_by_a_fault(
    world: World, tripping: set[str]
) -> None:
    tripping.add("bad")
    world.inventory.put_node(node("two", gpus=4))
    key, moving = Key("ns", "a"), unit("a", gpus=4)
    world.inventory.reserve(moving, {"a-u0-prefill-0-0": "one"})
    world.ask("bad", unit("bad", gpus=1))
    world.now += AGAIN_SECONDS  # It is its turn again, and no pass was yet.
    assert world.placing.better(key, moving, beside=unit("a", 1, "u1")) is not None


async def test_a_fault_with_every_unit_takes_bounded_time(
    world: World, tripping: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tripping.update(names := [f"bad-{number}" for number in range(200)])
    tried = []
    trips = placing.place

    def counted(*asked: Any) -> Any:
        tried.append(asked)
        return trips(*asked)

    monkeypatch.setattr(placing, "place", counted)
    world.placing.begin([Key("ns", "z")])
    for name in names:
        world.ask(name, unit(name))
    world.placing.settle(Key("ns", "z"), {})
    found = [world.ask(name, unit(name)) for name in names]
    assert all("trips over finding its place" in one.message for one in found)
    assert len(tried) < 200


@pytest.mark.parametrize("fault", [ValueError("claims: a map is needed"), TypeError("unhashable")])
async def test_what_somebody_wrote_over_a_statefulset_does_not_hold_up_the_others(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is placed before each deployment was settled once. A traceback is of faults alone."""
    spoilt, good = Key("ns", "a"), Key("ns", "b")
    world.placing.begin([spoilt, good])

    def stated(*_: Any) -> Any:
        raise fault

    monkeypatch.setattr(world.placing, "_stated", stated)
    world.placing.settle(spoilt, {"u0": [{}]})
    (told,) = caplog.records
    assert bool(told.exc_info) is not isinstance(fault, ValueError)
    world.placing.settle(good, {})
    assert isinstance(world.ask("b", unit("b")), Placement)
