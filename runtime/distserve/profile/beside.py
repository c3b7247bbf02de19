"""Measures what instances take from each other: requests that come while streams decode.

Some streams decode all the while; requests come one by one, with pauses in which the streams are
alone again. How much later the streams' tokens are because of a request, and how much later its own
first token is because of the streams, for a short prompt and a long one: what grows with the
prefill's time is taken by the prefill computing beside them, the rest by the request as such
(`distserve.planner.serving`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from distserve.bench.outcome import Outcome
from distserve.profile.asking import Asker
from distserve.profile.database import Beside
from distserve.profile.errors import ProfileError

STREAMS = 8
STREAM_TOKENS = (32, 384)
"""Of each stream: prompt and output."""
LENGTHS = (32, 256)
"""Prompts of the requests that come."""
REQUEST_TOKENS = 2
"""Of each request's output: it joins those that decode, and leaves."""
PAUSE_SECONDS = 0.1
ALONE = 5
"""Requests of each length without streams beside them."""
ROUNDS = 3
"""Lives of the streams for each length."""


@dataclass(frozen=True)
class Round:
    """What one life of the streams told, in ms."""

    step: float
    """Of the streams alone, mean."""
    lost: float
    """By which the streams' tokens came later for each request, mean."""


async def measure(
    asker: Asker,
    add: Callable[[Beside], None],
    lengths: Sequence[int] = LENGTHS,
    rounds: int = ROUNDS,
) -> None:
    """Raises ProfileError where the server does not answer as it should."""
    for length in lengths:
        before = await asker.moved_bytes()
        alone = [await _one(asker, length) for _ in range(ALONE + 1)][1:]
        migrated = await asker.moved_bytes() > before
        lives = [await _life(asker, length) for _ in range(rounds)]
        found = [round_of(streams, requests) for streams, requests in lives]
        requests = [one for streams, all_ in lives for one in within(streams, all_)]
        add(
            Beside(
                streams=STREAMS,
                input_len=length,
                requests=len(requests),
                context_len=STREAM_TOKENS[0] + STREAM_TOKENS[1] / 2,
                step=median(one.step for one in found),
                lost=median(one.lost for one in found),
                ttft_alone=median(map(_ttft_ms, alone)),
                ttft=median(map(_ttft_ms, requests)),
                handover_alone=median(map(_handover_ms, alone)),
                handover=median(map(_handover_ms, requests)),
                migrated=migrated,
            )
        )


async def _one(asker: Asker, length: int) -> Outcome:
    (outcome,) = await asker.ask(1, length, REQUEST_TOKENS)
    return outcome


async def _life(asker: Asker, length: int) -> tuple[list[Outcome], list[Outcome]]:
    """The streams from their beginning to their end, and the requests that came meanwhile."""
    streams = asyncio.create_task(asker.ask(STREAMS, *STREAM_TOKENS))
    requests = []
    try:
        while not streams.done():
            await asyncio.wait({streams}, timeout=PAUSE_SECONDS)
            if not streams.done():
                requests.append(await _one(asker, length))
        return await streams, requests
    finally:
        streams.cancel()


def _decoding(streams: Sequence[Outcome]) -> tuple[float, float]:
    """While all of them decode: from the last one's second token to the first one's end."""
    begun = max(stream.token_times[1] for stream in streams)
    return begun, min(stream.token_times[-1] for stream in streams)


def within(streams: Sequence[Outcome], requests: Sequence[Outcome]) -> list[Outcome]:
    """Requests that came and went while all streams decoded."""
    begun, ended = _decoding(streams)
    return [r for r in requests if begun <= r.sent and r.ended <= ended]


def round_of(streams: Sequence[Outcome], requests: Sequence[Outcome]) -> Round:
    """Raises ProfileError where no request came while the streams decoded, or none did not."""
    begun, ended = _decoding(streams)
    counted = within(streams, requests)
    others = [r for r in requests if r not in counted]
    alone: list[float] = []
    beside: list[float] = []
    for first, second in pairwise(streams[0].token_times):
        if first < begun or second > ended:
            continue
        step = second - first

        def meets(request: Outcome, first: float = first, second: float = second) -> bool:
            # What a request leaves behind when it ends is done in the step that follows.
            return request.sent < second and first < request.ended + (second - first)

        if any(map(meets, others)):
            continue
        (beside if any(map(meets, counted)) else alone).append(1000 * step)
    if not alone or not beside:
        raise ProfileError(
            "no request came and went while the streams decoded; is the deployment idle, and does "
            f"it hold {len(streams) + 1} requests?"
        )
    step = fmean(alone)
    return Round(step, (sum(beside) - len(beside) * step) / len(counted))


def _ttft_ms(outcome: Outcome) -> float:
    return 1000 * (outcome.token_times[0] - outcome.sent)


def _handover_ms(outcome: Outcome) -> float:
    return 1000 * (outcome.token_times[1] - outcome.token_times[0])
