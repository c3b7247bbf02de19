"""The same deployment and the same requests in the planner's simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from benchmarks.planner_truth.deployment import (
    KV_CACHE_MIB,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
)
from benchmarks.planner_truth.figures import STAGES, Request
from benchmarks.planner_truth.offering import (
    MEAN_OUTPUT_TOKENS,
    MEAN_PROMPT_TOKENS,
    rate_meanwhile,
)

from distserve.bench.outcome import Planned
from distserve.planner.links import load_link
from distserve.planner.models import ModelShape
from distserve.planner.pace import Pace
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import RunResult, Slo
from distserve.planner.simulator import InstanceSpec, Lifecycle, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.workload import Trace

SLO_TTFT, SLO_TPOT = 6.0, 3.0
"""Targets: times what a mean request gets that is alone, by the profile."""
DRAWS = 20
"""Of when the machine is slow."""


def fleet_of(strategy: str, profile: HardwareProfile, model: ModelShape) -> Fleet:
    spec = InstanceSpec(
        profile.times(model, 1),
        kv_tokens=(KV_CACHE_MIB << 20) // model.kv_bytes_per_token,
        max_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_requests=MAX_NUM_SEQS,
        serving=profile.serving(model, 1),
    )
    if strategy == "Colocated":
        return Fleet(spec, None, 1, 0)
    return Fleet(
        spec, spec, link=load_link(), kv_bytes_per_token=model.kv_bytes_per_token,
        shared_machines=True,
    )  # fmt: skip


def at_pace(fleet: Fleet, pace: Pace) -> Fleet:
    """The same on a machine that is as fast from second to second."""

    def spec_at(spec: InstanceSpec) -> InstanceSpec:
        return replace(spec, serving=replace(spec.serving, pace=pace))

    decode = None if fleet.decode is None else spec_at(fleet.decode)
    return replace(fleet, prefill=spec_at(fleet.prefill), decode=decode)


def draws_of(fleet: Fleet) -> list[Fleet]:
    """The same fleet, whose machine is slow at other times in each."""
    pace = fleet.prefill.serving.pace
    length = len(pace.prefill)
    return [at_pace(fleet, pace.later(nth * length // DRAWS)) for nth in range(DRAWS)]


def simulate(strategy: str, fleet: Fleet, plan: Sequence[Planned]) -> list[Request]:
    life, result = _run(strategy, fleet, plan)
    arrivals = result.trace.arrival_ms
    return [
        Request(round(ttft_ms, 3), round(tpot_ms, 4), _stages(life, index, arrivals[index]))
        for index, (ttft_ms, tpot_ms) in enumerate(zip(result.ttft_ms, result.tpot_ms, strict=True))
    ]


def simulated_capacity(strategy: str, fleet: Fleet, overload: Sequence[Planned]) -> float:
    """Requests a second, of the overload that the real one was measured with; mean of the draws."""

    def of(drawn: Fleet) -> float:
        _, result = _run(strategy, drawn, overload)
        begun = 1000 * overload[0].at_seconds
        ends = [(end - begun) / 1000 for end in result.finish_ms]
        return rate_meanwhile(ends, overload[-1].at_seconds)

    return fmean(map(of, draws_of(fleet)))


def _run(strategy: str, fleet: Fleet, plan: Sequence[Planned]) -> tuple[Lifecycle, RunResult]:
    trace = Trace(
        [r.prompt_tokens for r in plan],
        [r.output_tokens for r in plan],
        [1000 * r.at_seconds for r in plan],
    )
    simulation = Simulation(trace)
    result = simulation.run(strategy_class(strategy)(simulation, fleet))
    return simulation.life, result


def _stages(life: Lifecycle, request: int, arrival_ms: float) -> dict[str, float]:
    prefilled, ready = life.first_token_ms[request], life.migrated_ms[request]
    instants = (
        arrival_ms, life.prefill_ms[request], prefilled,
        prefilled if math.isnan(ready) else ready, life.finish_ms[request],
    )  # fmt: skip
    pairs = pairwise(instants)
    return {stage: end - begin for stage, (begin, end) in zip(STAGES, pairs, strict=True)}


def slo_of(profile: HardwareProfile, model: ModelShape) -> Slo:
    times, serving = profile.times(model, 1), profile.serving(model, 1)
    tokens = MEAN_PROMPT_TOKENS
    return Slo(
        round(
            SLO_TTFT
            * (serving.request_ms + serving.prompt_ms + times.prefill_ms(tokens, tokens**2))
        ),
        round(SLO_TPOT * times.decode_ms(1, tokens + MEAN_OUTPUT_TOKENS // 2), 1),
    )
