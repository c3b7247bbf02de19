"""Which revision each unit should have now: a rollout's next step, from facts and rules alone.

    surge   u0 old   u1 old              maxSurgeUnits 1: an extra unit of the target comes first
            u0 old   u1 old   u2 target
            u0 -> target      u2 target  each old unit is replaced where it is, one at a time
            u0 target u1 ->   u2 target
            u0 target u1 target          the extra unit goes

There is no state besides the units themselves, so every crash and every edit in between is only
another place to start from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distserve.api.deployment import Spec


@dataclass(frozen=True)
class UnitState:
    """A unit whose StatefulSets exist, or some of them."""

    revision: str
    """Empty while its StatefulSets are of several."""
    ready: bool
    """All its instances are there, of that revision, and ready."""
    down: bool
    """Nothing of it can serve for certain: to replace it costs nobody anything."""


@dataclass(frozen=True)
class Rules:
    units: int
    target: str
    current: str = ""
    """The revision that all units had last; empty where nobody knows."""
    surge: int = 1
    unavailable: int = 0
    one_when_full: bool = False
    """Without room for the extra unit, one unit is replaced where it is (whenFull ReplaceOne)."""
    paused: bool = False


def rules_of(spec: Spec, target: str, current: str, standing: Collection[str]) -> Rules:
    """`current`: of the status, empty where it was lost; `standing`: the revision of each unit
    that is there."""
    if not standing or (not current and all(revision == target for revision in standing)):
        current = target
    return Rules(
        units=spec.units,
        target=target,
        current=current,
        surge=spec.rollout.max_surge_units,
        unavailable=spec.rollout.max_unavailable_units,
        one_when_full=spec.rollout.when_full == "ReplaceOne",
        paused=spec.rollout.paused,
    )


@dataclass(frozen=True)
class Step:
    revisions: Mapping[int, str]
    """Unit -> the revision that it should have. Units that are not named are to be deleted."""
    rolling: bool
    """Not every unit has the target, or one of them is not ready with it yet."""
    updated: int
    """Units below `Rules.units` that are ready with the target."""
    surge: frozenset[int]
    """Units of these that are extra, and go when all others are done."""
    full: bool = False
    """An extra unit is needed and has no room."""


def next_step(
    states: Mapping[int, UnitState], rules: Rules, no_room: frozenset[int] = frozenset()
) -> Step:
    """`no_room`: units without StatefulSets for which there is no place."""
    base, target = range(rules.units), rules.target
    done = [i for i in base if i in states and _done(states[i], target)]
    moved = rules.current == target or len(done) == rules.units
    rolling = not moved or any(states[i].revision != target for i in base if i in states)
    down_goes = not rules.paused and not _unproven(states, rules)
    extra = _kept_extra(states, rules)
    if not rolling:
        # Of a rollout that was undone, or above a number that was lowered: until all others are
        # back, what serves stands in for them.
        extra = [u for u in extra if len(done) < rules.units and not states[u].down]

    wanted: dict[int, str] = {}
    old: list[int] = []
    for unit in [*base, *extra]:
        state = states.get(unit)
        if state is None:
            wanted[unit] = rules.current if rules.paused and rules.current else target
        elif state.revision in ("", target) or (state.down and down_goes):
            wanted[unit] = target
        else:
            wanted[unit] = state.revision
            if not rules.paused:
                old.append(unit)

    surge = _new_extra(states, rules, extra, old)
    wanted |= dict.fromkeys(surge, target)
    full = bool(no_room & set(surge))
    unavailable = max(rules.unavailable, int(full and rules.one_when_full))
    available = sum(state.ready for unit, state in states.items() if unit in wanted)
    spare = available - (rules.units - unavailable)
    # Without room for it an extra unit is waited for, unless one_when_full says otherwise.
    awaited = surge and not (full and rules.one_when_full)
    coming = awaited or any(not states[unit].ready for unit in extra)
    hopeless = spare < 0 and not coming and not _moving(states, rules)
    wanted |= dict.fromkeys(_going([(u, states[u].ready) for u in old], spare, hopeless), target)
    return Step(wanted, rolling, len(done), frozenset([*extra, *surge]), full)


def _going(old: list[tuple[int, bool]], spare: int, hopeless: bool) -> list[int]:
    """Units that are replaced now, of those with (unit, ready).

    A part of a unit that is not ready may serve, yet it is not counted on: it goes when enough
    others are ready, and where that will never be, one at a time.
    """
    partly = [unit for unit, ready in old if not ready]
    whole = [unit for unit, ready in old if ready]
    return [*partly[: len(partly) if spare >= 0 else int(hopeless)], *whole[: max(0, spare)]]


def _unproven(states: Mapping[int, UnitState], rules: Rules) -> bool:
    """Whether the target is being tried and was not ready anywhere: then a unit that is down for a
    moment had better come back as it was."""
    tried = [state.ready for state in states.values() if state.revision in ("", rules.target)]
    return bool(tried) and not any(tried)


def _done(state: UnitState, target: str) -> bool:
    return state.revision == target and state.ready


def _kept_extra(states: Mapping[int, UnitState], rules: Rules) -> list[int]:
    """Extra units that stay until the rollout is over: those of most use."""
    extra = [unit for unit in states if unit >= rules.units]
    extra.sort(key=lambda u: (not states[u].ready, states[u].revision != rules.target, u))
    return extra[: rules.surge]


def _new_extra(
    states: Mapping[int, UnitState], rules: Rules, extra: list[int], old: list[int]
) -> list[int]:
    """Asked for only while no unit is being replaced, whose room it would take."""
    count = 0 if _moving(states, rules) else min(rules.surge, len(old)) - len(extra)
    free = (u for u in range(rules.units, rules.units + rules.surge) if u not in states)
    return [unit for unit, _ in zip(free, range(count), strict=False)]


def _moving(states: Mapping[int, UnitState], rules: Rules) -> bool:
    """Whether a unit that counts is on its way to the target."""
    return any(
        not state.ready and state.revision in ("", rules.target)
        for unit, state in states.items()
        if unit < rules.units
    )
