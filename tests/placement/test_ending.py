"""Pods that end hold their room until they are gone: it is their successors' and nobody else's."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.placement.test_properties import (
    NOW,
    bound,
    clusters,
    patient,
    reserve_all,
    units,
)

from distserve.placement import Placed, UnitId, UnitRequest, Waiting, inventory_of, place

Make = Callable[..., Any]
GPU = "nvidia.com/gpu"


def ending(pod: Make, unit: UnitRequest, node: str, gpus: int = 8) -> Any:
    (name,) = unit.pod_names
    return pod(name, node, {GPU: gpus}, unit=unit.id, deletionTimestamp="2026-01-01T00:00:00Z")


def test_a_terminating_pods_room_is_its_successors(fabric: Make, unit: Make, pod: Make) -> None:
    inventory = inventory_of(fabric(domains=1, size=1))
    asked = unit("u0", 8)
    inventory.put_pod(ending(pod, asked, "n0-0"))
    (found,) = place(inventory, [asked], NOW)
    assert isinstance(found, Placed) and found.nodes == {"opt-u0-i0-0": "n0-0"}


def test_nobody_else_takes_it_in_the_pass_in_which_its_unit_goes_elsewhere(
    fabric: Make, unit: Make, pod: Make
) -> None:
    inventory = inventory_of(fabric(domains=2, size=1))
    first = unit("u0", 8, refused=("nvlink c0",))
    inventory.put_pod(ending(pod, first, "n0-0"))
    moved, waits = place(inventory, [first, unit("u1", 8, since=1.0)], NOW)
    assert isinstance(moved, Placed) and set(moved.nodes.values()) == {"n1-0"}
    assert isinstance(waits, Waiting)


def test_nor_while_its_unit_waits(fabric: Make, unit: Make, pod: Make) -> None:
    inventory = inventory_of(fabric(domains=1, size=1))
    first = unit("u0", 8, refused=("nvlink c0",), elsewhere=True)
    inventory.put_pod(ending(pod, first, "n0-0"))
    decisions = place(inventory, [first, unit("u1", 8, since=1.0)], NOW)
    assert all(isinstance(one, Waiting) for one in decisions)


def test_nobody_makes_way_to_where_its_pods_end(fabric: Make, unit: Make, pod: Make) -> None:
    """Half of c0 is somebody else's, and the unit's former pod has the other half."""
    inventory = inventory_of(fabric(domains=2, size=1))
    inventory.put_pod(pod("other", "n0-0", {GPU: 4}))
    grown, small = unit("u0", 8, since=1.0, refused=("nvlink c0",)), unit("u1", 4)
    inventory.put_pod(ending(pod, grown, "n0-0", gpus=4))
    stays, waits = place(inventory, [grown, small], NOW)
    assert isinstance(stays, Placed) and set(stays.nodes.values()) == {"n1-0"}
    assert isinstance(waits, Waiting) and waits.unit == grown.id


@given(clusters(), units(), st.data())
@patient
def test_no_room_is_given_twice_while_pods_end(
    nodes: list[dict[str, Any]], asked: list[UnitRequest], data: st.DataObject
) -> None:
    """Some units were taken back and are placed anew, away from where they were or not."""
    inventory = inventory_of(nodes)
    first = place(inventory, asked, NOW)
    reserve_all(inventory, asked, first)
    placed = {one.unit: one for one in first if isinstance(one, Placed)}
    ends: dict[tuple[UnitId, str], Counter[str]] = {}
    again = []
    for unit in asked:
        known = placed.get(unit.id)
        if known is None or not data.draw(st.booleans()):
            again.append(unit)
            continue
        inventory.release(unit.id)
        for instance in unit.instances:
            for pod in instance.pod_names:
                document = bound(unit, instance, pod, known.nodes[pod])
                document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                inventory.put_pod(document)
                here = ends.setdefault((unit.id, known.nodes[pod]), Counter())
                here.update(instance.amounts)
        refused = (str(known.domain),) if known.domain and data.draw(st.booleans()) else ()
        again.append(replace(unit, refused=refused))
    comes: dict[tuple[UnitId, str], Counter[str]] = {}
    by_id = {unit.id: unit for unit in asked}
    for decision in place(inventory, again, NOW):
        if isinstance(decision, Placed):
            for instance in by_id[decision.unit].instances:
                for pod in instance.pod_names:
                    there = comes.setdefault((decision.unit, decision.nodes[pod]), Counter())
                    there.update(instance.amounts)
    nothing = Counter[str]()
    for name, node in inventory.nodes.items():
        # Of each unit the larger of what ends and what comes: `|` of Counters.
        taken = sum(
            (ends.get((id, name), nothing) | comes.get((id, name), nothing) for id in by_id),
            nothing,
        )
        assert all(count <= node.allocatable.get(what, 0) for what, count in taken.items())
