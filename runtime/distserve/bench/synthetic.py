"""Synthetic stand-ins for request sets: lengths by a stated distribution, always labelled.

Whatever is made here has a name that starts with `synthetic:`; reports show it. The named ones
have the mean lengths that the DistServe paper gives for its data sets; their spread (90th
percentiles) is our choice, and texts, repeats and correlations of the real sets are absent.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate

from distserve.bench.errors import BenchError
from distserve.workload import RequestSet
from distserve.workload.lengths import from_summary

NAMED = {
    "sharegpt": "lognormal,prompt=755.5/1608,output=200.3/447,limit=2048",
    "humaneval": "lognormal,prompt=171.3/280,output=98.2/180,limit=2048",
    "longbench": "lognormal,prompt=1738.3/1950,output=90.7/200,limit=2048",
}
"""Name -> distribution, in the same words that a user may write."""
_ZIPF_LOWEST, _ZIPF_HIGHEST = 10, 199_999


def synthetic(words: str, count: int, seed: int) -> RequestSet:
    """`count` requests of what stands behind `synthetic:`. Raises BenchError with the cure.

    | words | |
    |---|---|
    | `sharegpt`, `humaneval`, `longbench` | see NAMED |
    | `fixed,prompt=256,output=32` | all alike |
    | `lognormal,prompt=MEAN/P90,output=MEAN/P90[,limit=2048]` | drawn independently |
    | `zipf,alpha=1.2[,output=64][,beta=0][,limit=200000]` | prompts of weight (x + beta)^-alpha |
    """
    kind, _, rest = NAMED.get(words, words).partition(",")
    if kind not in _MAKERS:
        raise BenchError(
            f"unknown synthetic set {words!r}; choose one of {', '.join(sorted(NAMED))}, or "
            "fixed, lognormal or zipf with their parameters (docs/bench.md)"
        )
    fields = dict(_field(part, words) for part in rest.split(",") if part)
    make, allowed = _MAKERS[kind]
    if unknown := sorted(fields.keys() - allowed):
        raise BenchError(
            f"synthetic:{words}: {kind} has no {', '.join(unknown)}; "
            f"its parameters are {', '.join(sorted(allowed))}"
        )
    try:
        made = make(fields, count, seed)
    except KeyError as error:
        raise BenchError(f"synthetic:{words} lacks {error.args[0]}; add it as NAME=VALUE") from None
    return RequestSet(made.prompt_tokens, made.output_tokens, name=f"synthetic:{words}")


def _field(part: str, words: str) -> tuple[str, tuple[float, ...]]:
    name, _, value = part.partition("=")
    try:
        return name, tuple(float(number) for number in value.split("/"))
    except ValueError as error:
        raise BenchError(
            f"synthetic:{words}: {part!r} is no NAME=VALUE; write as prompt=755/1608"
        ) from error


Fields = dict[str, tuple[float, ...]]


def _fixed(fields: Fields, count: int, seed: int) -> RequestSet:
    return RequestSet([int(fields["prompt"][0])] * count, [int(fields["output"][0])] * count)


def _lognormal(fields: Fields, count: int, seed: int) -> RequestSet:
    limit = int(fields.get("limit", (1 << 30,))[0])
    return from_summary(_pair(fields, "prompt"), _pair(fields, "output"), limit, count, seed)


def _pair(fields: Fields, name: str) -> tuple[float, float]:
    values = fields[name]
    if len(values) != 2:
        raise BenchError(f"{name} needs a mean and a 90th percentile; write {name}=755/1608")
    return values[0], values[1]


def _zipf(fields: Fields, count: int, seed: int) -> RequestSet:
    output = int(fields.get("output", (64.0,))[0])
    limit = int(fields.get("limit", (200_000.0,))[0])
    highest = min(_ZIPF_HIGHEST, limit - output)
    lengths = zipf_lengths(
        fields["alpha"][0], count, seed, fields.get("beta", (0.0,))[0], highest=highest
    )
    return RequestSet(lengths, [output] * count)


def zipf_lengths(
    alpha: float,
    count: int,
    seed: int,
    beta: float = 0.0,
    lowest: int = _ZIPF_LOWEST,
    highest: int = _ZIPF_HIGHEST,
) -> list[int]:
    """Lengths with weight 1/(x + beta)^alpha, LoongServe's generator for its ablation."""
    if highest < lowest or lowest + beta <= 0:
        raise BenchError(f"no lengths between {lowest} and {highest}; raise limit or beta")
    totals = list(accumulate((x + beta) ** -alpha for x in range(lowest, highest + 1)))
    draw = random.Random(seed)
    return [
        lowest + min(bisect(totals, draw.random() * totals[-1]), highest - lowest)
        for _ in range(count)
    ]


_MAKERS: dict[str, tuple[Callable[[Fields, int, int], RequestSet], set[str]]] = {
    "fixed": (_fixed, {"prompt", "output"}),
    "lognormal": (_lognormal, {"prompt", "output", "limit"}),
    "zipf": (_zipf, {"alpha", "beta", "output", "limit"}),
}
