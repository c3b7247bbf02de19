"""Synthetic stand-ins for request sets: lengths by a stated distribution, always labelled.

Whatever is made here has a name that starts with `synthetic:`; reports show it. The named ones have
mean lengths that were published of the sets they stand for; their spread (90th percentiles) is our
choice, and texts, repeats and correlations of the real sets are absent. Requests are drawn one
after another, so a shorter set is the beginning of a longer one.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate

from distserve.bench.errors import BenchError
from distserve.workload import Objectives, RequestSet, WorkloadError
from distserve.workload.lengths import from_summary

NAMED = {
    "sharegpt": "lognormal,prompt=755.5/1608,output=200.3/447,limit=2048",
    "humaneval": "lognormal,prompt=171.3/280,output=98.2/180,limit=2048",
    "longbench": "lognormal,prompt=1738.3/1950,output=90.7/200,limit=2048",
    "l-eval": "lognormal,prompt=14326/30000,output=80/170,limit=500000",
    "lv-eval": "lognormal,prompt=153570/320000,output=32/64,limit=500000",
    "alpaca": "lognormal,prompt=18/30,output=256/256,limit=2048",
    "cnn": "lognormal,prompt=776/1300,output=256/256,limit=4096",
}
"""Name -> distribution, in the same words that a user may write.

