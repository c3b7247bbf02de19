"""Units that are moved to a better domain: only when asked, one at a time, and nobody is left
without a unit that serves."""

from collections.abc import Callable
from typing import Any

import pytest

from distserve.operator.health import read_place
from distserve.operator.model import BetterQuestion, Placement

Make = Callable[..., Any]
REPACK = "distserve.io/repack"
PLACE = "distserve.io/place"


def better(world: Any, **units: str) -> None:
    """These units would lie better in these domains; once they are there, no more."""

    def answer(name: str) -> Placement | None:
        value = units.get(name)
        if value is None or places(world).get(name) == value:
            return None
        return Placement("", "", value, {f"tiny-{name}-prefill-0": ("node-a",)})

    world.better = answer


def places(world: Any) -> dict[str, str]:
    found = {}
    for one in world.named("StatefulSet").values():
        place = read_place(one["metadata"]["annotations"][PLACE])
        found[one["metadata"]["labels"]["distserve.io/unit"]] = place.value if place else ""
    return found


def pods(world: Any) -> dict[str, str]:
    return {name: pod.uid for name, pod in world.pods.items() if pod.unit}


def ask(world: Any, value: str) -> None:
    world.document["metadata"]["annotations"] = {REPACK: value}


@pytest.fixture
def two(new_world: Make) -> Any:
    return new_world(units=2).settle()


def test_nothing_moves_unless_it_is_asked(two: Any) -> None:
    better(two, u0="z1", u1="z1")
    before = pods(two)
    two.settle()
    assert pods(two) == before
    asked = [one for one in two.questions if isinstance(one, BetterQuestion)]
    assert asked == [BetterQuestion(None)]


def test_a_unit_that_lies_best_stays_and_is_not_asked_about_again(two: Any) -> None:
    better(two)
    before = pods(two)
    ask(two, "1")
    two.settle()
    assert pods(two) == before
    two.decide()
    assert BetterQuestion(None) in two.questions
    better(two, u0="z1")
    two.settle()
    assert pods(two) == before, "it was looked at for this value"
    ask(two, "2")
    two.settle()
    assert places(two)["u0"] == "z1"


@pytest.mark.parametrize("rollout", [{}, {"maxSurgeUnits": 0, "maxUnavailableUnits": 1}])
def test_units_move_one_at_a_time_and_the_others_serve(
    new_world: Make, rollout: dict[str, int]
) -> None:
    world = new_world(units=2, rollout=rollout).settle()
    better(world, u0="z1", u1="z2")
    before = pods(world)
    ask(world, "1")
    least = 2 if not rollout else 1

    def serves(now: Any) -> None:
        assert len(now.serving()) >= least

    world.settle(check=serves)
    assert places(world) == {"u0": "z1", "u1": "z2"}
    assert not set(pods(world).values()) & set(before.values())
    assert world.condition("Progressing")["reason"] == "UpToDate"
    assert world.condition("Placed")["status"] == "True"
    assert world.status["revision"]["current"] == world.status["revision"]["target"]


def test_a_paused_rollout_moves_nothing(two: Any) -> None:
    better(two, u0="z1")
    two.edit(rollout={"paused": True})
    before = pods(two)
    ask(two, "1")
    two.settle()
    assert pods(two) == before


def test_a_crash_anywhere_changes_nothing_in_the_end(new_world: Make) -> None:
    for writes in range(0, 45, 3):
        world = new_world().settle()
        better(world, u0="z1")
        ask(world, "1")
        world.fail_after = writes
        world.settle(check=lambda now: now.serving() or pytest.fail("nobody serves"))
        assert places(world) == {"u0": "z1"}
