"""Units that evictions leave whole: the promise holds, and drains pass where it lets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.disruption import Candidate, Use, choose
from distserve.operator.model import Apply, Pod
from distserve.placement.nodes import Node

Make = Callable[..., Any]
SPARE = "node-a"


def protected(world: Any) -> set[str]:
    return {
        budget["metadata"]["labels"]["distserve.io/unit"]
        for name, budget in world.named("PodDisruptionBudget").items()
        if name != "tiny-gateway" and budget["spec"]["maxUnavailable"] == 0
    }


def budgets_written(world: Any, since: int = 0) -> list[str]:
    return [
        one.object["metadata"]["name"]
        for one in world.writes[since:]
        if isinstance(one, Apply) and one.object["kind"] == "PodDisruptionBudget"
    ]


def spread(world: Any) -> Any:
    """Each unit has a node of its own; what is made later goes to SPARE."""
    for name, pod in list(world.pods.items()):
        if pod.unit:
            home = f"of-{pod.unit}"
            world.pods[name] = replace(pod, node=home)
            world.nodes[home] = Node(home, {}, {}, (), cordoned=False, ready=True)
    return world


def cordon(world: Any, node: str) -> None:
    world.nodes[node] = replace(world.nodes[node], cordoned=True)


def evict(world: Any, pod: Pod) -> bool:
    """What the API server answers, where the budget of the pod's unit is its only one."""
    if pod.ready and pod.unit in protected(world):
        return False
    world.pods[pod.name] = replace(pod, terminating=True, ready=False)
    return True


def drains(world: Any, node: str, at_least: int) -> bool:
    """As `kubectl drain`: whether it comes to its end. `at_least` units are ready all the time."""
    cordon(world, node)
    for _ in range(20):
        left = [p for p in world.pods.values() if p.node == node and not p.terminating]
        if not left:
            return True
        for pod in left:
            evict(world, pod)
            assert world.ready_units() >= at_least
        world.reconcile()
        world.step()
    return False


@pytest.mark.parametrize("promised", [1, 2])
def test_any_node_can_be_drained_one_after_the_other(new_world: Make, promised: int) -> None:
    spec = {"disruption": {"minAvailableUnits": promised}}
    world = spread(new_world(units=3, **spec).settle())
    for unit in ("u0", "u1", "u2"):
        assert drains(world, f"of-{unit}", promised), unit
        world.settle()
    assert world.ready_units() == 3 and len(protected(world)) == promised


def test_with_all_nodes_cordoned_the_promise_is_kept(new_world: Make) -> None:
    world = spread(new_world(units=2).settle())
    cordon(world, SPARE)
    assert [drains(world, f"of-u{number}", 1) for number in range(2)].count(False) == 1
    assert world.ready_units() == 1


def test_who_serves_in_place_of_a_unit_that_is_down_is_protected(new_world: Make) -> None:
    world = new_world(units=2).settle()
    assert protected(world) == {"u0"}
    world.broken = lambda pod: pod.unit == "u0"
    for pod in list(world.pods.values()):
        if pod.unit == "u0":
            world.pods[pod.name] = replace(pod, ready=False)
    assert protected(world.settle()) == {"u1"}
    world.broken = lambda pod: False
    world.settle()
    assert world.ready_units() == 2
    assert protected(world) == {"u1"}, "it does not go to and fro"


def test_what_serves_in_part_is_protected_before_what_does_not(new_world: Make) -> None:
    world = new_world(units=2, decode={"instancesPerUnit": 2}).settle()
    world.broken = lambda pod: pod.name == "tiny-u1-decode-0-0" or pod.unit == "u0"
    for pod in list(world.pods.values()):
        if pod.unit and world.broken(pod):
            world.pods[pod.name] = replace(pod, ready=False)
    assert protected(world.settle()) == {"u1"}


def test_units_that_serve_only_together_are_kept_together(new_world: Make) -> None:
    """Gateways pair what u1 has left with what u2 has; u0 is of no use."""
    world = spread(new_world(units=3).settle())
    assert protected(world) == {"u0"}
    lost = {"tiny-u1-decode-0-0", "tiny-u2-prefill-0-0"}
    world.broken = lambda pod: pod.name in lost or pod.unit == "u0"
    for pod in list(world.pods.values()):
        world.pods[pod.name] = replace(pod, ready=pod.ready and not world.broken(pod))
    assert protected(world.settle()) == {"u1", "u2"}
    assert not drains(world, "of-u1", 0) and not drains(world, "of-u2", 0)
    ready = {name for name, pod in world.pods.items() if pod.unit and pod.ready}
    assert ready == {"tiny-u1-prefill-0-0", "tiny-u2-decode-0-0"}
    world.broken = lambda pod: False
    world.settle()
    assert world.ready_units() == 3 and len(protected(world)) == 1


