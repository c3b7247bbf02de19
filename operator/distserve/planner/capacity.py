"""The rate that a fleet could sustain if nothing ever waited: the top of what a search probes.

A short simulation can pass at a rate that a long one could not sustain, since its queues have no
time to grow; capacity is the limit of the long run. It does not depend on the SLO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies.fleet import Fleet
from distserve.workload import RequestSet


@dataclass(frozen=True)
class MeanRequest:
    """Averages of a request set."""

    prompt_tokens: float
    squared_prompt_tokens: float
    output_tokens: float

    @classmethod
    def of(cls, requests: RequestSet) -> MeanRequest:
        count = len(requests)
        return cls(
            sum(requests.prompt_tokens) / count,
            sum(n * n for n in requests.prompt_tokens) / count,
            sum(requests.output_tokens) / count,
        )


def prefill_ms_per_request(spec: InstanceSpec, mean: MeanRequest) -> float:
    """Time of the first stage that one request costs in full batches."""
    batch = min(max(spec.max_batched_tokens / mean.prompt_tokens, 1.0), spec.max_requests)
    stage_ms = spec.times.prefill_ms(
        round(batch * mean.prompt_tokens), round(batch * mean.squared_prompt_tokens), spec.pp
    )
    return stage_ms / batch


def decode_ms_per_request(spec: InstanceSpec, mean: MeanRequest) -> float:
    """Time of the first stage that one request costs when as many decode as memory holds.

    With several stages as many batches circulate, each with its share of the requests.
    """
    steps = max(mean.output_tokens - 1, 0.0)
    whole = mean.prompt_tokens + mean.output_tokens
    resident = min(spec.kv_tokens / whole, spec.max_requests)
    batch = max(resident / spec.pp, 1.0)
    context = mean.prompt_tokens + steps / 2
    stage_ms = spec.times.decode_ms(round(batch), round(batch * context), spec.pp)
    return steps * stage_ms / batch


def capacity(fleet: Fleet, mean: MeanRequest) -> float:
    """Requests per second."""
    prefill_ms = prefill_ms_per_request(fleet.prefill, mean)
    if fleet.decode is None:
        both_ms = prefill_ms + decode_ms_per_request(fleet.prefill, mean)
        return 1000 / both_ms * fleet.prefill_instances
    decode_ms = decode_ms_per_request(fleet.decode, mean)
    # A role whose time is 0 (nothing to decode, or a phase that is left out) does not limit.
    return min(
        1000 / cost_ms * instances if cost_ms > 0 else math.inf
        for cost_ms, instances in (
            (prefill_ms, fleet.prefill_instances),
            (decode_ms, fleet.decode_instances),
        )
    )
