"""Units that are moved to a better domain: asked by the annotation `distserve.io/repack`, or idle.

each unit in turn: is there a better place? --no---> its place carries the annotation's value
                               | yes, and room there is kept
                               v
by the rollout's rules: an extra unit comes, this one goes whole and is made in the better
place, the extra one goes

With `topology.repack: WhenIdle` units are asked about that had no request for some time. Such a
move is written into the status before anything is done: it goes on if requests come meanwhile, and
never leads back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from distserve.api import labels
from distserve.api.strategies import Role
from distserve.api.topology import Repack
from distserve.operator.fabric import members_of
from distserve.operator.health import LiveUnit
from distserve.operator.idle import IdleQuestion
from distserve.operator.model import (
    Answers,
    BetterQuestion,
    Event,
    Observed,
    Pending,
    Placement,
    Question,
)
from distserve.operator.moved import MOST_LEFT, Moved, moved_of
from distserve.operator.pairs import Member
from distserve.operator.queues import standing
from distserve.operator.requests import unit_request
from distserve.operator.rollout import Rules, UnitState
from distserve.operator.wanted import Wanted
from distserve.placement.requests import UnitRequest

ELSEWHERE: Final = "~"
"""In the place of a revision: of the target, but not where it should be."""


@dataclass(frozen=True)
class Repacking:
    value: str = ""
    """The annotation's, which new places carry."""
    questions: tuple[Question, ...] = ()
    stays: str = ""
    """The unit that lies best where it is."""
    moving: str = ""
    """The unit that is to go, when the rollout's rules let it."""
    held: str = ""
    """A unit of which it is not known yet whether it is still to go: extra units stay."""
    lasts: bool = False
    """An extra unit stays until the moved one is back."""
    why: str = ""
    """It is moved: the end of a sentence."""
    moved: Mapping[str, Moved] = field(default_factory=dict)
    """What is to be remembered of units that were idle."""
    events: tuple[Event, ...] = ()

    def states(self, states: Mapping[int, UnitState]) -> dict[int, UnitState]:
        elsewhere = {self.moving, self.held}
        return {
            number: replace(state, revision=ELSEWHERE) if f"u{number}" in elsewhere else state
            for number, state in states.items()
        }

    def rules(self, rules: Rules) -> Rules:
        return replace(rules, current=ELSEWHERE) if self.lasts else rules

    def mark(self, place: Placement) -> Placement:
        """Placed, or looked at, since it was asked for."""
        return replace(place, repack=self.value)


def repacking(
    observed: Observed,
    answers: Answers,
    wanted: Wanted,
    live: Mapping[str, LiveUnit],
    states: Mapping[int, UnitState],
    rules: Rules,
) -> Repacking:
    """One unit at a time, and only while all others serve with the target revision."""
    metadata = observed.document["metadata"]
    value = (metadata.get("annotations") or {}).get(labels.REPACK, "")
    when_idle = wanted.deployment.spec.topology.repack == Repack.WHEN_IDLE
    moved = _still(moved_of(observed, rules.units), live, states, rules) if when_idle else {}
    base = range(rules.units)
    here = all(number in states for number in base)
    calm = here and all(states[n].ready and states[n].revision == rules.target for n in base)
    asked = (bool(value) or when_idle) and not rules.paused
    if not asked or not calm:
        lasts = _extra(states, rules) and asked
        questions = (BetterQuestion(None),) if calm else ()
        return Repacking(value, questions, lasts=lasts, moved=moved)
    look = _Look(observed, answers, wanted, live, rules, Repacking(value, moved=moved))
    extra = _extra(states, rules)
    placed = [name for name in map("u{}".format, base) if _is_placed(live[name])]
    for name in placed:
        place = live[name].place
        if value and place is not None and place.repack != value:
            return look.as_asked(name, extra)
    for name in placed:
        if name in moved and moved[name].leaving:
            return look.on_its_way(name, extra)
    return look.when_idle(placed) if when_idle else Repacking(value, (BetterQuestion(None),))


