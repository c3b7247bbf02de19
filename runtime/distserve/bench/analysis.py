"""Figures of merit of measured runs: attainment, crossings, rates. Pure; called by the report.

A request that failed, or of which no record is there, meets no objective: the denominator is the
number of requests that were asked for, never the number that came back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from distserve.bench.lifecycle import STAGES
from distserve.bench.slos import Slo


@dataclass(frozen=True)
class Own:
    """A request's own objectives, in seconds; a None leaves it to the report's."""

    ttft: float | None = None
    tpot: float | None = None

    def ttft_limit(self, slo: Slo) -> float:
        """What such a request is held against."""
        return slo.ttft if self.ttft is None else self.ttft * slo.factor

    def tpot_limit(self, slo: Slo) -> float:
        return slo.tpot if self.tpot is None else self.tpot * slo.factor


NOT_ITS_OWN = Own()


@dataclass(frozen=True)
class Sample:
    """One completed request, in seconds; a None was not measured (or no token came)."""

    prompt_tokens: int
    output_tokens: int
    start: float
    end: float
    latency: float
    ttft: float | None
    tpot: float | None
    stages: dict[str, float] | None = None
    """Seconds in each of STAGES, where the server told."""
    own: Own = NOT_ITS_OWN
    """Come before the report's."""

    def meets_ttft(self, slo: Slo) -> bool:
        return self.ttft is not None and self.ttft <= self.own.ttft_limit(slo)

    def meets_tpot(self, slo: Slo) -> bool:
        return self.tpot is not None and self.tpot <= self.own.tpot_limit(slo)

    def meets(self, slo: Slo) -> bool:
        return self.meets_ttft(slo) and self.meets_tpot(slo)


@dataclass(frozen=True)
class Attainment:
    """Shares of all asked requests, 0 to 1."""

    both: float
    ttft: float
    tpot: float


@dataclass(frozen=True)
class Run:
    """One system at one rate."""

    system: str
    requests: int
    """Asked for; `samples` may be fewer."""
    rate: float
    samples: Sequence[Sample]
    gpus: int = 1
    about: dict[str, Any] = field(default_factory=dict)
    """Its `.run.json`, where there is one."""
    asked: Sequence[Own] = ()
    """Own objectives of all requests, failed ones too; empty where no `.csv` tells them."""
    span: float | None = None
    """Seconds from the first planned instant to the last end of any request, failed ones too; None
    where no `.csv` tells them."""
    cut_off: int = 0
    """Records that are no samples: with times of fewer tokens than they had."""
    attained: dict[Slo, Attainment] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `attainment` found: tables and figures ask for the same again and again."""

    @property
    def rate_per_gpu(self) -> float:
        return self.rate / self.gpus

    @property
    def seconds(self) -> float:
        """Of all requests, where that is known; else from the first to the last completed one."""
        if self.span is not None:
            return self.span
        if not self.samples:
            return 0.0
        return max(s.end for s in self.samples) - min(s.start for s in self.samples)

    @property
    def valid(self) -> bool:
        return bool(self.about.get("valid", True))


def attainment(run: Run, slo: Slo) -> Attainment:
    if slo not in run.attained:
        met = [(s.meets_ttft(slo), s.meets_tpot(slo)) for s in run.samples]
        run.attained[slo] = Attainment(
            both=met.count((True, True)) / run.requests,
            ttft=sum(ttft for ttft, _ in met) / run.requests,
            tpot=sum(tpot for _, tpot in met) / run.requests,
        )
    return run.attained[slo]


def classes(run: Run) -> dict[Own, Run]:
    """The run divided by its requests' own objectives, each class as a run; {} where unknown.

    Unknown where requests failed and nothing tells of which class they were. Each class has the
    whole run's time.
    """
    completed = Counter(sample.own for sample in run.samples)
    asked = Counter(run.asked) if run.asked else completed
    if asked.total() != run.requests or not completed <= asked:
        return {}
    return {
        own: replace(
            run,
            requests=count,
            samples=[s for s in run.samples if s.own == own],
            asked=(),
            span=run.seconds,
        )
        for own, count in asked.items()
    }


@dataclass(frozen=True)
class Crossing:
    """Where a curve falls below a level; where it never does, only a bound is known."""

    at: float | None
    kind: str
    """`exact`; `bound`: every finite point holds; `none`: not even the easiest."""
    falling: bool = False
    """Along this axis smaller is harder, as it is for a scale of objectives."""

    def __str__(self) -> str:
        if self.at is None:
            return "none"
        sign = ("≤ " if self.falling else "≥ ") if self.kind == "bound" else ""
        return f"{sign}{self.at:.3g}"


def crossing(points: Iterable[tuple[float, float]], level: float) -> Crossing:
    """The first fall below `level` along `points` (x, share), from the easiest x to the hardest.

    Linear between points, as the papers draw it, and towards an x at infinity no line. A point
    exactly at the level holds.
    """
    before: tuple[float, float] | None = None
    for x, share in points:
        if share < level:
            if before is None:
                return Crossing(None, "none")
            x0, share0 = before
            if math.isinf(x):
                return Crossing(x0, "bound")
            return Crossing(x0 + (x - x0) * (share0 - level) / (share0 - share), "exact")
        before = (x, share)
    return Crossing(before[0], "bound") if before else Crossing(None, "none")


def rate_crossing(runs: Iterable[Run], slo: Slo, level: float, per_gpu: bool = True) -> Crossing:
    """The highest rate up to which `level` of the requests meet all objectives."""
    ordered = sorted(runs, key=lambda run: run.rate)
    return crossing(
        ((run.rate_per_gpu if per_gpu else run.rate, attainment(run, slo).both) for run in ordered),
        level,
    )


def rests_on(runs: Iterable[Run], found: Crossing) -> list[Run]:
    """The runs that a crossing of rates per GPU follows from: up to the first beyond it."""
    ordered = sorted(runs, key=lambda run: run.rate)
    at = -math.inf if found.at is None else found.at
    return ordered[: sum(run.rate_per_gpu <= at for run in ordered) + 1]


def scale_crossing(run: Run, slo: Slo, scales: Iterable[float], level: float) -> Crossing:
    """The tightest scaling of the objectives that `level` of the requests still meet."""
    ordered = sorted(scales, reverse=True)
    return crossing(((s, attainment(run, slo.scaled(s)).both) for s in ordered), level)


@dataclass(frozen=True)
class Normalised:
    """LoongServe's latencies per token of completed requests, in seconds; NaN of nothing."""

    total: float
    input: float
    output: float


