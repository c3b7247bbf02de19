"""Takes the steps' own times off what clients of an idle deployment saw: what it adds to them.

For servers that do not tell their requests' stages; of others `load_fit` knows more. Medians of
what is left, never below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from distserve.planner.records import ServingRecord
from distserve.planner.serving import Serving
from distserve.strategies.time_model import TimeModel


def fit_serving(records: Sequence[ServingRecord], times: TimeModel) -> Serving:
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
    return Serving(
        request_ms=request_ms,
        handover_ms=handover_ms,
        step_ms=step_ms,
        stream_ms=stream_ms,
        padding_ms=padding_ms,
    )


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
