"""The new `.status` and the events of its transitions, for each way that a decision may end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from distserve.api.conditions import AcceptedReason, Condition, PlacedReason, ReadyReason
from distserve.api.strategies import Role
from distserve.diagnosis.facts import refused_pods
from distserve.operator.acceptance import Refusal
from distserve.operator.conditions import Fact, Facts, find, merged, transitions
from distserve.operator.course import Course
from distserve.operator.healing import node_troubles
from distserve.operator.health import LiveUnit
from distserve.operator.model import (
    Answers,
    BetterQuestion,
    Decision,
    Event,
    Object,
    Observed,
    PlacementQuestion,
    Pod,
)
from distserve.operator.moved import moved_status
from distserve.operator.not_taken import SUPPORTED, accepted
from distserve.operator.plans import Numbers
from distserve.operator.provisioning import attempts_status
from distserve.operator.refusals import refusals_status
from distserve.operator.status import (
    Asked,
    Overview,
    Roles,
    asked_by,
    failed_fact,
    health_facts,
    ready_fact,
    roles_of,
    same_status,
    serves,
)
from distserve.operator.wanted import stored_revisions
from distserve.resources import naming, processes
from distserve.resources.planned import with_units
from distserve.resources.revisions import Revision, with_numbers

REFUSED_AGAIN_SECONDS: Final = 60.0
"""Until the API server is asked again about what it would not take: a policy or a quota may have
changed, or somebody else's object be gone, which nobody tells."""


def _numbers(course: Course) -> Revision:
    """That are made: while the rollout is paused those of the revision that units have."""
    wanted, rules = course.wanted, course.rules
    held = wanted.revision(rules.current) if rules.paused else None
    if held is not None and held.templates.keys() == wanted.deployment.spec.roles.keys():
        return held
    return wanted.revision(rules.target) or wanted.target


def report(
    observed: Observed, answers: Answers, course: Course
) -> tuple[Object | None, tuple[Event, ...]]:
    deployment, rules = course.wanted.deployment, course.rules
    view = Overview(
        asked_by(with_numbers(deployment, _numbers(course)), course.wanted.gateways),
        course.live,
        _gateways(observed),
        rules.target,
        frozenset(f"u{number}" for number, state in course.states.items() if state.ready),
        node_troubles(observed),
        roles_of(course.live, [*course.wanted.stored.values(), course.wanted.target]),
        course.fabric.apart,
        _refused(observed),
    )
    status = _status(observed)
    before = find(status.get("conditions") or [], Condition.FAILED)
    if (status.get("revision") or {}).get("target") != rules.target:
        before = None  # A plan's revision comes after the edit that asked for the plan.
    target = course.wanted.target
    failed = failed_fact(observed.pods, target, deployment, before, _generation(observed))
    placed = course.places.fact(rules.units)
    missing = course.fabric.missing
    if not placed.holds and not course.fabric.apart:
        missing = Fact(False, ReadyReason.NOT_PLACED, placed.message)
    facts: dict[Condition, Fact] = {
        Condition.ACCEPTED: accepted(observed, answers),
        Condition.PLANNED: course.numbers.fact,
        Condition.PLACED: placed,
        **course.fabric.facts,
        Condition.PROGRESSING: course.progress.fact,
        Condition.FAILED: failed,
        Condition.READY: ready_fact(view, deployment, failed, missing),
        **health_facts(view),
    }
    new: Object = {
        "roles": view.roles(),
        "units": [unit | course.fabric.status_of(unit["name"]) for unit in view.units()],
        "revision": {
            "current": rules.current if course.step.rolling else rules.target,
            "target": rules.target,
        },
        "url": naming.url(deployment),
        "replicas": view.ready_units,
        "selector": naming.scale_selector(deployment),
    }
    if any(processes.migrates(role) for role in deployment.spec.roles):
        new["migratorPlacement"] = deployment.spec.migrator_placement.value
    if course.places.attempts:
        new["provisioning"] = attempts_status(course.places.attempts)
    if course.places.refusals:
        new["refusals"] = refusals_status(course.places.refusals)
    if moved := moved_status(course.repacking.moved):
        new["repacking"] = moved
    if course.numbers.plan is not None:
        plan = with_units(course.numbers.plan, rules.units)
        new["plan"] = plan.model_dump(mode="json", exclude_none=True)
    return _finish(observed, new, facts)


