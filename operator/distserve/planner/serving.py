"""What a deployment adds to the steps of its engines: constants that were measured on one.

A profile's step times are the engine's own. A client's times also hold the gateway, HTTP and the
hand-over between instances, which on fast steps are no small part. `distserve profile serving`
measures an idle deployment from outside; here the steps' times are taken off what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from distserve.planner.records import ServingRecord
from distserve.strategies.time_model import Coefficients, TimeModel


@dataclass(frozen=True)
class Serving:
    """All 0 where nothing was measured: then a deployment costs what its steps do."""

    request_ms: float = 0.0
    """From the client to the engine's queue and from its first token back, together."""
    handover_ms: float = 0.0
    """Between a prefill's end and the moment when its KV can be decoded from elsewhere."""
    step_ms: float = 0.0
    """That each decode step takes longer than the engine alone needs for it."""
    stream_ms: float = 0.0
    """That it takes longer for each request in it, whose token has to be told."""

    def __bool__(self) -> bool:
        return self != Serving()

    def as_entry(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Serving:
        """Raises TypeError and ValueError for what is none."""
        return cls(**{name: float(value) for name, value in entry.items()})

    def applied(self, times: TimeModel) -> TimeModel:
        """Step times as they pass in a deployment."""
        if not self.step_ms and not self.stream_ms:
            return times

        def served(decode: Coefficients) -> Coefficients:
            return Coefficients(decode.a + self.step_ms, decode.b, decode.c + self.stream_ms)

        return TimeModel(
            times.prefill, served(times.decode_small), served(times.decode_large), times.large_batch
        )


def fit_serving(records: Sequence[ServingRecord], times: TimeModel) -> Serving:
    """Medians of what is left when the steps' own times are taken off; never below 0."""
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
    return Serving(request_ms, handover_ms, step_ms, stream_ms)


def _median(values: Any) -> float:
    found = list(values)
    return max(0.0, median(found)) if found else 0.0


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, of the median over each number of streams."""
    streams = sorted({n for n, _ in points})
    medians = [median(ms for m, ms in points if m == n) for n in streams]
    middle, level = sum(streams) / len(streams), sum(medians) / len(medians)
    spread = sum((n - middle) ** 2 for n in streams)
    slope = 0.0
    if spread:
        slope = sum((n - middle) * ms for n, ms in zip(streams, medians, strict=True)) / spread
    slope = max(0.0, slope)
    if level - slope * middle < 0:  # through the origin, then
        return 0.0, max(0.0, sum(n * ms for n, ms in zip(streams, medians, strict=True))) / sum(
            n * n for n in streams
        )
    return level - slope * middle, slope
