"""All units of a deployment: where they are or go, who waits for a place, and who is taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distserve.api.conditions import PlacedReason
from distserve.operator.conditions import Fact
from distserve.operator.health import LiveUnit, needed_together
from distserve.operator.model import Answers, NoPlace, Observed, Placement, PlacementQuestion
from distserve.operator.provisioning import Attempts, attempts_of, still
from distserve.operator.queues import refused_units, standing
from distserve.operator.refusals import Refusals, refusals_of
from distserve.operator.repacking import Repacking
from distserve.operator.rollout import Step
from distserve.operator.standings import NO_QUEUE, Standing
from distserve.operator.wanted import Wanted
from distserve.operator.whereabouts import ENDING, NONE, Look, Whereabouts, provisioned


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
    refusals: Mapping[str, Refusals] = field(default_factory=dict)
    """Of units whose pods found no nodes where they were put."""
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
    return refused_units(observed) | frozenset(
        int(unit[1:])
        for unit, found in answers.placements.items()
        if isinstance(found, NoPlace)
        and found.reason != PlacedReason.PLACING  # A fault: nobody knows yet.
        and not provisioned(wanted.deployment, found, attempts.get(unit, NONE), observed.now)
    )


def find_places(
    observed: Observed,
    answers: Answers,
    wanted: Wanted,
    step: Step,
    live: Mapping[str, LiveUnit],
    moves: Repacking,
) -> Places:
    attempts = attempts_of(observed)
    needed = needed_together(live.values())
    revisions = {f"u{number}": revision for number, revision in step.revisions.items()}
    has = {name: unit.revision for name, unit in live.items() if unit.revision}
    refusals = refusals_of(observed, wanted, revisions | has)
    look = Look(observed, answers, wanted, moves, attempts, refusals, needed)
    standings: dict[str, Standing] = {}
    units: dict[str, Whereabouts] = {}
    for number, revision in sorted(step.revisions.items()):
        name = f"u{number}"
        unit, made = live.get(name), wanted.revision(revision)
        if made is not None:
            standings[name] = standing(observed, wanted, name, made, unit)
        queue = standings.get(name, NO_QUEUE)
        if unit is not None and unit.ending:
            units[name] = Whereabouts(waits=NoPlace(PlacedReason.PLACING, ENDING))
        elif unit is not None and unit.place is not None:
            units[name] = look.at_placed(unit, unit.place, revision, queue)
        elif made is not None:
            units[name] = look.at_unplaced(name, made, queue, new=unit is None)
    waiting = {name: one.waits for name, one in units.items() if one.waits is not None}
    failed = {name: one.failed for name, one in units.items() if one.failed is not None}
    refused = {name: one.refused for name, one in units.items() if one.refused is not None}
    timers = [one.again_seconds for one in units.values() if one.again_seconds is not None]
    return Places(
        {name: one.place for name, one in units.items() if one.place is not None},
        waiting,
        frozenset(name for name, one in units.items() if one.given_up),
        PlacementQuestion(tuple(one.request for one in units.values() if one.request is not None)),
        min(timers, default=None),
        still({**attempts, **failed}, waiting),
        {u: one for u, one in {**refusals, **refused}.items() if u in waiting and one.count},
        standings,
    )
