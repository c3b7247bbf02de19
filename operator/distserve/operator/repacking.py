"""Units that are moved to a better domain, since the annotation `distserve.io/repack` asks for it.

each unit in turn: is there a better place? --no---> its place carries the annotation's value
                               | yes, and room there is kept
                               v
by the rollout's rules: an extra unit comes, this one goes whole and is made in the better
place, the extra one goes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from distserve.api import labels
from distserve.operator.health import LiveUnit
from distserve.operator.model import Answers, BetterQuestion, Observed, Placement
from distserve.operator.queues import standing
from distserve.operator.requests import unit_request
from distserve.operator.rollout import Rules, UnitState
from distserve.operator.wanted import Wanted

ELSEWHERE: Final = "~"
"""In the place of a revision: of the target, but not where it should be."""


@dataclass(frozen=True)
class Repacking:
    value: str = ""
    """The annotation's, which new places carry."""
    question: BetterQuestion | None = None
    stays: str = ""
    """The unit that lies best where it is."""
    moving: str = ""
    """The unit that is to go, when the rollout's rules let it."""
    lasts: bool = False
    """An extra unit stays until the moved one is back."""

    def states(self, states: Mapping[int, UnitState]) -> dict[int, UnitState]:
        return {
            number: replace(state, revision=ELSEWHERE) if f"u{number}" == self.moving else state
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
    base = range(rules.units)
    if any(number not in states for number in base):
        return Repacking(value, lasts=_extra(states, rules) and bool(value) and not rules.paused)
    calm = all(states[n].ready and states[n].revision == rules.target for n in base)
    if not value or rules.paused or not calm:
        lasts = _extra(states, rules) and bool(value) and not rules.paused and not calm
        return Repacking(value, BetterQuestion(None) if calm else None, lasts=lasts)
    for number in base:
        name = f"u{number}"
        place = live[name].place
        if place is None or place.open or place.repack == value:
            continue
        queue = standing(observed, wanted, name, wanted.target, live[name])
        request = unit_request(
            wanted.deployment,
            name,
            wanted.target,
            observed.now,
            observed.features.priorities,
            queue.admission,
        )
        question = BetterQuestion(request)
        if name not in answers.better:
            return Repacking(value, question)
        if answers.better[name] is None:
            return Repacking(value, question, stays=name)
        return Repacking(value, question, moving=name, lasts=True)
    return Repacking(value, BetterQuestion(None))


def _extra(states: Mapping[int, UnitState], rules: Rules) -> bool:
    return any(number >= rules.units for number in states)
