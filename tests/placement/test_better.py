"""Where a unit that runs would lie better: nearer together, or where it leaves larger gaps."""

from collections.abc import Callable
from typing import Any

from distserve.placement import Enforcement, Inventory, Placed, inventory_of, place
from distserve.placement.better import better_place

Make = Callable[..., Any]
NOW = 1000.0


def put(inventory: Inventory, unit: Any, *nodes: str) -> Any:
    inventory.reserve(unit, dict(zip(unit.pod_names, nodes, strict=True)))
    return unit


def test_into_one_domain_from_two(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=2))
    apart = put(inventory, unit("u0", 4, pods=2, enforcement=Enforcement.PREFERRED), "n0-0", "n1-0")
    found = better_place(inventory, apart, (), NOW)
    assert found is not None and found.domain is not None
    assert len(set(found.nodes.values())) == 1


def test_into_the_fuller_domain(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=1))
    put(inventory, unit("u1", 4, deployment="other"), "n1-0")
    small = put(inventory, unit("u0", 4), "n0-0")
    found = better_place(inventory, small, (), NOW)
    assert found is not None and set(found.nodes.values()) == {"n1-0"}
    put(inventory, small, "n1-0")
    assert better_place(inventory, small, (), NOW) is None, "and there it stays"


def test_not_to_a_place_that_is_as_good(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=4, size=1))
    for at in range(4):
        inventory.release(unit("u0").id)
        there = put(inventory, unit("u0", 4), f"n{at}-0")
        assert better_place(inventory, there, (), NOW) is None


def test_room_that_others_wait_for_is_theirs(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=1))
    put(inventory, unit("u1", 4, deployment="other"), "n1-0")
    small = put(inventory, unit("u0", 4, since=NOW), "n0-0")
    waiting = unit("u2", 4, deployment="late", since=1.0)
    (decision,) = place(inventory, [waiting], NOW)
    assert isinstance(decision, Placed)
    assert better_place(inventory, small, [waiting], NOW) is None


def test_asking_changes_nothing(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=1))
    put(inventory, unit("u1", 4, deployment="other"), "n1-0")
    small = put(inventory, unit("u0", 4), "n0-0")
    before = {name: inventory.free(name) for name in inventory.nodes}
    assert better_place(inventory, small, (), NOW) == better_place(inventory, small, (), NOW)
    assert {name: inventory.free(name) for name in inventory.nodes} == before
