"""What a simulation found: per-request times, and the quantiles and attainments asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from distserve.workload import Trace


def quantile(ordered: Sequence[float], percent: float) -> float:
    """The quantile of sorted values, linear between order statistics (position p * (n - 1))."""
    position = percent / 100 * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    gap, part = ordered[high] - ordered[low], position - low
    # From the nearer end, as NumPy does: the same floats as the reference's.
    return ordered[low] + gap * part if part < 0.5 else ordered[high] - gap * (1 - part)


@dataclass(frozen=True)
class Slo:
    """Targets for the time to first token and per output token, and the share that must meet them.

    `tpot_percent` may differ from `ttft_percent` only where the two are judged apart.
    """

    ttft_ms: float
    tpot_ms: float
    ttft_percent: float = 90.0
    tpot_percent: float = 90.0

    def scaled(self, factor: float) -> Slo:
        return Slo(
            self.ttft_ms * factor, self.tpot_ms * factor, self.ttft_percent, self.tpot_percent
        )


@dataclass(frozen=True)
class RunResult:
    """Times of each request of a trace; `first_token_ms` and `finish_ms` are instants."""

    trace: Trace
    first_token_ms: Sequence[float]
    finish_ms: Sequence[float]
    first_by_prefill: bool = False
    """Whether the prefill's token counts as the first of the output, so that one step fewer
    follows it; the reference counts it extra."""

    @cached_property
    def ttft_ms(self) -> list[float]:
        pairs = zip(self.first_token_ms, self.trace.arrival_ms, strict=True)
        return [first - arrival for first, arrival in pairs]

    @cached_property
    def tpot_ms(self) -> list[float]:
        """(finish - first token) / tokens after the first; 0 where there are none."""
        uncounted = 1 if self.first_by_prefill else 0
        triples = zip(self.finish_ms, self.first_token_ms, self.trace.output_tokens, strict=True)
        return [(finish - first) / max(output - uncounted, 1) for finish, first, output in triples]

    def ttft_quantile_ms(self, percent: float) -> float:
        return quantile(sorted(self.ttft_ms), percent)

    def tpot_quantile_ms(self, percent: float) -> float:
        return quantile(sorted(self.tpot_ms), percent)

    def attainment_percent(self, slo: Slo) -> float:
        """Share of requests with TTFT and TPOT both at or below their targets."""
        pairs = zip(self.ttft_ms, self.tpot_ms, strict=True)
        met = sum(ttft <= slo.ttft_ms and tpot <= slo.tpot_ms for ttft, tpot in pairs)
        return 100 * met / len(self.trace)