def report_refusal(observed: Observed, live: Mapping[str, LiveUnit], refusal: Refusal) -> Decision:
    """Nothing is touched: what runs goes on, and is told as it is."""
    facts = {
        Condition.ACCEPTED: Fact(False, refusal.reason, refusal.message),
        Condition.READY: _as_before(observed, live, ReadyReason.NOT_ACCEPTED, refusal.message),
    }
    asked = refusal.reason == AcceptedReason.REFUSED_BY_API_SERVER
    decision = _only_conditions(observed, live, facts)
    return replace(decision, again_seconds=REFUSED_AGAIN_SECONDS if asked else None)


def report_without_numbers(
    observed: Observed, live: Mapping[str, LiveUnit], numbers: Numbers
) -> Decision:
    """There is no plan, nor one in use that would do meanwhile."""
    message = numbers.fact.message
    facts = {
        Condition.ACCEPTED: SUPPORTED,
        Condition.PLANNED: numbers.fact,
        Condition.PLACED: Fact(
            None, PlacedReason.NOT_PLANNED, "its size is not known before there is a plan"
        ),
        Condition.READY: _as_before(observed, live, ReadyReason.NOT_PLANNED, message),
    }
    decision = _only_conditions(observed, live, facts)
    questions = (*numbers.questions, *decision.questions)
    return replace(decision, questions=questions, again_seconds=numbers.again_seconds)


def _as_before(
    observed: Observed, live: Mapping[str, LiveUnit], reason: ReadyReason, message: str
) -> Fact:
    """Whether what an earlier spec made still serves."""
    if serves(live, _gateways(observed), _stored_roles(observed, live)):
        return Fact(True, ReadyReason.SERVING, f"what ran before serves on; {message}")
    return Fact(False, reason, message)


def _only_conditions(observed: Observed, live: Mapping[str, LiveUnit], facts: Facts) -> Decision:
    old = _status(observed)
    new = {k: v for k, v in old.items() if k not in ("conditions", "observedGeneration")}
    if live:
        view = _view_as_before(observed, live)
        new |= {"roles": view.roles(), "units": view.units(), "replicas": view.ready_units}
        facts = {**health_facts(view), **facts}
    status, events = _finish(observed, new, facts, keep=True)
    nothing = PlacementQuestion(()), BetterQuestion(None)  # No room is kept for what is not done.
    needed = _stored_roles(observed, live)
    standing = {
        unit.name: _stands(unit)
        and needed.get(unit.revision, frozenset()) <= {i.role for i in unit.instances.values()}
        for unit in live.values()
        if not unit.ending
    }
    return Decision(nothing, status=status, events=events, standing=standing)


def _view_as_before(observed: Observed, live: Mapping[str, LiveUnit]) -> Overview:
    """What is there of what an earlier spec asked: its objects tell, and what was told of it."""
    there = Counter(i.role for unit in live.values() for i in unit.instances.values())
    told = {one["name"]: one["desired"] for one in _status(observed).get("roles") or ()}
    roles = [role.value for role in Role if role.value in told or role.value in there]
    gateways = sum(
        found["spec"].get("replicas", 1)
        for ref, found in observed.children.items()
        if ref.kind == "Deployment"
    )
    return Overview(
        Asked({role: told.get(role, there[role]) for role in roles}, len(live), gateways),
        live,
        _gateways(observed),
        "",
        frozenset(unit.name for unit in live.values() if _stands(unit)),
        node_troubles(observed),
        _stored_roles(observed, live),
        refused=_refused(observed),
    )


def _stored_roles(observed: Observed, live: Mapping[str, LiveUnit]) -> Roles:
    return roles_of(live, (revision for _, revision in stored_revisions(observed)))


def _stands(unit: LiveUnit) -> bool:
    """Whether all that was made of it is ready."""
    return unit.ready(frozenset(unit.instances))


def _finish(
    observed: Observed, new: Object, facts: Facts, keep: bool = False
) -> tuple[Object | None, tuple[Event, ...]]:
    old, generation = _status(observed), _generation(observed)
    before = old.get("conditions") or []
    conditions = merged(before, facts, generation, observed.now, keep)
    status = {"observedGeneration": generation, "conditions": conditions, **new}
    if same_status(old, status):
        return None, ()
    return status, transitions(before, conditions)


def _gateways(observed: Observed) -> tuple[Pod, ...]:
    return tuple(pod for pod in observed.pods if not pod.instance)


def _refused(observed: Observed) -> str:
    """Why gateways' pods are not made."""
    gateways = (live for ref, live in observed.children.items() if ref.kind == "Deployment")
    return next(filter(None, map(refused_pods, gateways)), "")


def _status(observed: Observed) -> Object:
    found: Object = observed.document.get("status") or {}
    return found


def _generation(observed: Observed) -> int:
    return int(observed.document["metadata"].get("generation", 0))