The means of the first three are the DistServe paper's. L-Eval's and LV-Eval's are worked out of
their authors' tables, which count words, at L-Eval's 1.5 tokens a word; LV-Eval's answers are our
choice. The prompts of the last two, and all their outputs, are AdaServe's.
"""
_MIXED = ("sharegpt", "l-eval", "lv-eval")
_ADASERVE = ("lognormal,prompt=132/220,output=256/256,limit=2048", "alpaca", "cnn")
"""Coding (HumanEval, as AdaServe counts it), chat, summarisation."""
ADASERVE_SHARES = (0.6, 0.2, 0.2)
_ZIPF_LOWEST, _ZIPF_HIGHEST = 10, 199_999
_UNLIMITED = 1 << 30


def synthetic(words: str, count: int, seed: int, limit_tokens: int | None = None) -> RequestSet:
    """`count` requests of what stands behind `synthetic:`, none longer together than the limit.

    | words | |
    |---|---|
    | `sharegpt` and the other names | see NAMED |
    | `fixed,prompt=256,output=32` | all alike |
    | `lognormal,prompt=MEAN/P90,output=MEAN/P90[,limit=2048]` | drawn independently |
    | `zipf,alpha=1.2[,output=64][,beta=0][,limit=8192]` | prompts of weight (x + beta)^-alpha |
    | `mixed` | LoongServe's: ShareGPT, L-Eval and LV-Eval alike |
    | `adaserve[,shares=60/20/20][,slo-tpot-ms=36/50/150]` | coding, chat, summarisation |

    What exceeds the limit is drawn anew. Raises BenchError or WorkloadError with the cure.
    """
    kind, _, rest = NAMED.get(words, words).partition(",")
    if kind not in _MAKERS:
        raise BenchError(
            f"unknown synthetic set {words!r}; choose one of {', '.join(sorted(NAMED))}, mixed or "
            "adaserve, or fixed, lognormal or zipf with their parameters (docs/bench.md)"
        )
    fields = dict(_field(part, words) for part in rest.split(",") if part)
    make, allowed = _MAKERS[kind]
    if unknown := sorted(fields.keys() - allowed):
        raise BenchError(
            f"synthetic:{words}: {kind} has no {', '.join(unknown)}; "
            f"its parameters are {', '.join(sorted(allowed)) or 'none'}"
        )
    limits = (*fields.get("limit", ()), _UNLIMITED if limit_tokens is None else limit_tokens)
    limit = int(min(limits))
    try:
        made = make(fields, count, seed, limit)
    except KeyError as error:
        raise BenchError(f"synthetic:{words} lacks {error.args[0]}; add it as NAME=VALUE") from None
    except WorkloadError:
        raise
    except (ValueError, ArithmeticError) as error:  # of numbers that nothing can be drawn by
        raise BenchError(f"synthetic:{words}: {error}; give smaller numbers") from error
    return replace(made, name=f"synthetic:{words}")


def _field(part: str, words: str) -> tuple[str, tuple[float, ...]]:
    name, _, value = part.partition("=")
    with suppress(ValueError):
        values = tuple(float(number) for number in value.split("/"))
        if all(map(math.isfinite, values)):
            return name, values
    raise BenchError(f"synthetic:{words}: {part!r} is no NAME=VALUE; write as prompt=755/1608")


Fields = dict[str, tuple[float, ...]]


def _fixed(fields: Fields, count: int, seed: int, limit: int) -> RequestSet:
    prompt, output = (int(fields[name][0]) for name in ("prompt", "output"))
    return RequestSet([prompt] * count, [output] * count, name="fixed").within(limit)


def _lognormal(fields: Fields, count: int, seed: int, limit: int) -> RequestSet:
    return from_summary(_pair(fields, "prompt"), _pair(fields, "output"), limit, count, seed)


def _pair(fields: Fields, name: str) -> tuple[float, float]:
    values = fields[name]
    if len(values) != 2:
        raise BenchError(f"{name} needs a mean and a 90th percentile; write {name}=755/1608")
    return values[0], values[1]


def _zipf(fields: Fields, count: int, seed: int, limit: int) -> RequestSet:
    output = int(fields.get("output", (64.0,))[0])
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
        raise BenchError(
            f"no lengths between {lowest} and {highest}; raise beta, limit or --max-model-len"
        )
    totals = list(accumulate((x + beta) ** -alpha for x in range(lowest, highest + 1)))
    draw = random.Random(seed)
    return [
        lowest + min(bisect(totals, draw.random() * totals[-1]), highest - lowest)
        for _ in range(count)
    ]


def _mixed(fields: Fields, count: int, seed: int, limit: int) -> RequestSet:
    made, _ = _mix(_MIXED, (1.0, 1.0, 1.0), count, seed, limit)
    return made


def _adaserve(fields: Fields, count: int, seed: int, limit: int) -> RequestSet:
    shares = _three(fields, "shares", ADASERVE_SHARES)
    made, picked = _mix(_ADASERVE, shares, count, seed, limit)
    if "slo-tpot-ms" not in fields:
        return made
    own = [Objectives(tpot_ms=ms) for ms in _three(fields, "slo-tpot-ms")]
    return replace(made, objectives=[own[part] for part in picked])


def _three(fields: Fields, name: str, default: Sequence[float] | None = None) -> Sequence[float]:
    values = fields.get(name, default)
    if values is None or len(values) != len(_ADASERVE) or min(values) < 0 or not sum(values):
        raise BenchError(f"{name} is of coding, chat and summarisation; write {name}=60/20/20")
    return values


def _mix(
    parts: Sequence[str], shares: Sequence[float], count: int, seed: int, limit: int
) -> tuple[RequestSet, list[int]]:
    """Of each request one of the parts is drawn; also which."""
    sets = [
        synthetic(part, count, random.Random(f"{part} {seed}").getrandbits(32), limit)
        for part in parts
    ]
    picked = random.Random(f"mix {seed}").choices(range(len(parts)), weights=shares, k=count)
    rows = [(sets[part], row) for row, part in enumerate(picked)]
    made = RequestSet(
        [chosen.prompt_tokens[row] for chosen, row in rows],
        [chosen.output_tokens[row] for chosen, row in rows],
    )
    return made, picked


_MAKERS: dict[str, tuple[Callable[[Fields, int, int, int], RequestSet], set[str]]] = {
    "fixed": (_fixed, {"prompt", "output"}),
    "lognormal": (_lognormal, {"prompt", "output", "limit"}),
    "zipf": (_zipf, {"alpha", "beta", "output", "limit"}),
    "mixed": (_mixed, {"limit"}),
    "adaserve": (_adaserve, {"shares", "slo-tpot-ms", "limit"}),
}
