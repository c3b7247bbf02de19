"""Units that are moved to a better domain: only when asked or idle, one at a time, and nobody is
left without a unit that serves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distserve.operator.health import read_place
from distserve.operator.idle import IdleQuestion
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
        return Placement("rack", "", value, {f"tiny-{name}-prefill-0": ("node-a",)})

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


def test_a_new_leader_waits_with_its_judgement_until_it_knows_all_reservations(two: Any) -> None:
    better(two, u0="z1")
    two.unsettled = True
    ask(two, "1")
    two.settle()
    assert places(two)["u0"] == ""
    two.unsettled = False
    two.settle()
    assert places(two)["u0"] == "z1", "it was not taken for one that lies best"


# ---- idle units ---------------------------------------------------------------------------------

WHEN_IDLE = {"repack": "WhenIdle", "repackIdleAfter": "5m"}


def idle_events(world: Any) -> list[str]:
    return [one.message for one in world.events if one.reason == "Repacking"]


def moves(world: Any) -> dict[str, Any]:
    return {one["unit"]: one for one in world.status.get("repacking", ())}


@pytest.fixture
def sleepy(new_world: Make) -> Any:
    """Two units that lie badly, and of which nobody knows whether they are idle."""
    world = new_world(units=2, topology=WHEN_IDLE).settle()
    better(world, u0="z1", u1="z2")
    return world


def test_who_is_idle_is_asked_only_where_that_counts(two: Any, sleepy: Any) -> None:
    better(two, u0="z1")
    two.idle = {"u0": 900.0, "u1": 900.0}
    before = pods(two)
    two.settle()
    assert pods(two) == before
    assert not [one for one in two.questions if isinstance(one, IdleQuestion)]
    sleepy.settle()
    (asked,) = [one for one in sleepy.questions if isinstance(one, IdleQuestion)]
    assert asked.after_seconds == 300.0
    assert {unit: [m.pod for m in members] for unit, members in asked.units.items()} == {
        unit: [f"tiny-{unit}-prefill-0-0", f"tiny-{unit}-decode-0-0"] for unit in ("u0", "u1")
    }
    sleepy.edit(rollout={"paused": True})
    sleepy.settle()
    assert not [one for one in sleepy.questions if isinstance(one, IdleQuestion)]


def test_a_unit_is_asked_about_only_whole(sleepy: Any) -> None:
    """One of its engines has no address: it may have requests."""
    sleepy.pods["tiny-u0-decode-0-0"] = replace(sleepy.pods["tiny-u0-decode-0-0"], host="")
    sleepy.decide()
    (asked,) = [one for one in sleepy.questions if isinstance(one, IdleQuestion)]
    assert set(asked.units) == {"u1"}


def test_only_the_idle_unit_moves_and_it_is_told_why(sleepy: Any) -> None:
    before = pods(sleepy)
    sleepy.settle()
    assert pods(sleepy) == before, "what is not known is not idle"
    sleepy.idle = {"u0": 299.0, "u1": 312.0}

    def serves(now: Any) -> None:
        assert len(now.serving()) >= 2

    sleepy.settle(check=serves)
    assert places(sleepy) == {"u0": "", "u1": "z2"}
    assert {n: uid for n, uid in pods(sleepy).items() if "u0" in n}.items() <= before.items()
    (told,) = idle_events(sleepy)
    assert "unit u1 is moved from the cluster to rack z2" in told
    assert "had a request for 312 s (topology.repack: WhenIdle)" in told
    assert moves(sleepy) == {"u1": {"unit": "u1", "left": ["the cluster"]}}
    assert sleepy.condition("Progressing")["reason"] == "UpToDate"


def test_it_never_goes_back_to_what_it_left(sleepy: Any) -> None:
    sleepy.idle = {"u0": 900.0}
    for wanted, found in (("z1", "z1"), ("z2", "z2"), ("z1", "z2"), ("z3", "z3"), ("z2", "z3")):
        better(sleepy, u0=wanted)
        sleepy.settle()
        assert places(sleepy)["u0"] == found
    assert moves(sleepy)["u0"]["left"] == ["the cluster", "rack z1", "rack z2"]
    better(sleepy, u0="z1")
    ask(sleepy, "1")
    sleepy.settle()
    assert places(sleepy)["u0"] == "z3", "it left that itself"
    sleepy.edit(topology={})
    sleepy.settle()
    assert "repacking" not in sleepy.status
    ask(sleepy, "2")
    sleepy.settle()
    assert places(sleepy)["u0"] == "z1", "who asks decides"


@pytest.mark.parametrize("when_full,moved", [("Wait", False), ("ReplaceOne", True)])
def test_without_room_for_an_extra_unit_it_is_not_begun_unless_one_may_be_missing(
    new_world: Make, when_full: str, moved: bool
) -> None:
    """Nobody asked for the move, so nobody is told that there is no room for it."""
    world = new_world(units=2, topology=WHEN_IDLE, rollout={"whenFull": when_full}).settle()
    better(world, u0="z1")
    world.idle, world.room = {"u0": 900.0}, 2
    world.settle()
    assert places(world)["u0"] == ("z1" if moved else "")
    assert bool(idle_events(world)) is moved
    assert not [one for one in world.events if one.reason == "NoRoomForSurge"]
    world.room = 3
    world.settle()
    assert places(world)["u0"] == "z1"


def test_who_left_many_places_stays(sleepy: Any) -> None:
    sleepy.idle = {"u0": 900.0}
    for number in range(20):
        better(sleepy, u0=f"z{number}")
        sleepy.settle()
    assert len(moves(sleepy)["u0"]["left"]) == 16
    assert places(sleepy)["u0"] == "z15"


def test_a_request_that_comes_after_the_decision_does_not_stop_the_move(sleepy: Any) -> None:
    """The extra unit is on its way by then; the rollout's rules end the old one after its
    requests."""
    sleepy.idle = {"u0": 900.0}
    sleepy.reconcile()
    assert moves(sleepy)["u0"]["leaving"]
    assert not [one for one in sleepy.writes if "u2" in str(one)], "written down before it is done"
    sleepy.idle = {}
    sleepy.settle(check=lambda now: len(now.serving()) >= 2 or pytest.fail("a unit is missing"))
    assert places(sleepy)["u0"] == "z1"
    assert moves(sleepy)["u0"] == {"unit": "u0", "left": ["the cluster"]}


def test_a_move_that_was_begun_ends_when_its_better_place_is_gone(sleepy: Any) -> None:
    sleepy.idle = {"u0": 900.0}
    before = pods(sleepy)
    sleepy.reconcile()
    sleepy.idle = {}
    better(sleepy)
    sleepy.settle()
    assert pods(sleepy) == before
    assert "repacking" not in sleepy.status
    better(sleepy, u0="z1")
    sleepy.settle()
    assert pods(sleepy) == before, "it has to be idle again"


@pytest.mark.parametrize(
    "edit", [{"images": {"engine": "engine:2"}}, {"rollout": {"paused": True}}]
)
def test_an_edit_takes_a_move_back_that_was_begun(sleepy: Any, edit: Any) -> None:
    sleepy.idle = {"u0": 900.0}
    sleepy.reconcile()
    assert moves(sleepy)["u0"]["leaving"]
    sleepy.idle = {}
    sleepy.edit(**edit)
    sleepy.settle()
    assert "repacking" not in sleepy.status
    assert places(sleepy)["u0"] == ""


def test_a_new_leader_keeps_the_extra_unit_until_it_can_judge(sleepy: Any) -> None:
    sleepy.idle = {"u0": 900.0}
    sleepy.broken = lambda pod: pod.unit == "u2"
    sleepy.settle()
    assert set(sleepy.units()) == {"u0", "u1", "u2"}
    extra = {name: uid for name, uid in pods(sleepy).items() if "-u2-" in name}
    sleepy.idle, sleepy.kept, sleepy.unsettled = {}, {}, True
    sleepy.settle()
    assert extra.items() <= pods(sleepy).items()
    sleepy.unsettled, sleepy.broken = False, lambda pod: False
    sleepy.settle()
    assert set(sleepy.units()) == {"u0", "u1"} and places(sleepy)["u0"] == "z1"


def test_a_crash_in_an_idle_units_move_changes_nothing_in_the_end(new_world: Make) -> None:
    for writes in range(0, 45, 3):
        world = new_world(topology=WHEN_IDLE).settle()
        better(world, u0="z1")
        world.idle = {"u0": 900.0}
        world.fail_after = writes
        world.settle(check=lambda now: now.serving() or pytest.fail("nobody serves"))
        assert places(world) == {"u0": "z1"}
        assert moves(world) == {"u0": {"unit": "u0", "left": ["the cluster"]}}


happens = st.one_of(
    st.tuples(st.just("better"), st.sampled_from(("u0", "u1")), st.sampled_from("abc")),
    st.tuples(st.just("idle"), st.sampled_from(("u0", "u1")), st.sampled_from((0.0, 299.0, 900.0))),
    st.tuples(st.just("leads"), st.booleans(), st.none()),
    st.tuples(st.just("crash"), st.integers(0, 6), st.none()),
    st.tuples(st.just("steps"), st.integers(1, 6), st.none()),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(happened=st.lists(happens, max_size=12))
def test_whatever_happens_busy_units_stay_and_moving_ends(
    happened: list[Any], new_world: Make
) -> None:
    world = new_world(units=2, topology=WHEN_IDLE).settle()
    wanted: dict[str, str] = {}
    idle_once: set[str] = set()
    first = pods(world)

    def check(now: Any) -> None:
        assert len(now.serving()) >= 2
        for unit in {"u0", "u1"} - idle_once:
            mine = {name: uid for name, uid in first.items() if f"-{unit}-" in name}
            assert mine.items() <= pods(now).items()
        for one in moves(now).values():
            assert len(set(one["left"])) == len(one["left"])
        assert sum(one.get("leaving", False) for one in moves(now).values()) <= 1

    for what, first_value, second in happened:
        if what == "better":
            wanted[first_value] = second
            better(world, **wanted)
        elif what == "idle":
            world.idle[first_value] = second
            idle_once |= {first_value} if second >= 300 else set()
        elif what == "leads":
            world.unsettled = first_value
        elif what == "crash":
            world.fail_after = first_value
        else:
            for _ in range(first_value):
                world.reconcile_or_crash()
                check(world)
                world.step()
                check(world)
    world.unsettled = False
    world.settle(check=check)
    assert set(world.units()) == {"u0", "u1"}
    for unit, one in moves(world).items():
        assert not one.get("leaving"), "it ends"
        assert f"rack {places(world)[unit]}" not in one["left"]
