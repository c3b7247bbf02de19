"""What a deployment adds to its engines' steps, of what its clients saw under load.

Times are explained by all that passed meanwhile: a few steps of a stream by the engine's own steps,
their tokens, who joined and what was prefilled; a prefill by its prompts and by who decoded beside
it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, linear_regression, median
from typing import NamedTuple

from distserve.planner import least_squares
from distserve.planner.load_pace import prefill_spread, spread_pace
from distserve.planner.loads import LoadRecord, LoadRequest, Prefill, Window
from distserve.planner.serving import Serving
from distserve.planner.spread import Spread
from distserve.strategies.time_model import TimeModel

_ROUNDS = 4
"""What is slowed is all of a step, which the round before tells."""
_MOST_STEPS, _MOST_MS = 2.5, 40.0
"""Who decodes later than by both waited for room, and not for the news alone."""
_CROWDINGS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""That with the smallest errors is taken. All measurements of docs/decisions/078 gave a 32nd or
a 16th."""
_BELIEF = 200
"""One row of this many says that the engine's own times hold: where step, tokens and all that is
added grow alike, it is they that are believed."""


def fit_loads(loads: Sequence[LoadRecord], times: TimeModel) -> Serving:
    """Of one deployment with one instance of each role."""
    migrated = any(load.migrated for load in loads)
    mixed = not migrated and _mixed(loads, times)
    prefills = _Prefills() if mixed else _prefills(loads, times, migrated)
    decodes = _decodes(loads, times, migrated, mixed)
    added = Serving(
        prompt_ms=prefills.prompt_ms,
        prefill_step_longer=decodes.prefill_longer if mixed else prefills.step_longer,
        prefill_longer=decodes.prefill_longer if mixed else prefills.longer,
        decode_longer=decodes.longer,
        step_ms=decodes.step_ms,
        stream_ms=decodes.stream_ms,
        padding_ms=decodes.padding_ms,
        coming_ms=decodes.coming_ms,
        joining_ms=decodes.joining_ms,
        crowding=decodes.crowding,
        decode_slowed=decodes.slowed,
        prefill_slowed=prefills.slowed,
    )
    ways = _ways(loads, migrated, added)
    added = replace(
        added, request_ms=ways.idle_ms, busy_request_ms=ways.busy_ms - ways.idle_ms,
        stream_request_ms=ways.stream_ms, way_spread=ways.spread,
    )  # fmt: skip
    if migrated:
        served = added.applied(times)
        added = replace(added, handover_ms=_handover_ms(loads, served, added.joining_ms))
        added = replace(added, busy_handover_ms=_news_ms(loads, added))
    # Of steps that do both at once it is not known which of both was slow.
    if mixed:
        return added
    pace, spread = spread_pace(loads, times, added), prefill_spread(loads, times, added)
    return replace(added, pace=pace, prefill_spread=spread)


def _mixed(loads: Sequence[LoadRecord], times: TimeModel) -> bool:
    """Prefills are pieces of steps that decode as well: a request's first token comes with tokens
    of the streams, and not a step before them."""
    gaps_ms = [
        load.nearest_ms(request.token_ms[0])
        for load in loads
        for request in load.requests
        if load.step_ms(request.prefill_ms, request.prefilled_ms)
    ]
    return bool(gaps_ms) and median(gaps_ms) < times.decode_ms(1, 1) / 2


class _Explained(NamedTuple):
    found: Sequence[float]
    """Coefficients of each column."""
    slowed: float
    error: float
    """Sum of the squared relative ones."""


def _beside(
    rows: Sequence[tuple[float, ...]],
    shares: Sequence[float],
    measured: Sequence[float],
    weights: Sequence[float],
    own: int = 1,
) -> _Explained:
    """What the columns tell, and by which share all of it grows while others compute, which
    they do for `shares` of the time. The first `own` columns, the engine's times, have 1 as far as
    what was measured leaves it open."""
    columns = range(len(rows[0]) + 1)
    beliefs = [tuple(float(nth == at) for nth in columns) for at in range(own)]
    beliefs *= 1 + int(sum(weights)) // _BELIEF
    alone_ms = [sum(row[:own]) for row in rows]
    for _ in range(_ROUNDS):
        all_rows = [(*r, share * ms) for r, share, ms in zip(rows, shares, alone_ms, strict=True)]
        *found, slowed = least_squares.scattered(
            [*all_rows, *beliefs],
            [*measured, *[1.0] * len(beliefs)],
            [*weights, *[1.0] * len(beliefs)],
        )
        alone_ms = [sum(c * x for c, x in zip(found, row, strict=True)) for row in rows]
    told_ms = [(1 + slowed * share) * ms for share, ms in zip(shares, alone_ms, strict=True)]
    error = sum(
        weight * (ms / told - 1) ** 2
        for weight, ms, told in zip(weights, measured, told_ms, strict=True)
        if told
    )
    return _Explained(found, slowed, error)


