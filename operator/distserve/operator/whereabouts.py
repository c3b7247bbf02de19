"""Where one unit is, or may go, and why it waits: a column of `places` for each.

in a place  --> stays | goes to a better one | taken back: pods that find no node, lost quota
without one --> waits in its queue | for its former pods | asks for room: placed, waits,
                or is made all the same, for nodes to come
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from distserve.api.conditions import Condition, PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.operator.conditions import find, seconds
from distserve.operator.healing import displaced
from distserve.operator.health import LiveUnit
from distserve.operator.model import Answers, NoPlace, Object, Observed, Placement, Pod
from distserve.operator.provisioning import (
    HELD,
    Attempts,
    comes,
    failed,
    may_provision,
    open_place,
    pauses,
    place_of,
)
from distserve.operator.refusals import CURE, Refusals
from distserve.operator.repacking import Repacking
from distserve.operator.requests import for_unit, unit_request
from distserve.operator.standings import Standing
from distserve.operator.wanted import Wanted
from distserve.placement.requests import UnitRequest
from distserve.resources import gangs
from distserve.resources.queued import Admission
from distserve.resources.revisions import Revision

NONE = Attempts()
NEVER = Refusals()
MOVES = "it goes to a better domain"
PLACING = "a place is being looked for"
ENDING = "a place is looked for when its former pods end"


@dataclass(frozen=True)
class Whereabouts:
    place: Placement | None = None
    """Where it is, or goes."""
    waits: NoPlace | None = None
    given_up: bool = False
    """It is to be deleted whole, and placed anew."""
    request: UnitRequest | None = None
    """What room is asked for."""
    again_seconds: float | None = None
    """Until it is given up, or made again."""
    failed: Attempts | None = None
    """No nodes were added for it in time, or it got no quota."""
    refused: Refusals | None = None
    """The scheduler found no nodes for it where it was put."""


@dataclass(frozen=True)
class Look:
    """At units one by one, with what is the same for all of them."""

    observed: Observed
    answers: Answers
    wanted: Wanted
    moves: Repacking
    attempts: Mapping[str, Attempts]
    refusals: Mapping[str, Refusals]
    needed: Collection[str] = ()
    """Units without which nobody serves, though they have lost a part."""
    alike: dict[str, UnitRequest] = field(default_factory=dict)
    """By revision, what its units ask for where no queue says more; made for the first of them."""

    def at_placed(
        self, unit: LiveUnit, place: Placement, revision: str, queue: Standing
    ) -> Whereabouts:
        """A unit whose StatefulSets carry its place."""
        if queue.goes is not None:
            return Whereabouts(waits=queue.goes, given_up=True)
        names = self.wanted.instances(unit.name, unit.revision) or unit.instances
        place = place_of(unit, place, names, self.observed.nodes)
        if unit.name == self.moves.stays:
            place = self.moves.mark(place)
        if unit.name == self.moves.moving and revision == self.wanted.target.name:
            words = f"{unit.name}: {MOVES}, {self.moves.why}"
            why = NoPlace(PlacedReason.PLACING, words)
            return Whereabouts(place, why, given_up=True)
        patience = _patience_seconds(self.wanted.deployment, place, queue.lacks)
        if (stuck := unit.stuck_since(patience, unit.name in self.needed)) is not None:
            left = stuck + patience - self.observed.now
            return self._at_stuck(unit, place, queue, left, patience)
        if place.open and not queue.lacks:
            return Whereabouts(place, self._comes(unit))
        waits = displaced(unit, self.observed.nodes) or queue.waits or queue.unbound
        if not unit.bound(names):
            waits = waits or self._tried_in(unit.name, place)
        return Whereabouts(place, waits)

    def _at_stuck(
        self, unit: LiveUnit, place: Placement, queue: Standing, left: float, patience: float
    ) -> Whereabouts:
        """Pods of it find no node; `left` seconds until it is given up, of its `patience`."""
        refusals = self.refusals.get(unit.name, NEVER)
        why = self._comes(unit) if place.open else _unschedulable(unit, place, refusals)
        if queue.lacks and queue.unbound is not None:
            why = queue.unbound
        if left > 0:
            return Whereabouts(place, why, again_seconds=left)
        if place.open or queue.lacks:
            known = self.attempts.get(unit.name, NONE)
            tried = failed(unit, place, self.observed, known, queue.lacks)
            return Whereabouts(place, why, given_up=True, failed=tried)
        said, now = _waiting_pod(unit).unschedulable, self.observed.now
        refused = refusals.once_more(place.names[0], said, now, patience)
        return Whereabouts(place, why, given_up=True, refused=refused)

    def at_unplaced(self, name: str, revision: Revision, queue: Standing, new: bool) -> Whereabouts:
        """`new`: nothing of it exists."""
        if new and queue.waits is not None:
            return Whereabouts(waits=queue.waits, again_seconds=queue.again_seconds)
        if new and any(pod.unit == name and _ends(pod) for pod in self.observed.pods):
            return Whereabouts(waits=NoPlace(PlacedReason.PLACING, ENDING))
        deployment, now = self.wanted.deployment, self.observed.now
        waits_since = max(_waiting_since(self.observed), queue.since)
        refusals = self.refusals.get(name, NEVER)
        request = replace(
            self._request(name, revision, queue.admission),
            waiting_since=waits_since,
            refused=refusals.avoided,
            elsewhere=refusals.retry > now,
        )
        answer = self.answers.placements.get(name)
        if isinstance(answer, Placement):
            place = self.moves.mark(answer)
            waits = queue.unbound or self._tried_in(name, place)
            return Whereabouts(place, waits, request=request)
        if not isinstance(answer, NoPlace):
            return Whereabouts(waits=NoPlace(PlacedReason.PLACING, PLACING), request=request)
        tried = self.attempts.get(name, NONE)
        if provisioned(deployment, answer, tried, now):
            return Whereabouts(open_place(deployment, tried), queue.told(answer), request=request)
        timers = [refusals.retry - now, 0.0 if tried.lacked else tried.retry - now]
        again = min((left for left in timers if left > 0), default=None)
        if timers[0] > 0:
            why = queue.told(refusals.paused(name))
        elif timers[1] > 0:
            why = pauses(deployment, name, tried, answer.message)
        else:
            why = queue.told(answer)
        return Whereabouts(waits=why, request=request, again_seconds=again)

    def _request(self, name: str, revision: Revision, admission: Admission | None) -> UnitRequest:
        deployment, priorities = self.wanted.deployment, self.observed.features.priorities
        if admission is not None:
            return unit_request(deployment, name, revision, 0.0, priorities, admission)
        if revision.name not in self.alike:
            made = unit_request(deployment, name, revision, 0.0, priorities)
            self.alike[revision.name] = made
        return for_unit(self.alike[revision.name], deployment, name, revision)

    def _tried_in(self, name: str, place: Placement) -> NoPlace | None:
        """Until its pods have nodes; without a refusal before it is just placed."""
        refusals = self.refusals.get(name, NEVER)
        return refusals.tried_in(name, place) if refusals.count else None

    def _comes(self, unit: LiveUnit) -> NoPlace:
        return comes(self.wanted.deployment, unit, self.observed)


def provisioned(
    deployment: DistServeDeployment, answer: NoPlace, tried: Attempts, now: float
) -> bool:
    """Whether it is made without a place, for nodes to come."""
    return answer.reason not in HELD and may_provision(deployment, tried, now)


def _patience_seconds(deployment: DistServeDeployment, place: Placement, lacks: str) -> float:
    topology = deployment.spec.topology
    nodes_come = place.open and not lacks
    return topology.provision_seconds if nodes_come else parse_duration(topology.gang_timeout)


def _ends(pod: Pod) -> bool:
    """Its StatefulSet is gone, and the garbage collector has not come to it yet: until then it
    would seem to hold the unit where it is."""
    return bool(pod.controller) and not pod.terminating


def _unschedulable(unit: LiveUnit, place: Placement, before: Refusals) -> NoPlace:
    pod = _waiting_pod(unit)
    return NoPlace(
        PlacedReason.UNSCHEDULABLE,
        f"{unit.name}: the scheduler finds no node in {place.names[0]} for pod {pod.name}: "
        f"{pod.unschedulable}; after topology.gangTimeout the unit is placed anew"
        f"{f'. {CURE}' if before.count else ''}",
    )


def _waiting_pod(unit: LiveUnit) -> Pod:
    """The one that says why."""
    waiting = (pod for pod in unit.pods if pod.unschedulable)
    return min(waiting, key=lambda pod: pod.unschedulable.startswith(gangs.WAITS_FOR_OTHERS))


def _waiting_since(observed: Observed) -> float:
    """A unit waits since the condition says so; as long as it does not, since now."""
    conditions: list[Object] = (observed.document.get("status") or {}).get("conditions") or []
    placed = find(conditions, Condition.PLACED)
    waits = placed is not None and placed["status"] != "True"
    return seconds(placed["lastTransitionTime"]) if placed is not None and waits else observed.now
