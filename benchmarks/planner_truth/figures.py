"""The nouns of the comparison: what was seen of a run, how far the simulated one is from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from distserve.planner.pace import Pace
from distserve.planner.result import Slo, quantile

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the SLO, both of its times: how much of an attainment's error is where the SLO was put."""
STAGES = ("queueing", "prefill", "hand-over", "decode")


@dataclass(frozen=True)
class Request:
    """One request of a run, real or simulated."""

    ttft_ms: float
    tpot_ms: float
    stages_ms: Mapping[str, float]
    """By STAGES, from the request's way into its queue to its last token."""


@dataclass(frozen=True)
class Seen:
    """Figures of one run, real or simulated."""

    attainment: Mapping[float, float]
    """Percent of requests within the SLO, by the SLO's scale."""
    ttft_p50_ms: float
    ttft_p90_ms: float
    tpot_p50_ms: float
    tpot_p90_ms: float
    stages_ms: Mapping[str, float]
    """Means over the requests."""

    @classmethod
    def of(cls, requests: Sequence[Request], slo: Slo) -> Seen:
        ttft = sorted(request.ttft_ms for request in requests)
        tpot = sorted(request.tpot_ms for request in requests)
        return cls(
            {scale: _attainment(requests, slo.scaled(scale)) for scale in SCALES},
            quantile(ttft, 50), quantile(ttft, 90), quantile(tpot, 50), quantile(tpot, 90),
            {s: _mean([r.stages_ms.get(s, math.nan) for r in requests]) for s in STAGES},
        )  # fmt: skip

    @classmethod
    def mean(cls, draws: Sequence[Seen]) -> Seen:
        """Of several simulated runs, figure by figure, as of several real ones."""

        def of(name: str) -> float:
            return _mean([getattr(seen, name) for seen in draws])

        return cls(
            {scale: _mean([seen.attainment[scale] for seen in draws]) for scale in SCALES},
            of("ttft_p50_ms"), of("ttft_p90_ms"), of("tpot_p50_ms"), of("tpot_p90_ms"),
            {stage: _mean([seen.stages_ms[stage] for seen in draws]) for stage in STAGES},
        )  # fmt: skip


def _attainment(requests: Sequence[Request], slo: Slo) -> float:
    met = sum(r.ttft_ms <= slo.ttft_ms and r.tpot_ms <= slo.tpot_ms for r in requests)
    return 100 * met / len(requests)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Compared:
    """One rate with one seed."""

    model: str
    strategy: str
    measurement: int
    """Counted from 1: several of one setup have a profile each, and arrivals of their own."""
    share: float
    rate: float
    seed: int
    requests: int
    real: Seen
    simulated: Seen
    """With the profile."""
    beside: Seen
    """With the profile's terms, in the pace of the loads before and after the run."""
    paced: Seen
    """With the profile at the pace, second by second, that the run's own steps tell."""
    pace: Pace
    client_lag_p99_ms: float
    others_cpu: float
    """Cores that processes of others took meanwhile."""
    real_requests: Sequence[Request]
    simulated_requests: Sequence[Request]
    """Both in order of arrival; simulated in the first draw."""


@dataclass(frozen=True)
class Setup:
    """What a model's runs with one strategy have in common."""

    model: str
    strategy: str
    capacity: float
    simulated_capacity: float
    slo_ttft_ms: float
    slo_tpot_ms: float
    profile: Mapping[str, Any]
    """As the planner reads it."""


@dataclass(frozen=True)
class Errors:
    """Of one rate, over its repeats: points, and percent of the real figure."""

    attainment: Sequence[float]
    attainment_over_scales: Sequence[float]
    """Mean of the absolute errors over SCALES, of each repeat."""
    ttft_p90: Sequence[float]
    tpot_p90: Sequence[float]
    of_means: Mapping[str, float]
    """By the names above but for the scales: of the figures' means over the repeats. A mean of
    percents would make the most of those whose real figure came out small."""
    standard: Mapping[str, float]
    """Standard errors of these, by how the repeats scatter. Of a single repeat: not a number."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[Seen, Seen]]) -> Errors:
        """Of (simulated, real)."""

        def percent(name: str) -> list[float]:
            found = [(getattr(simulated, name), getattr(real, name)) for simulated, real in pairs]
            return [100 * (simulated / real - 1) for simulated, real in found]

        def points(simulated: Seen, real: Seen, scale: float) -> float:
            return simulated.attainment[scale] - real.attainment[scale]

        def percent_of_mean(name: str) -> list[float]:
            """Their mean is how far the mean simulated figure is from the mean real one."""
            found = [(getattr(simulated, name), getattr(real, name)) for simulated, real in pairs]
            whole = _mean([real for _, real in found])
            return [100 * (simulated - real) / whole for simulated, real in found]

        attainment = [points(*pair, 1.0) for pair in pairs]
        judged = {
            "attainment": attainment,
            "ttft_p90": percent_of_mean("ttft_p90_ms"),
            "tpot_p90": percent_of_mean("tpot_p90_ms"),
        }
        return cls(
            attainment,
            [_mean([abs(points(*pair, scale)) for scale in SCALES]) for pair in pairs],
            percent("ttft_p90_ms"),
            percent("tpot_p90_ms"),
            {name: _mean(errors) for name, errors in judged.items()},
            {name: _standard(errors) for name, errors in judged.items()},
        )


def _standard(errors: Sequence[float]) -> float:
    return stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else math.nan
