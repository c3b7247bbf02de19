"""`Progressing`: where a rollout stands, and when it is said to be stuck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from distserve.api.conditions import Condition, ProgressingReason
from distserve.api.durations import parse_duration
from distserve.api.operations import Rollout
from distserve.operator.conditions import Fact, find, seconds
from distserve.operator.healing import node_troubles
from distserve.operator.health import LiveUnit
from distserve.operator.model import NoPlace, Object, Observed
from distserve.operator.rollout import Rules, Step
from distserve.operator.troubles import first_trouble, unit_state


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
    waiting: Mapping[str, NoPlace],
) -> Progress:
    """`waiting`: units without a place, and why."""
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
        no_room = "; ".join(why.message for why in waiting.values())
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
        why = _missing(observed, rules, step, live, waiting)
        message = (
            f"no step for {spec.progress_deadline}, {_step(step, rules)}{why}; change the spec "
            "or undo the change: what serves meanwhile is kept"
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


def _missing(
    observed: Observed,
    rules: Rules,
    step: Step,
    live: Mapping[str, LiveUnit],
    waiting: Mapping[str, NoPlace],
) -> str:
    """The unit that the rollout waits for and what keeps it, best one whose pods say so."""
    nodes, first = node_troubles(observed), ""
    for number in _awaited(step, rules, live):
        name = f"u{number}"
        named = f": unit {name}{' (extra)' if number in step.surge else ''}"
        if name not in live:
            first = first or (f"{named} has no place: see Placed" if name in waiting else "")
            continue
        pods = [pod for pod in live[name].pods if pod.revision == rules.target]
        if words := first_trouble(pods, nodes):
            return f"{named}, {words}"
        first = first or f"{named}, {unit_state(live[name], rules.target)}"
    return first


def _awaited(step: Step, rules: Rules, live: Mapping[str, LiveUnit]) -> Iterator[int]:
    """Units that are to be ready with the target and are not: extra ones first, since the others
    wait for them."""
    for number in sorted(step.revisions, key=lambda unit: (unit not in step.surge, unit)):
        unit = live.get(f"u{number}")
        if step.revisions[number] == rules.target and not (
            unit is not None
            and unit.revision == rules.target
            and unit.ready(frozenset(unit.instances))
        ):
            yield number


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