def normalised(run: Run) -> Normalised:
    """As its scripts divide: of a request without a prompt there is nothing per input token."""
    whole = [(s.latency, s.prompt_tokens + s.output_tokens) for s in run.samples]
    return Normalised(
        _mean(latency / tokens for latency, tokens in whole if tokens),
        _mean(
            s.ttft / s.prompt_tokens for s in run.samples if s.ttft is not None and s.prompt_tokens
        ),
        _mean(s.tpot for s in run.samples if s.tpot is not None),
    )


def normalised_crossing(runs: Iterable[Run], part: str, limit_seconds: float) -> Crossing:
    """The highest rate per GPU up to which a normalised latency keeps its limit.

    LoongServe's throughput is this rate. `part` is a field of Normalised; a run that did not
    complete a single request took endless, one that did without measuring the figure is left out.
    """
    ordered = sorted(runs, key=lambda run: run.rate)
    values = (
        (run.rate_per_gpu, getattr(normalised(run), part) if run.samples else math.inf)
        for run in ordered
    )
    return crossing(((x, -value) for x, value in values if not math.isnan(value)), -limit_seconds)


@dataclass(frozen=True)
class Throughput:
    """Per second of the run."""

    requests: float
    output_tokens: float
    total_tokens: float
    goodput: float
    """Requests that met all objectives, as DistServe counts it."""
    goodput_tokens: float
    """Output tokens of those requests, as AdaServe counts it."""


def throughput(run: Run, slo: Slo) -> Throughput:
    seconds = run.seconds
    if not seconds:
        return Throughput(0, 0, 0, 0, 0)
    output = sum(s.output_tokens for s in run.samples)
    prompt = sum(s.prompt_tokens for s in run.samples)
    good = [s.output_tokens for s in run.samples if s.meets(slo)]
    return Throughput(
        len(run.samples) / seconds,
        output / seconds,
        (output + prompt) / seconds,
        len(good) / seconds,
        sum(good) / seconds,
    )


def breakdown(run: Run) -> dict[str, float] | None:
    """Mean share of a request's time in each stage; None where the server did not tell.

    Shares are taken per request and then averaged, as in figure 10 of DistServe; where only the
    run's sums are known, they are shares of all requests' time together.
    """
    told = [s.stages for s in run.samples if s.stages and sum(s.stages.values()) > 0]
    means = run.about.get("stage_seconds")
    if not told and means and sum(means.values()) > 0:
        told = [means]
    if not told:
        return None
    return {
        stage: fmean(stages[stage] / sum(stages.values()) for stages in told) for stage in STAGES
    }


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else math.nan