# ---- prefills


@dataclass(frozen=True)
class _Prefills:
    step_longer: float = 0.0
    longer: float = 0.0
    prompt_ms: float = 0.0
    slowed: float = 0.0


def _prefills(loads: Sequence[LoadRecord], times: TimeModel, beside: bool) -> _Prefills:
    """`beside`: others decode meanwhile, on their own instance."""
    seen = [
        (load, prefill)
        for load in loads
        for prefill in load.prefills
        if prefill.ended_ms > prefill.begun_ms
    ]
    if not seen:
        return _Prefills()
    (step_share, share, prompt_ms), slowed, _ = _beside(
        [
            (
                times.prefill.a,
                times.prefill_ms(p.tokens, p.squared_tokens) - times.prefill.a,
                len(p.requests),
            )
            for _, p in seen
        ],
        [load.decoding.share(p.begun_ms, p.ended_ms) if beside else 0.0 for load, p in seen],
        [p.ended_ms - p.begun_ms for _, p in seen],
        [1.0] * len(seen),
        own=2,
    )
    return _Prefills(step_share - 1, share - 1, prompt_ms, slowed)


# ---- decode steps


@dataclass(frozen=True)
class _Decodes:
    longer: float = 0.0
    step_ms: float = 0.0
    stream_ms: float = 0.0
    padding_ms: float = 0.0
    coming_ms: float = 0.0
    joining_ms: float = 0.0
    crowding: float = 0.0
    slowed: float = 0.0
    prefill_longer: float = 0.0


def _decodes(loads: Sequence[LoadRecord], times: TimeModel, beside: bool, mixed: bool) -> _Decodes:
    """`beside`: prefills are another instance's; else they pass between the steps, or (`mixed`)
    within them."""
    windows = [window for load in loads for window in load.windows(times)]
    if not beside and not mixed:
        windows = [w for w in windows if w.tells]
    if not windows:
        return _Decodes()
    measured = [w.ms if beside or mixed else w.between_ms for w in windows]
    shares = [w.prefilling_ms / w.ms if beside else 0.0 for w in windows]
    weights = [w.once for w in windows]

    def explained(crowding: float) -> tuple[_Explained, float]:
        among = Serving(crowding=crowding).among
        rows = [
            (
                w.steps_ms,
                w.steps,
                w.tokens,
                w.padding_tokens,
                _pieces_ms(w, times) * mixed,
                *(among(w.streams) * n for n in (w.came, w.prefilled, w.joined, w.ended)),
            )
            for w in windows
        ]
        return _beside(rows, shares, measured, weights), crowding

    (own, slowed, _), crowding = min(map(explained, _CROWDINGS), key=lambda tried: tried[0].error)
    share, step_ms, stream_ms, padding_ms, prefill_share, *moments = own
    came_ms, prefilled_ms, joined_ms, ended_ms = moments
    # When one comes another has ended, more often than not; and it joins after its prefill.
    coming_ms, joining_ms = came_ms + ended_ms, prefilled_ms + joined_ms
    return _Decodes(
        share - 1, step_ms, stream_ms, padding_ms, coming_ms, joining_ms, crowding, slowed,
        prefill_share - 1 if prefill_share else 0.0,
    )  # fmt: skip


def _pieces_ms(window: Window, times: TimeModel) -> float:
    """Of prefills that ended in it, what they add to steps that pass anyway."""
    pieces = window.prefills
    tokens, squared = sum(p.tokens for p in pieces), sum(p.squared_tokens for p in pieces)
    return times.prefill_ms(tokens, squared) - times.prefill.a


# ---- ways


class _Ways(NamedTuple):
    """Means: while nobody decoded; and while `n` did, `busy_ms + stream_ms * n`."""

    idle_ms: float
    busy_ms: float
    stream_ms: float
    spread: Spread
    """Of single ones about theirs."""


