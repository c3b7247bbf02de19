"""Measures what a deployment adds to its engines' steps, where its server tells no stages of
requests (else `loads` does): clients of an otherwise idle one.

A few requests at a time, with nothing beside them: what their first token takes beyond the prefill,
the second beyond a decode step, and each step with how many streams. The planner takes the steps'
own times off these (`distserve.planner.serving_fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from distserve.bench.outcome import Outcome
from distserve.profile.asking import Asker, within
from distserve.profile.database import Served
from distserve.profile.errors import ProfileError

EQUAL = ((32,), (256,), (32,) * 2, (32,) * 4, (32,) * 8, (32,) * 16)
"""Prompts of requests that are sent at once. Several have short ones: the last prefill must end
before the first stream does."""
UNEQUAL = ((512, 512, 128, 128, 64, 64, 32, 32),)
"""As those of a load are. The long ones first, for the same reason."""
PROMPTS = EQUAL + UNEQUAL
OUTPUT_TOKENS, UNEQUAL_OUTPUT_TOKENS = 48, 128
LONGEST = max(UNEQUAL[0]) + UNEQUAL_OUTPUT_TOKENS
ROUNDS = 3
"""Of each point, after one that is not counted."""


@dataclass(frozen=True)
class Round:
    """Medians of requests that ran at once, in ms."""

    ttft: float
    handover: float
    step: float


async def measure(
    asker: Asker,
    add: Callable[[Served], None],
    prompts: Sequence[Sequence[int]] = PROMPTS,
    rounds: int = ROUNDS,
    most: int | None = None,
) -> None:
    """Of requests that have at most `most` tokens each. Raises ProfileError where the server does
    not answer as it should."""
    for usual in prompts:
        output_tokens = OUTPUT_TOKENS if len(set(usual)) == 1 else UNEQUAL_OUTPUT_TOKENS
        lengths, output_tokens = within(most, usual, output_tokens)
        before = await asker.moved_bytes()
        outcomes = [await asker.ask(lengths, output_tokens) for _ in range(rounds + 1)][1:]
        after = await asker.moved_bytes()
        seen = [round_of(of_one) for of_one in outcomes]
        # A server that knows no `ignore_eos` ends answers when it likes.
        came = fmean(outcome.tokens for of_one in outcomes for outcome in of_one)
        add(
            Served(
                streams=len(lengths),
                input_len=round(fmean(lengths)),
                longest_len=max(lengths),
                output_len=round(came),
                context_len=fmean(lengths) + came / 2,
                ttft=median(one.ttft for one in seen),
                handover=median(one.handover for one in seen),
                step=median(one.step for one in seen),
                migrated=after > before,
            )
        )


def round_of(outcomes: Sequence[Outcome]) -> Round:
    """Steps are taken while all streams decode: from the last one's second token to the first
    one's end. Raises ProfileError where there is no such time."""
    if min(len(outcome.token_times) for outcome in outcomes) < 2:
        raise ProfileError(
            "an answer ended with its first token, and after it nothing can be measured; take a "
            "server that knows `ignore_eos`"
        )
    begun = max(outcome.token_times[1] for outcome in outcomes)
    ended = min(outcome.token_times[-1] for outcome in outcomes)
    steps = []
    for outcome in outcomes:
        times = [t for t in outcome.token_times if begun <= t <= ended]
        if len(times) > 1:
            steps.append((times[-1] - times[0]) / (len(times) - 1))
    if not steps:
        raise ProfileError(
            "the streams never decoded at once; is the deployment idle, and does it hold "
            f"{len(outcomes)} requests?"
        )
    return Round(
        ttft=1000 * median(o.token_times[0] - o.sent for o in outcomes),
        handover=1000 * median(o.token_times[1] - o.token_times[0] for o in outcomes),
        step=1000 * median(steps),
    )
