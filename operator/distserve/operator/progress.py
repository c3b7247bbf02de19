"""`Progressing`: where a rollout stands, and when it is said to be stuck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from distserve.api.conditions import Condition, ProgressingReason
from distserve.api.durations import parse_duration
from distserve.api.operations import Rollout
from distserve.operator.conditions import Fact, find, seconds
from distserve.operator.health import LiveUnit
from distserve.operator.model import Object, Observed
from distserve.operator.rollout import Rules, Step


class Progress(NamedTuple):
    fact: Fact
    again_seconds: float | None
    """Until the deadline is over."""


def progress_of(
    observed: Observed,
    spec: Rollout,
    rules: Rules,
    step: Step,
    live: Mapping[str, LiveUnit],
    no_room: str,
) -> Progress:
    """`no_room`: why an extra unit has no place."""
    conditions = (observed.document.get("status") or {}).get("conditions") or []
    before = find(conditions, Condition.PROGRESSING)
    missing = [u for u in range(rules.units) if f"u{u}" not in live]
    surplus = [u for u in live.values() if u.number not in step.revisions]
    began = before is not None and (
        before["status"] == "True" or before["reason"] == ProgressingReason.DEADLINE_EXCEEDED
    )
    moves = step.rolling or missing or surplus or (began and step.updated < rules.units)
    if not moves:
        message = f"all {rules.units} units have revision {rules.target}"
        return Progress(Fact(False, ProgressingReason.UP_TO_DATE, message), None)
    if step.rolling and rules.paused:
        message = "rollout.paused holds the rollout: set it to false to go on"
        return Progress(Fact(False, ProgressingReason.PAUSED, message), None)
    if step.full and not rules.one_when_full:
        message = (
            f"an extra unit has no room: {no_room}; make room, or set rollout.whenFull: ReplaceOne"
        )
        return Progress(Fact(False, ProgressingReason.NO_ROOM_FOR_SURGE, message), None)

    deadline = parse_duration(spec.progress_deadline)
    last = _last_step(observed, before, live, rules)
    if before is not None and before["status"] == "True":
        last = max(last, seconds(before["lastTransitionTime"]))
    left = last + deadline - observed.now
    if left <= 0:
        message = (
            f"no step for {spec.progress_deadline}, {_step(step, rules)}: see Ready and the pods "
            "that are not ready, then change the spec or undo the change"
        )
        return Progress(Fact(False, ProgressingReason.DEADLINE_EXCEEDED, message), None)
    return Progress(Fact(True, _reason(step, before), _step(step, rules)), left)


def _last_step(
    observed: Observed,
    before: Object | None,
    live: Mapping[str, LiveUnit],
    rules: Rules,
) -> float:
    """Each step makes pods. Once stuck, only a new pod is progress."""
    pods = [p for unit in live.values() for p in unit.pods if p.revision == rules.target]
    stuck = before is not None and before["reason"] == ProgressingReason.DEADLINE_EXCEEDED
    begun = observed.now if before is None or before["status"] != "True" else 0.0
    return max([p.created for p in pods] + [0.0 if stuck else begun])


def _step(step: Step, rules: Rules) -> str:
    extra = f", {len(step.surge)} extra" if step.surge else ""
    return f"{step.updated} of {rules.units} units are ready with revision {rules.target}{extra}"


def _reason(step: Step, before: Object | None) -> ProgressingReason:
    """The end of a start or of a rollout, whose extra units still go, is a part of it."""
    if step.rolling:
        return ProgressingReason.ROLLING_OUT
    if before is None:
        return ProgressingReason.STARTING
    moved = before["status"] == "True"
    return ProgressingReason(before["reason"]) if moved else ProgressingReason.SCALING