def _ways(loads: Sequence[LoadRecord], migrated: bool, added: Serving) -> _Ways:
    """Of requests that waited for no other one. A busy way may be shorter than an idle one, since
    who waits for a step is on its way meanwhile."""
    idle = [way_ms for _, _, way_ms in _seen_ways(loads, math.inf, while_busy=False)]
    busy: list[tuple[int, float]] = []
    for load, request, way_ms in _seen_ways(loads, fmean(idle) if idle else math.inf, True):
        sent, streams = request.sent_ms, load.streams(request.sent_ms)
        if not migrated:  # it waited for the step under way, half of it in the mean,
            # and made it longer
            way_ms -= load.step_ms(sent, request.prefill_ms) / 2
            way_ms -= added.among(streams) * added.coming_ms
        busy.append((streams, way_ms))
    idle_ms = max(0.0, fmean(idle or [way_ms for _, way_ms in busy] or [0.0]))
    busy_ms, stream_ms = _line(busy) if busy else (idle_ms, 0.0)
    # Of a wait for half a step in the mean it is not known which of both was long.
    single = [(way_ms, idle_ms) for way_ms in idle]
    single += [(way_ms, busy_ms + stream_ms * n) for n, way_ms in busy if migrated]
    ratios = [way_ms / mean_ms for way_ms, mean_ms in single if mean_ms]
    return _Ways(idle_ms, busy_ms, stream_ms, Spread.of(ratios))


def _seen_ways(
    loads: Sequence[LoadRecord], come_ms: float, while_busy: bool
) -> Iterator[tuple[LoadRecord, LoadRequest, float]]:
    """Each from sending to prefill and back, of those that were sent while nobody's prefill was
    under way and when the ones before them had come, after `come_ms` at most."""
    for load in loads:
        free_ms = 0.0
        for request in sorted(load.requests, key=lambda r: r.sent_ms):
            sent, begun = request.sent_ms, request.prefill_ms
            beside = load.decoding.within(sent, begun) > 0
            if beside == while_busy and sent >= free_ms and not _queued(request, load.prefills):
                yield load, request, begun - sent + request.token_ms[0] - request.prefilled_ms
            free_ms = max(free_ms, min(begun, sent + come_ms))


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """What all have and what each one more adds: least squares, none of both below 0."""
    mean = max(0.0, fmean(y for _, y in points))
    if len({x for x, _ in points}) < 2:
        return mean, 0.0
    columns = tuple(zip(*points, strict=True))
    slope, begin = linear_regression(*columns)
    if slope < 0:
        return mean, 0.0
    if begin < 0:
        return 0.0, max(0.0, linear_regression(*columns, proportional=True).slope)
    return begin, slope


def _queued(request: LoadRequest, prefills: Sequence[Prefill]) -> bool:
    return any(
        prefill.begun_ms < request.prefill_ms
        and prefill.ended_ms > request.sent_ms
        and request not in prefill.requests
        for prefill in prefills
    )


def _handover_ms(loads: Sequence[LoadRecord], served: TimeModel, joining_ms: float) -> float:
    """Of one to an instance where nobody decodes: the gap between the first token and the second
    without the step that follows. `served`: times in the deployment."""
    seen = [
        request.token_ms[1]
        - request.token_ms[0]
        - joining_ms
        - served.decode_ms(1, request.input_tokens + 1)
        for load in loads
        for request in load.requests
        if len(request.token_ms) > 1 and not load.step_ms(*request.token_ms[:2])
    ]
    return max(0.0, median(seen)) if seen else 0.0


def _news_ms(loads: Sequence[LoadRecord], added: Serving) -> float:
    """Of a hand-over to an instance that decodes: by how much the second token came later than had
    its engine heard of the first at once, which others' tokens tell. It hears when a step has
    ended, takes the request into the first one that begins when its KV is there, and at that one's
    end there is the token. Means, since steps pass at any distance from it."""
    late = [
        fmean(beside)
        for load in loads
        for request in load.requests
        if len(request.token_ms) > 1 and (beside := list(_late_ms(request, load.requests, added)))
    ]
    return max(0.0, fmean(late)) if late else 0.0


def _late_ms(
    request: LoadRequest, others: Sequence[LoadRequest], added: Serving
) -> Iterator[float]:
    """Beside each of those who decoded from its first token to its second."""
    first, second = request.token_ms[:2]
    beside = [
        other.token_ms[1:]
        for other in others
        if other is not request
        and len(other.token_ms) > 1
        and other.token_ms[1] <= first
        and other.token_ms[-1] >= second
    ]
    joining_ms = added.among(len(beside) + 1) * added.joining_ms
    for ends in beside:
        heard = bisect_right(ends, first)
        begun = bisect_right(ends, ends[heard] + added.handover_ms)
        if begun + 1 < len(ends):
            step_ms, late_ms = ends[begun + 1] - ends[begun], second - ends[begun + 1]
            if late_ms > step_ms / 2:  # it would have been in this one, and made it longer
                late_ms -= joining_ms + added.stream_ms
            if late_ms < max(_MOST_STEPS * step_ms, _MOST_MS):
                yield late_ms