@dataclass(frozen=True)
class _Look:
    """At a deployment all of whose units are ready."""

    observed: Observed
    answers: Answers
    wanted: Wanted
    live: Mapping[str, LiveUnit]
    rules: Rules
    plain: Repacking
    """If nothing is moved."""

    def as_asked(self, name: str, extra: bool) -> Repacking:
        """By the annotation, of a unit that was not looked at for its value."""
        found = replace(self.plain, questions=(self._better_question(name),))
        better = self.answers.better.get(name, Pending())
        if isinstance(better, Pending):
            return _held(found, name, extra)
        if better is None:
            return replace(found, stays=name)
        why = "as the annotation distserve.io/repack asks"
        return replace(found, moving=name, lasts=True, why=why)

    def on_its_way(self, name: str, extra: bool) -> Repacking:
        """Begun when it was idle."""
        found = replace(self.plain, questions=(self._better_question(name),))
        better = self.answers.better.get(name, Pending())
        if isinstance(better, Pending):
            return _held(found, name, extra)
        if better is None:
            moved = self.plain.moved
            return replace(found, moved={**moved, name: moved[name].stayed})
        why = "since it was idle (topology.repack: WhenIdle)"
        return replace(found, moving=name, lasts=True, why=why)

    def when_idle(self, placed: list[str]) -> Repacking:
        if self._extra_first and self.wanted.deployment.spec.topology.has_quota:
            # It would have to ask its queue for quota, and might wait or take that of others.
            return replace(self.plain, questions=(BetterQuestion(None),))
        asked = self._idle_question(placed)
        idle, moved = self.answers.idle, self.plain.moved
        found = replace(self.plain, questions=(asked, BetterQuestion(None)))
        if idle is None or idle.unit not in asked.units:
            return found
        question = replace(self._better_question(idle.unit), beside=self._extra_request())
        found = replace(found, questions=(asked, question))
        better, place = self.answers.better.get(idle.unit), self.live[idle.unit].place
        if not isinstance(better, Placement) or place is None:
            return found
        begun = moved.get(idle.unit, Moved()).begun(place, better)
        event = Event("Normal", "Repacking", _words(idle.unit, idle.seconds, place, better))
        return replace(found, moved={**moved, idle.unit: begun}, events=(event,))

    def _better_question(self, name: str) -> BetterQuestion:
        """It is never to come back to what it left; where it is now is no better, of course."""
        known = self.plain.moved.get(name, Moved())
        return BetterQuestion(self._request(name), frozenset(known.left))

    def _extra_request(self) -> UnitRequest | None:
        """Of the unit that comes first, where one has to: nobody asked for this move, so it is not
        begun to wait for room."""
        return self._request(f"u{self.rules.units}") if self._extra_first else None

    @property
    def _extra_first(self) -> bool:
        return self.rules.surge > 0 and not self.rules.one_when_full

    def _request(self, name: str) -> UnitRequest:
        wanted, observed = self.wanted, self.observed
        queue = standing(observed, wanted, name, wanted.target, self.live.get(name))
        return unit_request(
            wanted.deployment,
            name,
            wanted.target,
            observed.now,
            observed.features.priorities,
            queue.admission,
        )

    def _idle_question(self, placed: list[str]) -> IdleQuestion:
        units = {
            name: members
            for name in placed
            if len(self.plain.moved.get(name, Moved()).left) < MOST_LEFT
            and (members := _members(self.live[name]))
        }
        after = self.wanted.deployment.spec.topology.repack_idle_seconds
        return IdleQuestion(self.wanted.key_secret, units, after)


def _still(
    moved: Mapping[str, Moved],
    live: Mapping[str, LiveUnit],
    states: Mapping[int, UnitState],
    rules: Rules,
) -> dict[str, Moved]:
    """A move is over when its unit went, and is dropped for another revision, or a pause."""
    other = rules.paused or any(state.revision != rules.target for state in states.values())
    found = {}
    for name, one in moved.items():
        place = live[name].place if name in live else None
        if one.leaving and (place is None or not one.leaves(place)):
            found[name] = one.gone
        else:
            found[name] = one.stayed if other else one
    return found


def _held(found: Repacking, name: str, extra: bool) -> Repacking:
    return replace(found, held=name, lasts=True) if extra else found


def _extra(states: Mapping[int, UnitState], rules: Rules) -> bool:
    return any(number >= rules.units for number in states)


def _is_placed(unit: LiveUnit) -> bool:
    return unit.place is not None and not unit.place.open


def _members(unit: LiveUnit) -> tuple[Member, ...]:
    """The first pod of each of its instances; empty while one cannot be asked."""
    found = tuple(member for role in Role for member in members_of(unit, role))
    return found if len(found) == len(unit.instances) else ()


def _words(unit: str, seconds: float, place: Placement, better: Placement) -> str:
    (here, _), (there, _) = place.names, better.names
    nodes = ", ".join(sorted({node for some in better.nodes.values() for node in some}))
    where = f"from {here} to {there}" if here != there else f"inside {there}"
    return (
        f"unit {unit} is moved {where}, to {nodes}: none of its engines had a request for "
        f"{seconds:.0f} s (topology.repack: WhenIdle), and there it lies nearer together or leaves "
        "larger gaps"
    )
