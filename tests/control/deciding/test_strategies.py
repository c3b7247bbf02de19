"""Another strategy has instances of other roles: units of both serve until all are replaced."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from distserve.api import labels

Make = Callable[..., Any]
SPECS: dict[str, dict[str, Any]] = {
    "Disaggregated": {"strategy": {}, "prefill": {}, "decode": {}, "hybrid": None},
    "Colocated": {
        "strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {},
    },
    "ChunkedPrefill": {
        "strategy": {"name": "ChunkedPrefill"}, "prefill": None, "decode": None, "hybrid": {},
    },
}  # fmt: skip


def roles(world: Any) -> set[str]:
    return {one["metadata"]["labels"][labels.ROLE] for one in world.named("StatefulSet").values()}


def serving(world: Any) -> None:
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Serving"), ready["message"]
    assert world.ready_units() >= 3


@pytest.mark.parametrize(("former", "later"), list(permutations(SPECS, 2)))
def test_ready_while_units_move_to_another_strategy(
    new_world: Make, former: str, later: str
) -> None:
    world = new_world(units=3, **SPECS[former]).settle()
    world.edit(**SPECS[later]).settle(check=serving)
    assert roles(world) == ({"prefill", "decode"} if later == "Disaggregated" else {"hybrid"})
    assert world.condition("Progressing")["reason"] == "UpToDate"
    assert world.decide().actions == ()


def halfway(world: Any) -> Any:
    """Units of both strategies are ready."""
    world.edit(**SPECS["Colocated"])
    for _ in range(20):
        world.reconcile()
        world.step()
        if any(pod.ready and "hybrid" in pod.name for pod in world.pods.values()):
            return world
    raise AssertionError("the extra unit does not come")


def test_a_refused_edit_halfway_says_that_both_serve(new_world: Make) -> None:
    world = halfway(new_world(units=3).settle())
    assert roles(world) == {"prefill", "decode", "hybrid"}
    world.edit(unit=3).reconcile()
    ready = world.condition("Ready")
    assert ready["status"] == "True" and "did you mean units?" in ready["message"]
    assert world.condition("Degraded")["reason"] != "Starting"
    assert all(world.decide().standing.values())


def test_a_part_of_the_former_strategys_units_serves_nobody(new_world: Make) -> None:
    """A revision serves with its own roles: all of them, and in one revision."""
    world = new_world(units=1).settle()
    world.room = 1
    world.edit(**SPECS["Colocated"]).settle()
    assert world.condition("Ready")["status"] == "True"
    world.broken = lambda pod: "decode" in pod.name
    world.unschedulable = lambda pod: "hybrid" in pod.name
    del world.pods["tiny-u0-decode-0-0"]
    world.step()
    world.reconcile()
    assert world.condition("Ready")["status"] == "False"
