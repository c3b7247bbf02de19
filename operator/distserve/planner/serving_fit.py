"""Takes the steps' own times off what clients of a deployment saw: what the deployment adds.

Called by the fit of a profile database. Medians of what is left, never below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from distserve.planner.records import BesideRecord, ServingRecord
from distserve.planner.serving import Serving
from distserve.strategies.time_model import TimeModel

_LEAST_LEFT = 0.1
"""Of a neighbour's pace: streams that seem to stand still while others prefill share a core."""


def fit_serving(
    records: Sequence[ServingRecord], beside: Sequence[BesideRecord], times: TimeModel
) -> Serving:
    if not records:
        return Serving()
    alone = [r for r in records if r.streams == 1]
    request_ms = _median(
        r.ttft_ms - times.prefill_ms(r.input_tokens, r.input_tokens**2) for r in alone
    )
    handover_ms = _median(r.handover_ms - r.step_ms for r in alone if r.migrated)

    def longer_ms(record: ServingRecord) -> float:
        context = round(record.streams * record.context_tokens)
        return record.step_ms - times.decode_ms(record.streams, context)

    step_ms, stream_ms = _line([(r.streams, longer_ms(r)) for r in records if not r.padding_tokens])
    padding_ms = _median(
        (longer_ms(r) - step_ms - stream_ms * r.streams) / r.padding_tokens
        for r in records
        if r.padding_tokens
    )
    idle = Serving(
        request_ms=request_ms,
        handover_ms=handover_ms,
        step_ms=step_ms,
        stream_ms=stream_ms,
        padding_ms=padding_ms,
    )
    return _busy(idle, beside, times) if beside else idle


def _busy(idle: Serving, records: Sequence[BesideRecord], times: TimeModel) -> Serving:
    """Adds what requests and streams that decode cost each other."""
    told = [r for r in records if r.prefill_alone_ms]
    if told:
        # The same milliseconds, where they arise: in the step and not on the way to it.
        prompt_ms, prefill_longer = _line(
            [
                (_prefill_ms(r, times), (r.prefill_alone_ms or 0.0) - _prefill_ms(r, times))
                for r in told
            ]
        )
        idle = replace(
            idle,
            request_ms=_median(r.ttft_alone_ms - (r.prefill_alone_ms or 0.0) for r in told),
            prompt_ms=prompt_ms,
            prefill_longer=prefill_longer,
        )
    if all(record.migrated for record in records):
        return _neighbours(idle, records, idle.applied(times))
    # Nothing migrates: prefills and decode steps take turns on one instance, so that the streams
    # lose the prefill and the rest, and a request waits for half a step of theirs.
    served = idle.applied(times)
    shortest = min(r.input_tokens for r in records)
    return replace(
        idle,
        busy_request_ms=_median(r.ttft_ms - r.ttft_alone_ms - r.step_ms / 2 for r in records),
        joining_ms=_median(
            r.lost_ms - idle.prompt_ms - _prefill_ms(r, served)
            for r in records
            if r.input_tokens == shortest  # of a long prefill, a slow minute is as much
        ),
    )


def _neighbours(idle: Serving, records: Sequence[BesideRecord], served: TimeModel) -> Serving:
    """Adds what a prefill and a decode instance cost each other. `served`: times in there."""

    def alone_ms(record: BesideRecord) -> float:
        return idle.prompt_ms + _prefill_ms(record, served)

    longer = [
        (r.prefill_ms or r.ttft_ms) / (r.prefill_alone_ms or r.ttft_alone_ms) for r in records
    ]
    prefill_slowed = max(0.0, median(longer) - 1)
    busy_request_ms = _median(
        r.ttft_ms - r.ttft_alone_ms - prefill_slowed * alone_ms(r) for r in records
    )
    joining_ms, share = _line([(alone_ms(r), r.lost_ms) for r in records])
    # What is lost passes during the prefill as it is beside the streams:
    # share * prefill = slowed / (1 + slowed) * (1 + prefill_slowed) * prefill
    decode_slowed = share / max(1 + prefill_slowed - share, _LEAST_LEFT)
    # Beside streams a request waits for half a step, and its own has theirs in it.
    longer_ms = _median(
        r.handover_ms
        - 1.5 * r.step_ms
        - (r.handover_alone_ms - served.decode_ms(1, r.input_tokens))
        for r in records
    )
    return replace(
        idle,
        busy_request_ms=busy_request_ms,
        # A request that joins delays itself as well.
        handover_ms=max(0.0, idle.handover_ms - joining_ms),
        busy_handover_ms=max(0.0, longer_ms - max(0.0, joining_ms - idle.handover_ms)),
        joining_ms=joining_ms,
        decode_slowed=decode_slowed,
        prefill_slowed=prefill_slowed,
    )


def _prefill_ms(record: BesideRecord, times: TimeModel) -> float:
    return times.prefill_ms(record.input_tokens, record.input_tokens**2)


def _median(values: Any) -> float:
    found = list(values)
    return max(0.0, median(found)) if found else 0.0


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, through the median of each place."""
    places = sorted({x for x, _ in points})
    medians = [median(ms for at, ms in points if at == x) for x in places]
    middle, level = sum(places) / len(places), sum(medians) / len(medians)
    spread = sum((x - middle) ** 2 for x in places)
    slope = 0.0
    if spread:
        slope = sum((x - middle) * ms for x, ms in zip(places, medians, strict=True)) / spread
    slope = max(0.0, slope)
    if level - slope * middle < 0:  # through the origin, then
        return 0.0, max(0.0, sum(x * ms for x, ms in zip(places, medians, strict=True))) / sum(
            x * x for x in places
        )
    return level - slope * middle, slope
