"""Units that have no StatefulSets yet: who waits for a place, and units that are taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distserve.api.conditions import Condition, PlacedReason
from distserve.api.durations import parse_duration
from distserve.operator.conditions import Fact, find, seconds
from distserve.operator.healing import displaced
from distserve.operator.health import LiveUnit
from distserve.operator.model import (
    Answers,
    NoPlace,
    Object,
    Observed,
    Placement,
    PlacementQuestion,
    Pod,
)
from distserve.operator.requests import unit_request
from distserve.operator.rollout import Step
from distserve.operator.wanted import Wanted

PLACING = "a place is being looked for"
ENDING = "a place is looked for when its former pods end"


@dataclass(frozen=True)
class Places:
    found: Mapping[str, Placement]
    """Unit -> where it goes, or is."""
    waiting: Mapping[str, NoPlace]
    """Units without a place, and why."""
    given_up: frozenset[str]
    """Units to be deleted whole and placed anew: a part of their pods finds no node."""
    question: PlacementQuestion
    """Also without any unit: then nothing of the deployment waits any more."""
    again_seconds: float | None
    """Until the next unit is given up."""

    def fact(self, units: int) -> Fact:
        if units == 0:
            return Fact(True, PlacedReason.NOTHING_TO_PLACE, "spec.units is 0")
        if not self.waiting:
            return Fact(True, PlacedReason.PLACED, "every unit has its nodes")
        name = min(self.waiting, key=lambda unit: (self.waiting[unit].reason == "", unit))
        first = self.waiting[name]
        more = f" (and {len(self.waiting) - 1} more units)" if len(self.waiting) > 1 else ""
        known = first.reason != PlacedReason.PLACING
        message = first.message if name in first.message else f"{name}: {first.message}"
        return Fact(False if known else None, first.reason, f"{message}{more}")


def units_without_room(answers: Answers) -> frozenset[int]:
    refused = (unit for unit, found in answers.placements.items() if isinstance(found, NoPlace))
    return frozenset(int(unit[1:]) for unit in refused)


def find_places(
    observed: Observed,
    answers: Answers,
    wanted: Wanted,
    step: Step,
    live: Mapping[str, LiveUnit],
) -> Places:
    gang_seconds = parse_duration(wanted.deployment.spec.topology.gang_timeout)
    found: dict[str, Placement] = {}
    waiting: dict[str, NoPlace] = {}
    asked, given_up, timers = [], set(), []
    since, priorities = _waiting_since(observed), observed.features.priorities
    for number, revision in sorted(step.revisions.items()):
        name = f"u{number}"
        unit = live.get(name)
        if unit is not None and unit.place is not None:
            found[name] = unit.place
            if (stuck := unit.stuck_since(gang_seconds)) is not None:
                left = stuck + gang_seconds - observed.now
                waiting[name] = _unschedulable(unit)
                if left <= 0:
                    given_up.add(name)
                else:
                    timers.append(left)
            elif (why := displaced(unit, observed.nodes)) is not None:
                waiting[name] = why
            continue
        made = wanted.revision(revision)
        if made is None:
            continue
        if any(pod.unit == name and _ends(pod) for pod in observed.pods):
            waiting[name] = NoPlace(PlacedReason.PLACING, ENDING)
            continue
        answer = answers.placements.get(name)
        asked.append(unit_request(wanted.deployment, name, made, since, priorities))
        if isinstance(answer, Placement):
            found[name] = answer
        elif isinstance(answer, NoPlace):
            waiting[name] = answer
        else:
            waiting[name] = NoPlace(PlacedReason.PLACING, PLACING)
    return Places(
        found,
        waiting,
        frozenset(given_up),
        PlacementQuestion(tuple(asked)),
        min(timers, default=None),
    )


def _ends(pod: Pod) -> bool:
    """Its StatefulSet is gone, and the garbage collector has not come to it yet: until then it
    would seem to hold the unit where it is."""
    return bool(pod.controller) and not pod.terminating


def _unschedulable(unit: LiveUnit) -> NoPlace:
    pod = next(pod for pod in unit.pods if pod.unschedulable)
    return NoPlace(
        PlacedReason.UNSCHEDULABLE,
        f"{unit.name}: the scheduler finds no node for pod {pod.name}: {pod.unschedulable}; "
        "after topology.gangTimeout the unit is placed anew",
    )


def _waiting_since(observed: Observed) -> float:
    """A unit waits since the condition says so; as long as it does not, since now."""
    conditions: list[Object] = (observed.document.get("status") or {}).get("conditions") or []
    placed = find(conditions, Condition.PLACED)
    waits = placed is not None and placed["status"] != "True"
    return seconds(placed["lastTransitionTime"]) if placed is not None and waits else observed.now
