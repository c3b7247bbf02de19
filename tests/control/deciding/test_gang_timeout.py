"""Units that found no nodes for all of their pods within `topology.gangTimeout`: which are taken
back, and which serve on."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distserve.operator.model import Delete

Make = Callable[..., Any]


def test_a_gang_that_is_not_complete_is_placed_anew(new_world: Make) -> None:
    world = new_world(topology={"gangTimeout": "10s"})
    world.unschedulable = lambda pod: "decode" in pod.name
    world.settle()
    assert world.condition("Placed")["reason"] == "Unschedulable"
    first = world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["uid"]
    assert 0 < world.decide().again_seconds <= 10
    world.now += 10
    world.unschedulable = lambda pod: False
    world.settle()
    assert world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["uid"] != first
    assert world.condition("Ready")["status"] == "True"


def test_a_unit_that_is_taken_back_is_not_completed_where_it_was(new_world: Make) -> None:
    """Its StatefulSets end one after another, and so do its pods: the last one seems well."""
    world = new_world(topology={"gangTimeout": "10s"})
    world.unschedulable = lambda pod: "decode" in pod.name
    world.settle()
    world.now += 10
    world.unschedulable = lambda pod: False
    (last,) = (ref for ref in world.objects if ref.name == "tiny-u0-prefill-0")
    slow = world.objects[last]
    decision = world.reconcile()
    assert {one.ref.name for one in decision.actions if isinstance(one, Delete)} == {
        "tiny-u0-decode-0", "tiny-u0-prefill-0",
    }  # fmt: skip
    metadata = {**slow["metadata"], "deletionTimestamp": "2026-01-02T03:04:05Z"}
    world.objects[last] = {**slow, "metadata": metadata}
    for name in [name for name in world.pods if "decode" in name]:
        del world.pods[name]
    world.reconcile()
    assert set(world.named("StatefulSet")) == {"tiny-u0-prefill-0"}
    placed = world.condition("Placed")
    assert (placed["reason"], placed["status"]) == ("Placing", "Unknown")
    assert "former pods end" in placed["message"]
    del world.objects[last]
    assert world.settle().condition("Ready")["status"] == "True"
    assert set(world.named("StatefulSet")) == {"tiny-u0-prefill-0", "tiny-u0-decode-0"}


@pytest.mark.parametrize("decodes,kept", [(1, False), (2, True)])
def test_a_unit_that_lost_a_place_is_kept_while_it_serves(
    new_world: Make, decodes: int, kept: bool
) -> None:
    world = new_world(
        topology={"gangTimeout": "10s"}, decode={"instancesPerUnit": decodes}
    ).settle()
    world.now += 100
    first = world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["uid"]
    del world.pods["tiny-u0-decode-0-0"]
    world.unschedulable = lambda pod: "decode-0" in pod.name
    world.step()
    world.reconcile()
    placed = world.condition("Placed")
    assert (placed["status"], placed["reason"]) == ("False", "Unschedulable")
    assert ("serves on" in placed["message"]) is kept
    world.now += 100
    world.settle()
    assert (world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["uid"] == first) is kept


UNIT_ROLES = [(unit, role) for unit in range(3) for role in ("prefill", "decode")]


def roles_up(world: Any) -> set[str]:
    return {pod.instance.split("-")[2] for pod in world.pods.values() if pod.unit and pod.ready}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(units=st.integers(1, 3), lost=st.sets(st.sampled_from(UNIT_ROLES)))
@example(units=2, lost={(0, "prefill"), (1, "decode")})
@example(units=3, lost={(0, "prefill"), (1, "decode"), (2, "decode")})
def test_units_that_serve_together_are_not_all_taken_back(
    new_world: Make, units: int, lost: set[tuple[int, str]]
) -> None:
    """Gateways pair what one unit has left with what another one has."""
    world = new_world(units=units, topology={"gangTimeout": "10s"}).settle()
    world.now += 100
    waiting = {f"tiny-u{unit}-{role}-0-0" for unit, role in lost if unit < units}
    for name in waiting:
        del world.pods[name]
    world.unschedulable = lambda pod: pod.name in waiting
    world.room = 0
    world.step()
    before = roles_up(world)

    def check(now: Any) -> None:
        assert len(before) < 2 or roles_up(now) == before

    for _ in range(3):
        world.settle(check=check)
        world.now += 100
    halves = {pod.unit for pod in world.pods.values() if pod.unit and pod.name in waiting}
    assert len(halves) <= 2, "no more are kept than serve together"
    whole = {f"u{unit}" for unit in range(units)} - {f"u{unit}" for unit, _ in lost}
    assert not (whole and halves), "who serves alone lets the others go"
    world.room, world.unschedulable = 100, lambda pod: False
    world.settle(check=check)
    assert world.condition("Ready")["status"] == "True" and world.ready_units() == units
