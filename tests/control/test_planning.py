"""Each plan is made once, few at a time, and who asked is woken when it is there."""

import asyncio
import dataclasses
import threading
from typing import Any

import pytest

from distserve.operator.model import Key, Pending
from distserve.operator.planning import Planning
from distserve.operator.settings import PlanSettings
from distserve.planner.errors import NoProfile, PlannerError
from distserve.planner.worker import PlanningOverdue, PlanningStopped

A, B = Key("ns", "a"), Key("ns", "b")


@dataclasses.dataclass(frozen=True)
class Request:
    """What planning knows of a PlanRequest: that equal ones have equal hashes."""

    inputs_hash: str


class Planner:
    """Plans when it is let: `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.error: Exception | None = None

    def plan(self, request: Any, deadline_seconds: float, stop: threading.Event) -> Any:
        self.asked.append(request.inputs_hash)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(1000):
            if self.gate.wait(0.01) or stop.is_set():
                break
        self.at_once -= 1
        if stop.is_set():
            raise PlanningStopped("nobody wants it")
        assert self.gate.is_set(), "nobody let it plan"
        if self.error:
            raise self.error
        return f"plan of {request.inputs_hash}"


class World:
    def __init__(self, **settings: Any) -> None:
        self.planner = Planner()
        self.woken: list[Key] = []
        times = dataclasses.replace(PlanSettings(), **settings)
        self.planning = Planning(times, self.woken.append, self.planner.plan)

    def ask(self, key: Key, digest: str) -> Any:
        request: Any = Request(digest)
        return self.planning.ask(key, request)

    async def until_woken(self, count: int) -> None:
        for _ in range(1000):
            if len(self.woken) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"woken: {self.woken}")


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_plan_is_made_once_for_all_who_ask(world: World) -> None:
    assert world.ask(A, "x") == world.ask(B, "x") == world.ask(A, "x") == Pending()
    world.planner.gate.set()
    await world.until_woken(2)
    assert sorted(world.woken) == [A, B]
    assert world.ask(A, "x") == "plan of x"
    assert world.planner.asked == ["x"]


async def test_no_more_processes_than_allowed(world: World) -> None:
    for key, digest in zip((A, B, Key("ns", "c")), "xyz", strict=True):
        world.ask(key, digest)
    world.planner.gate.set()
    await world.until_woken(3)
    assert sorted(world.planner.asked) == ["x", "y", "z"]
    assert world.planner.most_at_once == 1


async def test_namespaces_have_their_plans_made_in_turn(world: World) -> None:
    for number in range(4):
        world.ask(Key("many", str(number)), f"many {number}")
    for name in "ab":
        world.ask(Key("few", name), f"few {name}")
    world.ask(Key("same", "a"), "many 3")
    world.planner.gate.set()
    await world.until_woken(7)
    assert world.planner.asked == ["many 0", "many 1", "few a", "many 3", "many 2", "few b"]
    assert world.planner.most_at_once == 1


async def test_a_question_without_an_answer_keeps_its_error(world: World) -> None:
    world.planner.error = NoProfile("no step times")
    world.planner.gate.set()
    world.ask(A, "x")
    await world.until_woken(1)
    assert isinstance(world.ask(A, "x"), NoProfile)
    assert world.planner.asked == ["x"]


async def test_a_plan_that_came_too_late_may_be_asked_for_again() -> None:
    world = World(retry_seconds=0.05)
    world.planner.error = PlanningOverdue("no plan within 1 s")
    world.planner.gate.set()
    world.ask(A, "x")
    await world.until_woken(1)
    assert isinstance(world.ask(A, "x"), PlanningOverdue)
    world.planner.error = None
    while isinstance(world.ask(A, "x"), PlanningOverdue):
        await asyncio.sleep(0.01)
    await world.until_woken(2)
    assert world.ask(A, "x") == "plan of x"


async def test_a_plan_that_never_comes_in_time_is_asked_for_more_and_more_seldom() -> None:
    world = World(retry_seconds=100.0, longest_retry_seconds=300.0)
    loop, pauses = asyncio.get_running_loop(), list[float]()
    world.planner.error = PlanningOverdue("no plan within 1 s")
    world.planner.gate.set()

    def later(pause: float, forget: Any, *which: Any) -> None:
        pauses.append(pause)
        forget(*which)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_later", later)
        for number in range(1, 5):
            world.ask(A, "x")
            async with asyncio.timeout(10):
                while len(world.woken) < number:
                    await asyncio.sleep(0)
        world.planner.error = None
        world.ask(A, "x")
        async with asyncio.timeout(10):
            while len(world.woken) < 5:
                await asyncio.sleep(0)
    assert pauses == [100, 200, 300, 300]
    assert world.ask(A, "x") == "plan of x"


async def test_who_asks_for_another_plan_wants_the_former_no_more(world: World) -> None:
    """An edit while the plan of the last one waits for its turn, or is being made."""
    world.ask(B, "other")
    for digest in ("first", "second", "third"):
        assert world.ask(A, digest) == Pending()
    world.planner.gate.set()
    await world.until_woken(2)
    assert world.planner.asked == ["other", "third"]
    assert world.ask(A, "third") == "plan of third"
    assert world.ask(A, "second") == Pending(), "it was not made"


async def test_what_nobody_wants_any_more_makes_room(world: World) -> None:
    world.ask(A, "x")
    async with asyncio.timeout(10):
        while world.planner.asked != ["x"]:
            await asyncio.sleep(0)
    world.ask(B, "x")
    world.planning.release(A)
    await asyncio.sleep(0)
    world.ask(A, "y")
    assert world.planner.at_once == 1, "B still wants it"
    world.planning.release(B)
    async with asyncio.timeout(10):
        while world.planner.asked != ["x", "y"]:
            await asyncio.sleep(0)
    world.planner.gate.set()
    await world.until_woken(1)
    assert world.woken == [A] and world.planner.most_at_once == 1
    assert world.ask(A, "y") == "plan of y"


async def test_a_fault_of_the_planner_is_an_answer_too(world: World) -> None:
    world.planner.error = ZeroDivisionError("a fault")
    world.planner.gate.set()
    world.ask(A, "x")
    await world.until_woken(1)
    found = world.ask(A, "x")
    assert isinstance(found, PlannerError) and "a fault" in str(found)


async def test_the_least_recently_used_are_forgotten() -> None:
    world = World(kept=2)
    world.planner.gate.set()
    for number, digest in enumerate("xyz", start=1):
        world.ask(A, digest)
        await world.until_woken(number)
    assert world.ask(A, "y") == "plan of y"
    assert world.ask(A, "x") == Pending()
    await world.until_woken(4)
