"""Rollouts that do not come to their end: what is said, and that what serves goes on serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distserve.operator.rollout import Rules, UnitState, next_step

Make = Callable[..., Any]

OLD = UnitState("old", ready=True, down=False)
HALF = UnitState("old", ready=False, down=False)
DOWN = UnitState("old", ready=False, down=True)
NEW = UnitState("new", ready=True, down=False)
COMING = UnitState("new", ready=False, down=True)


def rules(units: int, **more: Any) -> Rules:
    return Rules(units, **{"target": "new", "current": "old", **more})


def fail(world: Any, *pods: str) -> None:
    """They run on and are not ready any more."""
    for name in pods:
        world.pods[name] = replace(world.pods[name], ready=False)
    for found in world.named("StatefulSet").values():
        name = found["metadata"]["name"]
        ready = sum(pod.ready for pod in world.pods.values() if pod.instance == name)
        found["status"] = {**found.get("status", {}), "readyReplicas": ready}


def serving_roles(world: Any) -> set[str]:
    ready = (pod for pod in world.pods.values() if pod.unit and pod.ready and not pod.terminating)
    return {pod.instance.split("-")[2] for pod in ready}


def always_serves(world: Any) -> Callable[[Any], None]:
    def check(_: Any) -> None:
        assert serving_roles(world) == {"prefill", "decode"}

    return check


@pytest.fixture
def stuck(new_world: Make) -> Any:
    """Two units, one of them in part, and an edit whose pods never get ready."""
    world = new_world(
        units=2, decode={"instancesPerUnit": 2}, rollout={"progressDeadline": "10s"}
    ).settle()
    first = world.status["revision"]["current"]
    lost = "tiny-u0-decode-1-0"
    world.broken = lambda pod: pod.unit != "" and (pod.revision != first or pod.name == lost)
    fail(world, lost)
    world.edit(images={"engine": "broken:1"})
    return world


def deadline_message(world: Any) -> str:
    world.now += 11
    world.settle(check=always_serves(world))
    found = world.condition("Progressing")
    assert (found["status"], found["reason"]) == ("False", "ProgressDeadlineExceeded")
    return str(found["message"])


def test_a_broken_extra_unit_beside_half_a_unit_is_named(stuck: Any) -> None:
    before = {pod.uid for pod in stuck.pods.values() if pod.unit}
    stuck.settle(check=always_serves(stuck))
    pod = stuck.pods["tiny-u2-decode-1-0"]
    stuck.pods[pod.name] = replace(
        pod, waiting="ImagePullBackOff", message="engine: not found", starting_since=None
    )
    message = deadline_message(stuck)
    assert "0 of 2 units are ready with revision" in message
    assert (
        "unit u2 (extra), pod tiny-u2-decode-1-0: ImagePullBackOff engine: not found; " in message
    )
    told = [event for event in stuck.events if event.reason == "ProgressDeadlineExceeded"]
    assert [event.message for event in told] == [message]
    assert before <= {pod.uid for pod in stuck.pods.values()}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"starting_since": None, "containers_ready": False}, "runs and is not ready: see its log"),
        ({"starting_since": None, "node": ""}, "has no node"),
        ({"terminating": True}, "has not ended"),
        (
            {"starting_since": None, "containers_ready": True, "fabric_gate": False},
            "is held by topology.fabricRequired: see FabricVerified",
        ),
    ],
)
def test_where_nothing_says_what_is_wrong_the_state_is_told(
    stuck: Any, facts: dict[str, Any], words: str
) -> None:
    stuck.settle()
    stuck.now += 11
    name = "tiny-u2-decode-0-0"
    stuck.pods[name] = replace(stuck.pods[name], **facts)
    stuck.reconcile()
    message = stuck.condition("Progressing")["message"]
    assert f"unit u2 (extra), pod {name} {words}" in message


def test_a_lost_node_is_named(stuck: Any) -> None:
    stuck.settle()
    (name,) = stuck.nodes
    stuck.nodes[name] = replace(stuck.nodes[name], ready=False)
    assert f"its node {name} is not ready" in deadline_message(stuck)


def test_a_unit_without_a_place_is_named(new_world: Make) -> None:
    world = new_world(units=2, rollout={"progressDeadline": "10s"})
    world.room = 1
    world.settle()
    assert "unit u1 has no place: see Placed; " in deadline_message(world)


# ---- what serves goes on -------------------------------------------------------------------------


def test_half_a_unit_waits_for_room_unless_one_may_go() -> None:
    waits = next_step({0: HALF}, rules(1), frozenset({1}))
    assert waits.revisions == {0: "old", 1: "new"} and waits.full
    goes = next_step({0: HALF}, rules(1, one_when_full=True), frozenset({1}))
    assert goes.revisions[0] == "new"


def test_a_unit_that_is_down_for_a_moment_is_not_given_to_what_was_never_ready() -> None:
    assert next_step({0: DOWN, 1: COMING}, rules(1)).revisions == {0: "old", 1: "new"}
    assert next_step({0: DOWN, 1: NEW}, rules(1)).revisions == {0: "new", 1: "new"}
    # Nothing else tries it, or all serve nobody: at once.
    assert next_step({0: DOWN, 1: OLD}, rules(2)).revisions[0] == "new"
    assert next_step({0: DOWN, 1: DOWN}, rules(2)).revisions == {0: "new", 1: "new"}


def test_what_came_extra_stays_until_an_undone_rollout_is_back() -> None:
    back = {"target": "old", "current": "old"}
    step = next_step({0: DOWN, 1: NEW}, rules(1, **back))
    assert step.revisions == {0: "old", 1: "new"}
    assert step.surge == {1}
    assert next_step({0: OLD, 1: NEW}, rules(1, **back)).revisions == {0: "old"}
    assert next_step({0: DOWN, 1: COMING}, rules(1, **back)).revisions == {0: "old"}


def test_where_fewer_are_asked_for_one_that_is_ready_stands_in_for_one_that_is_not() -> None:
    done = {"current": "new"}
    assert next_step({0: COMING, 1: NEW, 2: NEW}, rules(1, **done)).revisions.keys() == {0, 1}
    assert next_step({0: NEW, 1: NEW, 2: NEW}, rules(1, **done)).revisions.keys() == {0}
    assert next_step({0: COMING, 1: NEW}, rules(0, **done)).revisions == {}
    # In the middle of a rollout, too: who is ready, before who will be.
    assert next_step({0: COMING, 1: OLD, 2: COMING}, rules(1)).revisions.keys() == {0, 1}


def test_an_edit_that_is_undone_half_way(new_world: Make) -> None:
    world = new_world(units=1).settle()
    first = world.units()["u0"]
    world.edit(images={"engine": "mine:2"})
    while world.units()["u0"] == first:
        world.reconcile()
        world.step()
    world.edit(images={}).settle(check=always_serves(world))
    assert world.units() == {"u0": first}
    assert world.condition("Progressing")["reason"] == "UpToDate"


def test_a_good_unit_that_fails_for_a_moment_comes_back(new_world: Make) -> None:
    world = new_world().settle()
    first = world.status["revision"]["current"]
    world.broken = lambda pod: pod.unit != "" and pod.revision != first
    world.edit(images={"engine": "broken:1"}).settle()
    fail(world, "tiny-u0-decode-0-0")
    world.settle()
    assert serving_roles(world) == {"prefill", "decode"}


def test_units_that_serve_together_are_not_taken_for_dead(new_world: Make) -> None:
    """One lost its decode instance, the other its prefill instance: gateways pair the others."""
    world = new_world(units=2).settle()
    first = world.status["revision"]["current"]
    lost = {"tiny-u0-decode-0-0", "tiny-u1-prefill-0-0"}
    world.broken = lambda pod: (pod.revision == first) == (pod.name in lost) and pod.unit != ""
    fail(world, *lost)
    world.edit(images={"engine": "broken:1"}).settle(check=always_serves(world))
    world.broken = lambda pod: pod.revision == first and pod.name in lost
    world.edit(images={"engine": "good:1"}).settle(check=always_serves(world))
    assert world.ready_units() == 2


def test_scaling_down_while_the_unit_that_stays_is_not_ready(new_world: Make) -> None:
    world = new_world(units=3).settle()
    fail(world, "tiny-u0-decode-0-0")
    world.edit(units=1).settle(check=always_serves(world))
    assert len(world.units()) == 1
    assert world.condition("Progressing")["reason"] == "UpToDate"


EDITS = st.lists(
    st.tuples(st.sampled_from(["good", "broken", "undone"]), st.integers(0, 12)), max_size=5
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS, units=st.integers(1, 3), room=st.integers(0, 2))
def test_whatever_is_edited_no_unit_is_missed(
    new_world: Make, edits: list[tuple[str, int]], units: int, room: int
) -> None:
    """Good and broken edits and their undoing, at any moment, with room for extra units or without:
    as many units are ready all the time, and in the end those that were asked for."""
    world = new_world(units=units)
    world.room = units + room
    world.settle()
    broken: set[str] = set()
    world.broken = lambda pod: pod.revision in broken

    def check(_: Any) -> None:
        assert world.ready_units() >= units

    for number, (edit, steps) in enumerate(edits):
        images = {} if edit == "undone" else {"engine": f"{edit}:{number}"}
        world.edit(images=images)
        for _ in range(steps):
            world.reconcile()
            if edit == "broken":
                broken.add(world.status["revision"]["target"])
            world.step()
            check(world)
    world.edit(images={}).settle(check=check)
    assert len(world.units()) == units
