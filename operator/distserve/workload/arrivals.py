"""When requests arrive: Poisson, gamma, fixed gaps or bursts, at a rate in requests per second.

The random part of a process is drawn once per (seed, count) and scaled to each rate, so runs at
different rates see the same randomness (common random numbers) and their results are comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from distserve.workload.requests import RequestSet, Trace, WorkloadError

ARRIVALS = ("poisson", "gamma", "fixed", "burst", "window", "recorded")
_LEAST_CV, _MOST_CV = 0.001, 100.0
"""Beyond these a gamma distribution's draws are all alike, or all 0 but one in ten thousand."""
_DRAWN = ("poisson", "gamma", "window")
_SEEDS = range(2**32)
"""What NumPy's legacy generator takes."""
_ALIASES = {"custom": "recorded", "trace": "recorded", "uniform": "fixed"}


@dataclass
class ArrivalProcess:
    """A named arrival process.

    `poisson` and `gamma` draw gaps from a gamma distribution of mean 1/rate and coefficient of
    variation `cv` (1 is exponential, hence Poisson) by NumPy's legacy generator, which is what
    simdistserve draws from. `fixed` spaces requests evenly; `burst` lets `burst_size` requests
    arrive at one instant, the bursts spaced evenly; `window` lets the last of n requests arrive
    exactly n/rate seconds after the first, at the instants of LoongServe's client and its seed;
    `recorded` takes the set's own times.
    """

    kind: str = "poisson"
    cv: float = 1.0
    seed: int = 0
    burst_size: int = 10
    _unit_gaps: dict[int, list[float]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.kind = _ALIASES.get(self.kind, self.kind)
        if self.kind not in ARRIVALS:
            raise WorkloadError(
                f"unknown arrival process {self.kind!r}; choose one of {', '.join(ARRIVALS)}"
            )
        if not _LEAST_CV <= self.cv <= _MOST_CV:
            raise WorkloadError(
                f"cv must be from {_LEAST_CV:g} to {_MOST_CV:g}, got {self.cv:g}; use `fixed` for "
                "no variation"
            )
        if self.burst_size < 1:
            raise WorkloadError(f"burst size must be at least 1, got {self.burst_size}")
        if self.kind in _DRAWN and self.seed not in _SEEDS:
            raise WorkloadError(
                f"a seed of {self.kind} arrivals must be from 0 to {_SEEDS[-1]}, got {self.seed}"
            )

    def trace(self, requests: RequestSet, rate: float) -> Trace:
        """Let `requests` arrive at `rate` per second (ignored by `recorded`), the first at 0.

        An infinite rate lets all arrive at 0.
        """
        if self.kind == "recorded":
            return requests.recorded()
        if not rate > 0:
            raise WorkloadError(f"the rate must be above 0 requests per second, got {rate}")
        return Trace(
            requests.prompt_tokens, requests.output_tokens, self.times_ms(len(requests), rate)
        )

    def times_ms(self, count: int, rate: float) -> Sequence[float]:
        """Arrival times of `count` requests at `rate` per second, in milliseconds."""
        if math.isinf(rate):
            return [0.0] * count
        if self.kind == "fixed":
            return list(accumulate([0.0] + [1 / rate * 1000] * (count - 1)))
        if self.kind == "burst":
            gap_ms = self.burst_size / rate * 1000
            return [index // self.burst_size * gap_ms for index in range(count)]
        if self.kind == "window":
            return self._window_ms(count, rate)
        # The order of operations is NumPy's (scale times a standard gamma, then milliseconds):
        # the sums come out as the same floats as the reference's.
        scale = self.cv * self.cv / rate
        gaps = (scale * gap * 1000 for gap in self._standard_gamma(count - 1))
        return list(accumulate(gaps, initial=0.0))

    def _window_ms(self, count: int, rate: float) -> Sequence[float]:
        if count == 1:
            return [0.0]
        # One draw more than there are gaps: LoongServe's stamps start after a gap of their own,
        # which it takes off again.
        stamps = list(accumulate(self._standard_gamma(count)[1:], initial=0.0))
        span_ms = count / rate * 1000
        return [stamp / stamps[-1] * span_ms for stamp in stamps]

    def _standard_gamma(self, count: int) -> list[float]:
        if count not in self._unit_gaps:
            from numpy.random import RandomState  # a fifth of a second to import: only where used

            shape = 1 / (self.cv * self.cv)
            draws = RandomState(self.seed).standard_gamma(shape, size=count)
            self._unit_gaps[count] = [float(draw) for draw in draws]
        return self._unit_gaps[count]
