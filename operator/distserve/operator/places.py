"""Units that have no StatefulSets yet: who waits for a place, and units that are taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distserve.api.conditions import Condition, PlacedReason
from distserve.api.deployment import DistServeDeployment
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
from distserve.operator.provisioning import (
    HELD,
    Attempts,
    attempts_of,
    comes,
    failed,
    may_provision,
    open_place,
    pauses,
    place_of,
    still,
)
from distserve.operator.queueing import Standing, refused_units, standing
from distserve.operator.repacking import Repacking
from distserve.operator.requests import unit_request
from distserve.operator.rollout import Step
from distserve.operator.wanted import Wanted

NONE = Attempts()
MOVES = "it goes to a better domain, as the annotation distserve.io/repack asks"
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
    """Until the next unit is given up, or made again."""
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """Of units for which no nodes were added in time."""
    standings: Mapping[str, Standing] = field(default_factory=dict)
    """Of all units that there are to be, in their queue."""

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


def units_without_room(observed: Observed, answers: Answers, wanted: Wanted) -> frozenset[int]:
    """Nor will any be made for them, or there is no quota."""
    attempts = attempts_of(observed)
    return refused_units(observed, wanted.deployment) | frozenset(
        int(unit[1:])
        for unit, found in answers.placements.items()
        if isinstance(found, NoPlace)
        and not _provisioned(wanted.deployment, found, attempts.get(unit, NONE), observed.now)
    )


def find_places(
    observed: Observed,
    answers: Answers,
    wanted: Wanted,
    step: Step,
    live: Mapping[str, LiveUnit],
    moves: Repacking,
) -> Places:
    deployment = wanted.deployment
    attempts = attempts_of(observed)
    found: dict[str, Placement] = {}
    waiting: dict[str, NoPlace] = {}
    standings: dict[str, Standing] = {}
    asked, given_up, timers = [], set(), []
    since, priorities = _waiting_since(observed), observed.features.priorities
    for number, revision in sorted(step.revisions.items()):
        name = f"u{number}"
        unit = live.get(name)
        made = wanted.revision(revision)
        if made is not None:
            standings[name] = standing(observed, wanted, name, made, unit)
        queue = standings.get(name, Standing())
        if unit is not None and unit.place is not None:
            if queue.goes is not None:
                waiting[name] = queue.goes
                given_up.add(name)
                continue
            place = _place(unit, unit.place, wanted, observed)
            found[name] = moves.mark(place) if name == moves.stays else place
            if name == moves.moving and revision == wanted.target.name:
                waiting[name] = NoPlace(PlacedReason.PLACING, f"{name}: {MOVES}")
                given_up.add(name)
                continue
            patience = _patience_seconds(deployment, place)
            if (stuck := unit.stuck_since(patience)) is not None:
                left = stuck + patience - observed.now
                waiting[name] = (
                    comes(deployment, unit, observed) if place.open else _unschedulable(unit)
                )
                if left <= 0:
                    given_up.add(name)
                    if place.open:
                        known = attempts.get(name, NONE)
                        attempts[name] = failed(unit, place, observed, known)
                else:
                    timers.append(left)
            elif place.open:
                waiting[name] = comes(deployment, unit, observed)
            elif (why := displaced(unit, observed.nodes)) is not None:
                waiting[name] = why
            elif queue.waits is not None:
                waiting[name] = queue.waits
            continue
        if made is None:
            continue
        if unit is None and queue.waits is not None:
            waiting[name] = queue.waits
            continue
        if unit is None and any(pod.unit == name and _ends(pod) for pod in observed.pods):
            waiting[name] = NoPlace(PlacedReason.PLACING, ENDING)
            continue
        answer = answers.placements.get(name)
        waits = max(since, queue.since)
        asked.append(unit_request(deployment, name, made, waits, priorities, queue.admission))
        tried = attempts.get(name, NONE)
        if isinstance(answer, Placement):
            found[name] = moves.mark(answer)
        elif isinstance(answer, NoPlace):
            waiting[name] = queue.told(answer)
            if _provisioned(deployment, answer, tried, observed.now):
                found[name] = open_place(deployment, tried)
            elif tried.retry > observed.now:
                waiting[name] = pauses(deployment, name, tried, answer.message)
                timers.append(tried.retry - observed.now)
        else:
            waiting[name] = NoPlace(PlacedReason.PLACING, PLACING)
    return Places(
        found,
        waiting,
        frozenset(given_up),
        PlacementQuestion(tuple(asked)),
        min(timers, default=None),
        still(attempts, waiting),
        standings,
    )


def _provisioned(
    deployment: DistServeDeployment, answer: NoPlace, tried: Attempts, now: float
) -> bool:
    return answer.reason not in HELD and may_provision(deployment, tried, now)


def _place(unit: LiveUnit, place: Placement, wanted: Wanted, observed: Observed) -> Placement:
    names = wanted.instances(unit.name, unit.revision) or unit.instances
    return place_of(unit, place, names, observed.nodes)


def _patience_seconds(deployment: DistServeDeployment, place: Placement) -> float:
    topology = deployment.spec.topology
    return topology.provision_seconds if place.open else parse_duration(topology.gang_timeout)


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
