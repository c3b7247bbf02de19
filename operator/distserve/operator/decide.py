"""What is to be done about a deployment: a pure function, called by the reconciler and by tests.

accept -> plan -> revision -> rollout's next step -> place -> objects -> differences -> status
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from distserve.api.conditions import AcceptedReason
from distserve.operator.acceptance import Refusal, accept, refused_by_numbers
from distserve.operator.course import Course
from distserve.operator.fabric import fabric_of
from distserve.operator.healing import heal, healed
from distserve.operator.health import LiveUnit, live_units, serve_together
from distserve.operator.keys import KeyState, key_events, key_state, key_writes
from distserve.operator.model import (
    Answers,
    Decision,
    DryRunQuestion,
    Object,
    Observed,
    Ref,
)
from distserve.operator.not_taken import not_taken
from distserve.operator.places import Places, find_places, units_without_room
from distserve.operator.plans import PLANNED_FOR, Numbers, numbers_of
from distserve.operator.progress import progress_of
from distserve.operator.repacking import Repacking, repacking
from distserve.operator.report import (
    REFUSED_AGAIN_SECONDS,
    report,
    report_refusal,
    report_without_numbers,
)
from distserve.operator.rollout import Rules, Step, UnitState, next_step, rules_of
from distserve.operator.wanted import (
    Wanted,
    autoscaled_gateways,
    named,
    standing_instances,
    stored_revisions,
)
from distserve.operator.worlds import rejoined
from distserve.operator.writes import is_made_anew, writes
from distserve.resources.errors import RenderError
from distserve.resources.revisions import Revision, make_revision
from distserve.resources.settings import RenderSettings


def fresh_key() -> str:
    return secrets.token_hex(32)


@dataclass(frozen=True)
class DecideSettings:
    render: RenderSettings
    """Its `key` is not used: each deployment gets one of its own."""
    engine_check: bool = True
    """Refuse what this engine build cannot run. False where only objects matter."""
    feature_gates: frozenset[str] = frozenset()
    """Of the cluster, that are on although they are off by default: they cannot be seen."""
    new_key: Callable[[], str] = fresh_key
    """Makes the key of a new deployment."""
    history: int = 10
    """ControllerRevisions that are kept besides those in use."""


def decide(observed: Observed, answers: Answers, settings: DecideSettings) -> Decision:
    """Pure, but for `settings.new_key`."""
    if "deletionTimestamp" in observed.document["metadata"]:
        # Owner references clean up; what a lost node holds would never end. Nothing is made again.
        return replace(healed(Decision(), heal(observed, answers)), events=())
    live = live_units(observed)
    try:
        decision = _decide(observed, answers, settings, live)
    except Exception as fault:
        decision = _tripped(observed, live, fault)
    return rejoined(healed(decision, heal(observed, answers)), live)


def _decide(
    observed: Observed,
    answers: Answers,
    settings: DecideSettings,
    live: Mapping[str, LiveUnit],
) -> Decision:
    accepted = accept(
        observed.document,
        observed.features,
        engine_check=settings.engine_check,
        gates=settings.feature_gates,
    )
    if isinstance(accepted, Refusal):
        return report_refusal(observed, live, accepted)
    stored = stored_revisions(observed)
    render = replace(settings.render, served=observed.features.served)
    try:
        numbers = numbers_of(accepted, observed, answers, stored, render)
    except RenderError as error:
        return report_refusal(observed, live, _unrenderable(error))
    if numbers.deployment is None:
        return report_without_numbers(observed, live, numbers)
    refused = refused_by_numbers(numbers.deployment, engine_check=settings.engine_check)
    if refused is not None:
        return report_refusal(observed, live, refused)
    try:
        key = key_state(observed, answers, numbers.deployment)
        wanted = _wanted(numbers, observed, render, stored, key.generation, live)
    except RenderError as error:
        return report_refusal(observed, live, _unrenderable(error))
    if wanted.target not in (revision for _, revision in stored):
        words = answers.refusals.get(wanted.target.digest)
        if words is None:
            dry_run = DryRunQuestion(wanted.target.digest, _asked_about(wanted, observed))
            # The place first: units that come together are gathered sooner than calls are made.
            ahead = _ahead(observed, answers, wanted, live)
            return Decision(questions=(ahead.places.question, dry_run))
        if words:
            told = not_taken(observed, answers, words)
            return report_refusal(observed, live, Refusal(told.reason, told.message))
    return _steer(observed, answers, settings, wanted, numbers, live, key)


def _unrenderable(error: RenderError) -> Refusal:
    return Refusal(AcceptedReason.INVALID_POD_TEMPLATE, str(error))


def _asked_about(wanted: Wanted, observed: Observed) -> tuple[Object, ...]:
    """Without what is made anew before: changing it would be refused."""
    live = observed.children
    return tuple(
        one
        for one in wanted.sample()
        if (ref := Ref.of(one)) not in live or not is_made_anew(one, live[ref])
    )


def _tripped(observed: Observed, live: Mapping[str, LiveUnit], fault: Exception) -> Decision:
    """A fault of ours is told where users look, and what runs is kept alive all the same."""
    words = " ".join(f"{type(fault).__name__}: {fault}".split())
    refusal = Refusal(
        AcceptedReason.OPERATOR_FAULT,
        f"the operator trips over this deployment: {words}. That is its fault: please report it "
        "with the traceback from its log. What runs goes on, and it is tried again",
    )
    try:
        told = report_refusal(observed, live, refusal)
    except Exception as second:  # It has the first one as its context.
        return Decision(fault=second)
    # Asking makes no sense, and its answers would go back and forth with those of the next try.
    return replace(told, questions=(), fault=fault)


class Ahead(NamedTuple):
    states: Mapping[int, UnitState]
    rules: Rules
    step: Step
    places: Places
    repacking: Repacking


def _ahead(
    observed: Observed, answers: Answers, wanted: Wanted, live: Mapping[str, LiveUnit]
) -> Ahead:
    together = serve_together(live.values())
    states = {unit.number: _state(unit, wanted, together) for unit in live.values()}
    rules = _rules(observed, wanted, states)
    moves = repacking(observed, answers, wanted, live, states, rules)
    no_room = units_without_room(observed, answers, wanted)
    step = next_step(moves.states(states), moves.rules(rules), no_room)
    if wanted.holds_numbers:
        step = replace(step, rolling=True)  # Of the same name, so that no unit shows it.
    places = find_places(observed, answers, wanted, step, live, moves)
    return Ahead(states, rules, step, places, moves)


def _steer(
    observed: Observed,
    answers: Answers,
    settings: DecideSettings,
    wanted: Wanted,
    numbers: Numbers,
    live: Mapping[str, LiveUnit],
    key: KeyState,
) -> Decision:
    """What is accepted and planned: the next step towards it."""
    states, rules, step, places, moves = _ahead(observed, answers, wanted, live)
    rollout = wanted.deployment.spec.rollout
    progress = progress_of(observed, rollout, rules, step, live, places.waiting)
    fabric = fabric_of(observed, answers, wanted.deployment, live, wanted.key_secret)
    course = Course(wanted, numbers, live, states, rules, step, places, progress, fabric, moves)
    status, events = report(observed, answers, course)
    asked = (*numbers.questions, places.question, *moves.questions, key.question, fabric.question)
    timers = (
        numbers.again_seconds,
        places.again_seconds,
        progress.again_seconds,
        key.again_seconds,
        REFUSED_AGAIN_SECONDS if answers.foreign else None,
    )
    return Decision(
        questions=tuple(one for one in asked if one is not None),
        actions=(
            *key_writes(observed, wanted.deployment, key, settings.new_key),
            *writes(observed, answers.foreign, course, settings.history),
            *fabric.gates,
        ),
        status=status,
        events=(*key_events(wanted.deployment, key, answers.foreign), *moves.events, *events),
        again_seconds=min((s for s in timers if s is not None), default=None),
        whole={f"u{n}": n in states and states[n].ready for n in sorted(step.revisions)},
    )


def _wanted(
    numbers: Numbers,
    observed: Observed,
    render: RenderSettings,
    stored: Sequence[tuple[Object, Revision]],
    key_generation: int,
    live: Mapping[str, LiveUnit],
) -> Wanted:
    """With the stored revision while there is one for this spec: templates are not made twice."""
    deployment = numbers.deployment
    assert deployment is not None
    known = [revision for _, revision in stored]
    target = numbers.fixed or make_revision(deployment, render, known, numbers.plan)
    notes = {PLANNED_FOR: numbers.planned_for} if numbers.plan else {}
    gateways = autoscaled_gateways(deployment, observed)
    has = standing_instances(deployment, live.values())
    by_name = named(deployment, [*known, target], has)
    return Wanted(deployment, render, target, by_name, notes, key_generation, gateways)


def _state(unit: LiveUnit, wanted: Wanted, together: Collection[str]) -> UnitState:
    """`together`: revisions whose units serve only with each other's instances."""
    names = wanted.instances(unit.name, unit.revision)
    expected = unit.instances if names is None else names
    down = unit.down and unit.revision not in together
    return UnitState(unit.revision, unit.ready(frozenset(expected)), down)


def _rules(observed: Observed, wanted: Wanted, states: Mapping[int, UnitState]) -> Rules:
    status = observed.document.get("status") or {}
    current = (status.get("revision") or {}).get("current") or ""
    standing = [state.revision for state in states.values()]
    return rules_of(wanted.deployment.spec, wanted.target.name, current, standing)
