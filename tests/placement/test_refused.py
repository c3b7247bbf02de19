"""Domains in which the scheduler found no nodes for a unit: others first, then the oldest."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.placement import Enforcement, Placed, Reason, Waiting, inventory_of, place
from distserve.placement.requests import CLUSTER

Make = Callable[..., Any]


def domain(inventory: Any, unit: Any, now: float = 0.0) -> str:
    (found,) = place(inventory, [unit], now)
    assert isinstance(found, Placed), found
    return str(found.domain)


def test_another_failure_domain_goes_first(fabric: Make, unit: Make) -> None:
    """What ties a unit to a zone refuses it in all domains of the others."""
    inventory = inventory_of(fabric(domains=8))
    assert domain(inventory, unit("u0", 8)) == "nvlink c0"
    assert domain(inventory, unit("u0", 8, refused=("nvlink c0",))) == "nvlink c4"


@pytest.mark.parametrize(
    "refused,expected",
    [
        (("nvlink c1",), "nvlink c0"),
        (("nvlink c0",), "nvlink c1"),
        (("nvlink c0", "nvlink c1"), "nvlink c0"),
        (("nvlink c1", "nvlink c0"), "nvlink c1"),
        ((CLUSTER, "nvlink c0"), "nvlink c1"),
        (("nvlink gone",), "nvlink c0"),
    ],
)
def test_without_another_it_is_the_oldest(
    fabric: Make, unit: Make, refused: tuple[str, ...], expected: str
) -> None:
    inventory = inventory_of(fabric(domains=2))
    assert domain(inventory, unit("u0", 8, refused=refused)) == expected


def test_a_fuller_one_is_not_tried_again_before_its_turn(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2))
    inventory.reserve(unit("x", 8), {"opt-x-i0-0": "n1-0"})
    asked = unit("u0", 8, deployment="other")
    assert domain(inventory, asked) == "nvlink c1"
    asked = replace(asked, refused=("nvlink c0", "nvlink c1"))
    assert domain(inventory, asked) == "nvlink c0"


@pytest.mark.parametrize("refused", [("nvlink c0",), (CLUSTER,)])
def test_elsewhere_means_no_refused_one(fabric: Make, unit: Make, refused: tuple[str, ...]) -> None:
    """Nor is its room kept from those behind it, though they ask for the same."""
    inventory = inventory_of(fabric(domains=1))
    asked = unit("u0", 8, 8, refused=refused, elsewhere=True, reserve_after_seconds=1.0)
    first, second = place(inventory, [asked, unit("u1", 8, 8, since=1.0)], 1000.0)
    assert isinstance(first, Waiting) and first.reason == Reason.NO_ROOM and not first.holds
    assert refused[0] in first.message
    assert isinstance(second, Placed)


def test_a_looser_domain_is_used_without_the_refused_part(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=3))
    for name, node in (("x", "n1-0"), ("y", "n2-0")):
        inventory.reserve(unit(name, 8), {f"opt-{name}-i0-0": node})
    preferred = {"enforcement": Enforcement.PREFERRED, "relax_after_seconds": 60.0}
    asked = unit("u0", 8, 8, refused=("nvlink c0",), **preferred)
    (found,) = place(inventory, [asked], 1000.0)
    assert isinstance(found, Placed) and set(found.nodes.values()) == {"n1-1", "n2-1"}


def test_a_looser_domain_that_needs_the_refused_part_comes_last(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2))
    inventory.reserve(unit("x", 8), {"opt-x-i0-0": "n1-0"})
    preferred = {"enforcement": Enforcement.PREFERRED, "relax_after_seconds": 60.0}
    asked = unit("u0", 8, 8, 8, refused=("nvlink c0",), **preferred)
    assert domain(inventory, asked, 100.0) == "leaf l0"


def test_the_cluster_is_a_domain(node: Make, unit: Make) -> None:
    inventory = inventory_of([node("a")])
    asked = unit("u0", 8, levels=(), pack_within=None, refused=(CLUSTER,))
    (found,) = place(inventory, [asked], 0.0)
    assert isinstance(found, Placed)
    (found,) = place(inventory, [replace(asked, elsewhere=True)], 0.0)
    assert isinstance(found, Waiting)