def test_units_that_serve_only_together_are_not_kept_where_nothing_is_promised(
    new_world: Make,
) -> None:
    world = spread(new_world(units=2, disruption={"minAvailableUnits": 0}).settle())
    world.broken = lambda pod: pod.name in ("tiny-u0-decode-0-0", "tiny-u1-prefill-0-0")
    for pod in list(world.pods.values()):
        world.pods[pod.name] = replace(pod, ready=pod.ready and not world.broken(pod))
    assert protected(world.settle()) == set()


def whole(world: Any) -> set[str]:
    """Units all of whose pods serve."""
    found: dict[str, list[bool]] = {}
    for pod in world.pods.values():
        if pod.unit:
            found.setdefault(pod.unit, []).append(pod.ready and not pod.terminating)
    return {unit for unit, pods in found.items() if all(pods)}


def test_a_rollout_takes_no_protected_unit(new_world: Make) -> None:
    """Who is to be replaced hands it over before that."""
    world = new_world(units=2).settle()
    world.edit(images={"engine": "mine:2"})
    for _ in range(40):
        world.reconcile()
        assert whole(world) & protected(world)
        world.step()
        if world.condition("Progressing")["status"] == "True":
            assert whole(world) & protected(world)
    assert world.units().keys() == {"u0", "u1"} and len(protected(world)) == 1


@pytest.mark.parametrize("units", [1, 2])
def test_a_rollouts_extra_unit_is_protected_while_it_serves_alone(
    new_world: Make, units: int
) -> None:
    world, extra = new_world(units=units).settle(), f"u{units}"
    world.edit(images={"engine": "mine:2"})
    for _ in range(20):
        world.reconcile()
        world.step()
        if extra in whole(world):
            break
    world.broken = lambda pod: pod.unit not in ("", extra)
    for pod in list(world.pods.values()):
        world.pods[pod.name] = replace(pod, ready=pod.ready and not world.broken(pod))
    for _ in range(4):
        world.reconcile()
        world.step()
    assert whole(world) == {extra} and extra in protected(world)
    assert len(protected(world)) == (1 if units > 1 else 2)


def test_without_more_units_than_promised_all_are_protected(new_world: Make) -> None:
    world = new_world(units=1).settle()
    world.edit(images={"engine": "mine:2"})
    for _ in range(40):
        world.reconcile()
        assert protected(world) == {f"u{n}" for n in range(len(world.units()))}
        world.step()
    assert drains(spread(world), "of-u0", 1) is False


def test_none_is_protected_where_nothing_is_promised(new_world: Make) -> None:
    world = new_world(units=2, disruption={"minAvailableUnits": 0}).settle()
    assert protected(world) == set()


def test_the_successor_is_protected_before_the_former_one_is_released(new_world: Make) -> None:
    world = spread(new_world(units=2).settle())
    cordon(world, "of-u0")
    before = len(world.writes)
    world.reconcile()
    assert budgets_written(world, before) == ["tiny-u1"] and protected(world) == {"u0", "u1"}
    world.reconcile()
    assert budgets_written(world, before) == ["tiny-u1", "tiny-u0"]
    assert protected(world) == {"u1"}


def test_nothing_is_written_while_nothing_changes(new_world: Make) -> None:
    world = spread(new_world(units=3).settle())
    before = len(world.writes)
    cordon(world, "of-u2")
    world.settle()
    assert world.decide().actions == () and budgets_written(world, before) == []
    cordon(world, "of-u0")
    world.settle()
    assert sorted(budgets_written(world, before)) == ["tiny-u0", "tiny-u1"]
    world.nodes["of-u0"] = replace(world.nodes["of-u0"], cordoned=False)
    world.settle()
    assert len(budgets_written(world, before)) == 2, "an uncordon takes nothing back"


CANDIDATES = st.lists(
    st.builds(Candidate, st.sampled_from(Use), st.booleans(), st.booleans(), st.integers(0, 20)),
    max_size=8,
    unique_by=lambda one: one.number,
)


def followed(candidates: list[Candidate], chosen: frozenset[str]) -> list[Candidate]:
    return [replace(one, released=one.name not in chosen) for one in candidates]


@given(CANDIDATES, st.integers(0, 9))
def test_what_is_chosen(candidates: list[Candidate], count: int) -> None:
    first = choose(candidates, count)
    second = choose(followed(candidates, first), count)
    assert second <= first and choose(followed(candidates, second), count) == second, "it settles"
    assert len(second) == min(count, len(candidates))
    chosen = [one for one in candidates if one.name in second]
    others = [one for one in candidates if one.name not in second]
    for one in chosen:
        for other in others:
            assert (one.use, one.cordoned) <= (other.use, other.cordoned)
            alike = (one.use, one.cordoned) == (other.use, other.cordoned)
            assert not (alike and one.released and not other.released), "it goes to and fro"
