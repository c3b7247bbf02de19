"""Takes the steps' own times off what clients of a deployment saw: what the deployment adds.

Called by the fit of a profile database. Medians of what is left, never below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    more = [
        (r.streams, r.step_ms - times.decode_ms(r.streams, round(r.streams * r.context_tokens)))
        for r in records
    ]
    step_ms, stream_ms = _line(more)
    joining_ms, decode_slowed, prefill_slowed = _neighbours(beside, times)
    return Serving(
        request_ms,
        # A request that joins delays itself as well: its first step is in the gap.
        max(0.0, handover_ms - joining_ms),
        step_ms, stream_ms, joining_ms, decode_slowed, prefill_slowed,
    )  # fmt: skip


def _neighbours(records: Sequence[BesideRecord], times: TimeModel) -> tuple[float, float, float]:
    """What a request costs those that decode, and how much slower each phase is beside the other.

    Where nothing migrates, prefills and decode steps take turns on one instance: what the streams
    lose is the prefill and the rest.
    """

    def prefill_ms(record: BesideRecord) -> float:
        return times.prefill_ms(record.input_tokens, record.input_tokens**2)

    if not records:
        return 0.0, 0.0, 0.0
    if not all(record.migrated for record in records):
        return _median(r.lost_ms - prefill_ms(r) for r in records), 0.0, 0.0
    joining_ms, share = _line([(prefill_ms(r), r.lost_ms) for r in records])
    _, prefill_slowed = _line([(prefill_ms(r), r.ttft_ms - r.ttft_alone_ms) for r in records])
    # What is lost passes during the prefill as it is beside the streams:
    # share * prefill = slowed / (1 + slowed) * (1 + prefill_slowed) * prefill
    left = max(1 + prefill_slowed - share, _LEAST_LEFT)
    return joining_ms, share / left, prefill_slowed


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
