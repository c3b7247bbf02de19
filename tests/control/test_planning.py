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
from distserve.planner.worker import PlanningOverdue

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

    def plan(self, request: Any, deadline_seconds: float) -> Any:
        self.asked.append(request.inputs_hash)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.gate.wait(10)
        self.at_once -= 1
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
    for digest in "xyz":
        world.ask(A, digest)
    world.planner.gate.set()
    await world.until_woken(3)
    assert sorted(world.planner.asked) == ["x", "y", "z"]
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
