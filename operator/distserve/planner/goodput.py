"""Goodput of a fleet: the highest rate at which enough requests meet TTFT and TPOT together.

Rates are probed on a fixed geometric grid below the fleet's capacity. The grid does not depend on
the SLO, so a looser SLO can only move the answer up: it passes wherever the tighter one passed,
and the bisection's path turns upward where the two first differ.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from distserve.planner.capacity import MeanRequest, capacity
from distserve.planner.result import RunResult, Slo
from distserve.planner.simulator import Instance, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.workload import ArrivalProcess, RequestSet, Trace

STEPS_PER_DOUBLING = 16
"""Resolution of the grid: neighbouring rates differ by 4.4 %."""
GRID_RATES = 192
"""Rates of the grid: the lowest is 2^-12 of the capacity, where every request is served alone."""

HEADROOM = 0.95
"""Share of the capacity above which no rate is probed: queues there settle too slowly to see."""


class JointObserver:
    """Counts requests that meet or miss the SLO and stops when the share is certain."""

    def __init__(self, trace: Trace, slo: Slo) -> None:
        self._trace = trace
        self._slo = slo
        count = len(trace)
        self._good_needed = math.ceil(slo.ttft_percent / 100 * count - 1e-9)
        self._bad_allowed = count - self._good_needed
        self.good = 0
        self.late_first = 0
        self.slow_rest = 0
        self.decided = False
        self._next_wait = 0  # requests before it are judged, or have their first token
        self._first_ms: dict[int, float] = {}
        self._judged = [False] * count

    @property
    def passes(self) -> bool:
        return self.good >= self._good_needed

    @property
    def attainment_percent(self) -> float:
        """Of the requests judged so far."""
        judged = self.good + self.late_first + self.slow_rest
        return 100 * self.good / judged if judged else 0.0

    def passed(self, now_ms: float) -> None:
        """A request that waits beyond its target for its first token misses, whatever follows."""
        arrival, limit = self._trace.arrival_ms, now_ms - self._slo.ttft_ms
        while self._next_wait < len(arrival) and arrival[self._next_wait] < limit:
            if self._next_wait not in self._first_ms:
                self._judge(self._next_wait, late=True)
            self._next_wait += 1

    def first_token(self, request: int, now_ms: float) -> None:
        self._first_ms[request] = now_ms
        if now_ms - self._trace.arrival_ms[request] > self._slo.ttft_ms:
            self._judge(request, late=True)

    def finished(self, request: int, now_ms: float) -> None:
        rest = self._trace.output_tokens[request] - 1
        tpot_ms = (now_ms - self._first_ms[request]) / rest if rest else 0.0
        self._judge(request, slow=tpot_ms > self._slo.tpot_ms)

    def _judge(self, request: int, late: bool = False, slow: bool = False) -> None:
        if self._judged[request]:
            return
        self._judged[request] = True
        self.late_first += late
        self.slow_rest += slow
        self.good += not (late or slow)
        bad = self.late_first + self.slow_rest
        self.decided = self.passes or bad > self._bad_allowed


@dataclass(frozen=True)
class Probe:
    """Outcome of one rate: what decided it, not how every request fared."""

    rate: float
    passes: bool
    late_first: int
    slow_rest: int
    attainment_percent: float

    @property
    def missed(self) -> str:
        return "TTFT" if self.late_first >= self.slow_rest else "TPOT"


@dataclass(frozen=True)
class Goodput:
    """`rate` requests per second in all, 0 when even an idle fleet misses; `next` failed."""

    rate: float
    next: Probe | None = None


@dataclass(frozen=True)
class Forecast:
    """A whole run at one rate: percentiles, attainment and utilisation."""

    rate: float
    result: RunResult
    attainment_percent: float
    utilisation: dict[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Simulates fleets under one strategy on one workload, judged by one SLO.

    Probes replay `requests`, a sample of `population`; capacity and forecasts use the population.
    """

    strategy: str
    requests: RequestSet
    population: RequestSet
    arrivals: ArrivalProcess
    slo: Slo

    @cached_property
    def mean(self) -> MeanRequest:
        return MeanRequest.of(self.population)

    def probe(self, fleet: Fleet, rate: float) -> Probe:
        trace = self.arrivals.trace(self.requests, rate)
        observer = JointObserver(trace, self.slo)
        simulation = Simulation(trace, observer=observer)
        simulation.run(strategy_class(self.strategy)(simulation, fleet))
        return Probe(
            rate,
            observer.passes,
            observer.late_first,
            observer.slow_rest,
            observer.attainment_percent,
        )

    def goodput(self, fleet: Fleet) -> Goodput:
        """Bisect the grid; raises OversizedRequest where a request cannot be held at all."""
        return self._bisected(fleet, HEADROOM * capacity(fleet, self.mean), GRID_RATES)

    def _bisected(self, fleet: Fleet, top: float, high: int, least: int = 0) -> Goodput:
        """Between the lowest rate of the grid under `top` and its rate `high`, too high a one.

        It ends early with a rate below `least` once the answer is that or lower. All else goes the
        same way whatever `least` is: a fleet's answer must not depend on those judged before it.
        """
        idle = self.probe(fleet, _rate(top, 0))
        if not idle.passes:
            return Goodput(0.0, idle)
        low = 0
        failed = None
        while high - low > 1 and high > least:
            middle = (low + high) // 2
            probe = self.probe(fleet, _rate(top, middle))
            if probe.passes:
                low = middle
            else:
                high, failed = middle, probe
        return Goodput(_rate(top, high - 1), failed)

    def forecast(self, fleet: Fleet, rate: float, count: int) -> Forecast:
        """Run to the end with `count` requests drawn anew from the set."""
        trace = self.arrivals.trace(self._drawn(count), rate)
        simulation = Simulation(trace)
        strategy = strategy_class(self.strategy)(simulation, fleet)
        result = simulation.run(strategy)
        lasted_ms = max(result.finish_ms)
        return Forecast(
            rate,
            result,
            result.attainment_percent(self.slo),
            _utilisation(strategy.instances, lasted_ms),
        )

    def _drawn(self, count: int) -> RequestSet:
        if self.arrivals.kind == "recorded":
            return self.population
        return self.population.resample(count, self.arrivals.seed)

    def settled(
        self,
        fleet: Fleet,
        goodput: Goodput,
        count: int,
        matters: Callable[[float], bool] = lambda rate: True,
    ) -> Goodput:
        """What a run of `count` requests holds of a goodput: 0 when it misses even when idle.

        Most hold it or a little less; what holds less than half of it is searched for anew.
        `matters` says of a rate, and then of all higher ones, whether it is worth a look: where
        none of them is held, the answer is one that does not matter, held or not.
        """
        longer = replace(self, requests=self._drawn(count))
        rates = [_rate(goodput.rate, index) for index in range(GRID_RATES + 1)]
        least = min(bisect_left(rates, True, key=matters), GRID_RATES)
        half = max(GRID_RATES - STEPS_PER_DOUBLING, least - 1)
        for index in range(GRID_RATES, half, -1):
            probe = longer.probe(fleet, rates[index])
            if probe.passes:
                return replace(goodput, rate=probe.rate)
        if half < least:
            return Goodput(rates[half], probe)
        found = longer._bisected(fleet, goodput.rate, half + 1, least)
        return replace(found, next=found.next or probe)

    def binding(self, fleet: Fleet, failed: Probe | None) -> str:
        """What to relax to go beyond the goodput: the link, memory, or the SLO missed most.

        `throughput` where every probed rate passed: the batches cannot go faster. What failed in a
        longer run alone is taken for the SLO.
        """
        boundless = replace(
            fleet,
            prefill=replace(fleet.prefill, kv_tokens=1 << 40),
            decode=replace(fleet.decode, kv_tokens=1 << 40) if fleet.decode else None,
        )
        if failed is None:
            roomier = capacity(boundless, self.mean)
            return "memory" if roomier > capacity(fleet, self.mean) else "throughput"
        if self.probe(fleet, failed.rate).passes:
            return failed.missed
        if fleet.link and self.probe(replace(fleet, link=None), failed.rate).passes:
            return "link"
        if self.probe(boundless, failed.rate).passes:
            return "memory"
        return failed.missed


def _rate(top: float, index: int) -> float:
    """Of the grid under `top`, which is the rate GRID_RATES."""
    return top * float(2.0 ** ((index - GRID_RATES) / STEPS_PER_DOUBLING))


def _utilisation(instances: list[Instance], lasted_ms: float) -> dict[str, float]:
    """Busy share of the first stage, averaged over the instances of a role."""
    by_role: dict[str, list[float]] = {}
    for instance in instances:
        role = instance.name.rsplit("-", 1)[0]
        by_role.setdefault(role, []).append(instance.busy_ms / lasted_ms)
    return {role: sum(shares) / len(shares) for role, shares in by_role.items()}
