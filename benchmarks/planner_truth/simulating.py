"""The same deployment and the same requests in the planner's simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.planner_truth.deployment import (
    KV_CACHE_MIB,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
)
from benchmarks.planner_truth.figures import STAGES, Request
from benchmarks.planner_truth.offering import (
    MEAN_OUTPUT_TOKENS,
    MEAN_PROMPT_TOKENS,
    burst,
    steady_rate,
)

from distserve.bench.outcome import Planned
from distserve.planner.links import load_link
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import RunResult, Slo
from distserve.planner.simulator import InstanceSpec, Lifecycle, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.workload import Trace

SLO_TTFT, SLO_TPOT = 6.0, 3.0
"""Targets: times what a mean request gets that is alone, by the profile."""


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


def simulate(strategy: str, fleet: Fleet, plan: Sequence[Planned]) -> list[Request]:
    life, result = _run(strategy, fleet, plan)
    arrivals = result.trace.arrival_ms
    return [
        Request(round(ttft_ms, 3), round(tpot_ms, 4), _stages(life, index, arrivals[index]))
        for index, (ttft_ms, tpot_ms) in enumerate(zip(result.ttft_ms, result.tpot_ms, strict=True))
    ]


def simulated_capacity(strategy: str, fleet: Fleet, requests: int) -> float:
    """Requests a second, of the burst that the real one was measured with."""
    _, result = _run(strategy, fleet, burst(requests))
    return 1000 * steady_rate(result.finish_ms)


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
