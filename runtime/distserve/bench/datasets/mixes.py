"""Mixtures of request sets: LoongServe's Mixed and Zipf, AdaServe's three classes."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

from distserve.bench.datasets.builders import Request
from distserve.bench.errors import BenchError
from distserve.bench.synthetic import ADASERVE_SHARES, zipf_lengths
from distserve.workload import NO_OBJECTIVES, Objectives

_SHORTEST_PROMPT, _SHORTEST_OUTPUT = 16, 4
MIXED_OF_EACH = 1500
ADASERVE_OUTPUT_TOKENS = 256


def mixed(
    sets: Sequence[Sequence[Request]], draw: random.Random, each: int = MIXED_OF_EACH
) -> list[Request]:
    """As many of each set, shuffled together; no prompts below 16 tokens, no outputs below 4."""
    chosen: list[Request] = []
    for number, requests in enumerate(sets, start=1):
        fitting = [
            request
            for request in requests
            if request.prompt_tokens >= _SHORTEST_PROMPT
            and request.output_tokens >= _SHORTEST_OUTPUT
        ]
        if len(fitting) < each:
            cure = f"give a longer file, or --count {len(fitting)}" if fitting else "leave it out"
            raise BenchError(
                f"set {number} has {len(fitting)} requests of {_SHORTEST_PROMPT} and "
                f"{_SHORTEST_OUTPUT} tokens or more, not {each}; {cure}"
            )
        chosen += draw.sample(fitting, each)
    draw.shuffle(chosen)
    return chosen


def zipf(
    sets: Sequence[Sequence[Request]], alpha: float, count: int, seed: int, beta: float = 0.0
) -> list[Request]:
    """Lengths of weight 1/(x + beta)^alpha, each answered by a prompt of the nearest length."""
    by_length: dict[int, list[Request]] = {}
    for requests in sets:
        for request in requests:
            by_length.setdefault(request.prompt_tokens, []).append(request)
    lengths = sorted(by_length)
    draw = random.Random(f"zipf {seed}")
    return [
        draw.choice(by_length[_nearest(lengths, length)])
        for length in zipf_lengths(alpha, count, seed, beta)
    ]


def classes(
    sets: Sequence[Sequence[Request]],
    count: int,
    draw: random.Random,
    shares: Sequence[float] = ADASERVE_SHARES,
    output_tokens: int = ADASERVE_OUTPUT_TOKENS,
    slo_tpots_ms: Sequence[float] | None = None,
) -> list[Request]:
    """AdaServe's mix of coding, chat and summarisation; all answers of one length.

    Each class has a pace of its own there: `slo_tpots_ms`, which depend on the machine.
    """
    if len(sets) != len(shares):
        raise BenchError(f"{len(shares)} sets are mixed, coding, chat, summarisation; give those")
    picked = draw.choices(range(len(sets)), weights=shares, k=count)
    if slo_tpots_ms is None:
        own = [NO_OBJECTIVES] * len(sets)
    elif len(slo_tpots_ms) == len(sets):
        own = [Objectives(tpot_ms=ms) for ms in slo_tpots_ms]
    else:
        raise BenchError(f"{len(slo_tpots_ms)} objectives for {len(sets)} sets; give one for each")
    requests = [(draw.choice(sets[index]), own[index]) for index in picked]
    return [Request(r.prompt, r.prompt_tokens, output_tokens, slo) for r, slo in requests]


def _nearest(ordered: Sequence[int], wanted: int) -> int:
    """The shorter of two equally near, as LoongServe's search finds it."""
    at = bisect_left(ordered, wanted)
    around = ordered[max(at - 1, 0) : at + 1]
    return min(around, key=lambda length: abs(length - wanted))
