"""Which units evictions leave whole: `disruption.minAvailableUnits` of them, by how they are now.

A unit's PodDisruptionBudget lets either none of its pods go or all. Which let none go is decided
here, and remembered nowhere but in the live budgets.

    its node is cordoned --> another ready unit is protected as well --> it is not any more,
                                                                         and its pods may be evicted
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum

from distserve.api import labels
from distserve.operator.course import Course
from distserve.operator.health import LiveUnit, needed_together
from distserve.operator.model import Observed
from distserve.placement.nodes import Node


class Use(IntEnum):
    """Of a unit to clients: the most comes first."""

    WHOLE = 0
    PART = 1
    """It serves, with less than it should have; or it cannot by itself, and others need what it
    has left."""
    NONE = 2
    """Nothing of it serves, or it is about to be replaced."""


@dataclass(frozen=True, order=True)
class Candidate:
    """A unit whose budget is to be written. The least are protected first."""

    use: Use
    cordoned: bool
    """A node with a pod of it is: evictions may come there."""
    released: bool
    """Its live budget lets all its pods go, or there is none."""
    number: int

    @property
    def name(self) -> str:
        return f"u{self.number}"


def protected_units(observed: Observed, course: Course) -> frozenset[str]:
    """Names. All of them where there are to be no more than that many units. Units that serve only
    together are as many as they are: without one of them nobody serves."""
    count = course.wanted.deployment.spec.disruption.min_available_units
    if course.rules.units <= count:
        return frozenset(course.made)
    needed = needed_together(course.live.values()) & course.made.keys()
    before = _protected_before(observed)
    candidates = [_candidate(name, course, observed, before, needed) for name in course.made]
    return choose(candidates, max(count, len(needed)) if count else 0)


def choose(candidates: Collection[Candidate], count: int) -> frozenset[str]:
    """`count` of them, and those that were protected until the budgets of these are: their writes
    may be done in any order, or in part."""
    chosen = {one.name for one in sorted(candidates)[:count]}
    before = {one.name for one in candidates if not one.released}
    return frozenset(chosen if chosen <= before else chosen | before)


def _candidate(
    name: str,
    course: Course,
    observed: Observed,
    before: Collection[str],
    needed: Collection[str],
) -> Candidate:
    number, live = int(name[1:]), course.live.get(name)
    state = course.states.get(number)
    use = Use.NONE
    if needed:
        use = Use.PART if name in needed else Use.NONE
    elif state is not None and state.revision == course.made[name].name and not state.down:
        use = Use.WHOLE if state.ready else Use.PART
    cordoned = live is not None and _is_cordoned(live, observed.nodes)
    return Candidate(use, cordoned, name not in before, number)


def _protected_before(observed: Observed) -> frozenset[str]:
    """By their live budgets; the gateway's has no unit."""
    return frozenset(
        live["metadata"].get("labels", {}).get(labels.UNIT, "")
        for ref, live in observed.children.items()
        if ref.kind == "PodDisruptionBudget" and live["spec"].get("maxUnavailable") == 0
    )


def _is_cordoned(unit: LiveUnit, nodes: Mapping[str, Node | None]) -> bool:
    found = (nodes.get(pod.node) for pod in unit.pods if not pod.terminating)
    return any(node is not None and node.cordoned for node in found)
