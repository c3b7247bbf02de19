"""What steps under load took, second by second, relative to what is explained of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from distserve.planner.loads import LoadRecord
from distserve.planner.pace import INTERVAL_MS, Pace
from distserve.planner.serving import Serving
from distserve.planner.spread import GOLDEN, Spread
from distserve.strategies.time_model import TimeModel


@dataclass(frozen=True)
class Explained:
    """A prefill step, or a few decode steps: of each of their streams its part."""

    middle_ms: float
    ms: float
    explained_ms: float


def spread_pace(loads: Sequence[LoadRecord], times: TimeModel, added: Serving) -> Pace:
    """Of the machine while these passed, load by load, in an order whose beginnings are from all
    over them: what is shorter than all together is not as the first of them alone."""
    order = sorted(range(len(loads)), key=lambda nth: nth * GOLDEN % 1)
    return pace_of([loads[nth] for nth in order], times, added)


def pace_of(loads: Sequence[LoadRecord], times: TimeModel, added: Serving) -> Pace:
    """Of one load after another, beside what `added` tells. `times`: the engine's alone."""
    served = added.applied(times)
    prefill: list[float | None] = []
    decode: list[float | None] = []
    for load in loads:
        if load.requests:
            intervals = ceil(max(request.last_ms for request in load.requests) / INTERVAL_MS)
            prefill += _by_interval(list(_prefills(load, served, added)), intervals)
            decode += _by_interval(list(_decodes(load, served, added)), intervals)
    if not any(prefill) and not any(decode):
        return Pace()
    return Pace(_filled(prefill), _filled(decode))


def prefill_spread(loads: Sequence[LoadRecord], times: TimeModel, added: Serving) -> Spread:
    """Of single steps, beside what `added` tells and the pace of their second: what others need not
    share with them."""
    served = added.applied(times)
    ratios: list[float] = []
    for load in loads:
        steps = [step for step in _prefills(load, served, added) if step.explained_ms > 0]
        if steps:
            pace = _by_interval(steps, 1 + int(max(s.middle_ms for s in steps) / INTERVAL_MS))
            ratios += [s.ms / s.explained_ms / (pace[_interval(s)] or 1.0) for s in steps]
    return Spread.of(ratios)


def _prefills(load: LoadRecord, served: TimeModel, added: Serving) -> Iterator[Explained]:
    for prefill in load.prefills:
        begun, ended = prefill.begun_ms, prefill.ended_ms
        if ended <= begun:
            continue
        alone_ms = served.prefill_ms(prefill.tokens, prefill.squared_tokens)
        alone_ms += added.prompt_ms * len(prefill.requests)
        slowed = added.prefill_slowed * load.decoding.share(begun, ended) if load.migrated else 0.0
        yield Explained((begun + ended) / 2, ended - begun, (1 + slowed) * alone_ms)


def _decodes(load: LoadRecord, served: TimeModel, added: Serving) -> Iterator[Explained]:
    for window in load.windows(served):
        alone_ms = window.steps_ms + added.padding_ms * window.padding_tokens
        requests_ms = added.coming_ms * (window.came + window.ended) / 2
        requests_ms += added.joining_ms * (window.prefilled + window.joined) / 2
        alone_ms += added.among(window.streams) * requests_ms
        if load.migrated:
            slowed = added.decode_slowed * window.prefilling_ms / window.ms
            ms, alone_ms = window.ms, (1 + slowed) * alone_ms
        elif window.tells:
            ms = window.between_ms
        else:
            continue
        yield Explained(window.middle_ms, window.once * ms, window.once * alone_ms)


def _by_interval(steps: Sequence[Explained], intervals: int) -> list[float | None]:
    took, explained = [0.0] * intervals, [0.0] * intervals
    for step in steps:
        at = min(_interval(step), intervals - 1)
        took[at] += step.ms
        explained[at] += step.explained_ms
    return [ms / told if told else None for ms, told in zip(took, explained, strict=True)]


def _interval(step: Explained) -> int:
    return int(step.middle_ms / INTERVAL_MS)


def _filled(ratios: Sequence[float | None]) -> tuple[float, ...]:
    """Where nothing passed the machine is as it was before."""
    last = next((ratio for ratio in ratios if ratio), 1.0)
    filled: list[float] = []
    for ratio in ratios:
        last = ratio or last
        filled.append(last)
    return tuple(filled)
