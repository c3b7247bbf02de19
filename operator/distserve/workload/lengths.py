"""Request lengths from a summary: a mean and a 90th percentile become a lognormal distribution."""

from __future__ import annotations

import math
import random

from distserve.workload.requests import LONGEST_TOKENS, RequestSet, WorkloadError

_HOPELESS_TRIES = 2000
"""Draws in vain that end it. Of more draws one in a hundred has to fit."""
_Z90 = 1.2815515655446004  # 90th percentile of the standard normal distribution


def lognormal(mean: float, p90: float) -> tuple[float, float]:
    """(mu, sigma) of the lognormal distribution with this mean and 90th percentile.

    Raises WorkloadError where there is none: a lognormal's p90 lies between its mean and 2.27 of
    it (below the mean only with tails that no service has).
    """
    if not (0 < mean <= LONGEST_TOKENS and 0 < p90 <= LONGEST_TOKENS):
        raise WorkloadError(
            f"mean and p90 must be above 0 and at most {LONGEST_TOKENS} tokens, got {mean:g} and "
            f"{p90:g}"
        )
    ratio = math.log(p90 / mean)
    if not 0 <= ratio <= _Z90 * _Z90 / 2:
        raise WorkloadError(
            f"no lognormal distribution has mean {mean:g} and p90 {p90:g}; p90 must be between the "
            f"mean and {mean * math.exp(_Z90 * _Z90 / 2):.0f}, or give a trace"
        )
    sigma = _Z90 - math.sqrt(_Z90 * _Z90 - 2 * ratio)
    return math.log(mean) - sigma * sigma / 2, sigma


def from_summary(
    prompt: tuple[float, float],
    output: tuple[float, float],
    limit_tokens: int,
    count: int,
    seed: int = 0,
) -> RequestSet:
    """`count` requests whose prompts and outputs have these (mean, p90), drawn independently.

    Pairs whose sum exceeds `limit_tokens` are drawn anew, as the model could not serve them.
    """
    draw = random.Random(seed)
    prompt_parameters, output_parameters = lognormal(*prompt), lognormal(*output)
    prompts: list[int] = []
    outputs: list[int] = []
    tries = 0
    while len(prompts) < count:
        tries += 1
        if tries > 100 * len(prompts) + _HOPELESS_TRIES:
            raise WorkloadError(
                f"hardly any request of this workload fits {limit_tokens} tokens; "
                "lower the lengths or raise maxModelLen"
            )
        p = max(1, round(draw.lognormvariate(*prompt_parameters)))
        o = max(1, round(draw.lognormvariate(*output_parameters)))
        if p + o <= limit_tokens:
            prompts.append(p)
            outputs.append(o)
    return RequestSet(prompts, outputs, name="workload.lengths")
