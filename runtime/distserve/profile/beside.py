"""Measures what instances take from each other: requests that come while streams decode.

Some streams decode all the while; requests come with pauses in which the streams are alone again.
One by itself tells how much later its first tokens come than without streams. A few at once, as
under load, tell how much later the streams' tokens are because of each. Both for a short prompt and
a long one: what grows with the prefill's time is taken by prefills and decode steps from each
other, the rest by the request as such (`distserve.planner.serving_fit`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from distserve.bench.outcome import Outcome
from distserve.profile.asking import Asker
from distserve.profile.database import Beside
from distserve.profile.errors import ProfileError

STREAMS = 8
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 320
"""Of each stream."""
LENGTHS = (128, 512)
"""Prompts of the requests that come."""
REQUEST_TOKENS = 2
"""Of each request's output: it joins those that decode, and leaves."""
AT_ONCE, IN_TURN = 2, 3
"""Of a group of requests: a process that has slept takes several times as long for one as it does
under load."""
GROUPS = 4
"""In a life of the streams, and as many requests by themselves."""
PAUSE_SECONDS = 0.15
ALONE = 7
"""Requests of each length without streams beside them; the first is not counted."""
ROUNDS = 2
"""Lives of the streams for each length."""


@dataclass
class Life:
    """The streams from their beginning to their end, and the requests that came meanwhile."""

    streams: Sequence[Outcome] = ()
    singles: list[Outcome] = field(default_factory=list)
    groups: list[Outcome] = field(default_factory=list)

    @property
    def decoding(self) -> tuple[float, float]:
        """While all streams do: from the last one's second token to the first one's end."""
        begun = max(stream.token_times[1] for stream in self.streams)
        return begun, min(stream.token_times[-1] for stream in self.streams)

    def within(self, requests: Sequence[Outcome]) -> list[Outcome]:
        """Those that came and went while all streams decoded."""
        begun, ended = self.decoding
        return [r for r in requests if begun <= r.sent and r.ended <= ended]


@dataclass(frozen=True)
class Told:
    """By one life, in ms."""

    step: float
    """Of the streams alone, mean."""
    lost: float
    """By which the streams' tokens came later for each request of a group, mean."""


async def measure(
    asker: Asker,
    add: Callable[[Beside], None],
    lengths: Sequence[int] = LENGTHS,
    rounds: int = ROUNDS,
) -> None:
    """Raises ProfileError where the server does not answer as it should."""
    for length in lengths:
        before = await asker.moved_bytes()
        alone = (await _in_turn(asker, length, ALONE))[1:]
        migrated = await asker.moved_bytes() > before
        lives = [await _life(asker, length) for _ in range(rounds)]
        told = [told_by(life) for life in lives]
        singles = [one for life in lives for one in life.within(life.singles)]
        add(
            Beside(
                streams=STREAMS,
                input_len=length,
                context_len=PROMPT_TOKENS + OUTPUT_TOKENS / 2,
                step=median(one.step for one in told),
                lost=median(one.lost for one in told),
                ttft_alone=median(map(_ttft_ms, alone)),
                ttft=median(map(_ttft_ms, singles)),
                prefill_alone=_prefill_ms(alone),
                prefill=_prefill_ms(singles),
                handover_alone=median(map(_handover_ms, alone)),
                handover=median(map(_handover_ms, singles)),
                migrated=migrated,
            )
        )


async def _in_turn(asker: Asker, length: int, requests: int) -> list[Outcome]:
    return [(await asker.ask([length], REQUEST_TOKENS))[0] for _ in range(requests)]


async def _life(asker: Asker, length: int) -> Life:
    life = Life()
    streams = asyncio.create_task(asker.ask([PROMPT_TOKENS] * STREAMS, OUTPUT_TOKENS))
    try:
        for _ in range(GROUPS):
            await _pause(streams)
            life.singles += await _in_turn(asker, length, 1)
            await _pause(streams)
            for some in await asyncio.gather(
                *(_in_turn(asker, length, IN_TURN) for _ in range(AT_ONCE))
            ):
                life.groups += some
        life.streams = await streams
        return life
    finally:
        streams.cancel()


async def _pause(streams: asyncio.Task[list[Outcome]]) -> None:
    """Shorter where the streams have ended, or failed."""
    await asyncio.wait({streams}, timeout=PAUSE_SECONDS)


def told_by(life: Life) -> Told:
    """Raises ProfileError where too little happened while the streams decoded."""
    begun, ended = life.decoding
    counted = life.within(life.groups)
    others = [r for r in (*life.singles, *life.groups) if r not in counted]
    alone: list[float] = []
    beside: list[float] = []
    for first, second in pairwise(life.streams[0].token_times):
        if first < begun or second > ended:
            continue
        # What a request leaves behind when it ends is done in the step that follows.
        since = first - (second - first)
        if any(r.sent < second and since < r.ended for r in counted):
            beside.append(1000 * (second - first))
        elif not any(r.sent < second and since < r.ended for r in others):
            alone.append(1000 * (second - first))
    if not alone or not beside or not life.within(life.singles):
        raise ProfileError(
            "no request came and went while the streams decoded; is the deployment idle, and does "
            f"it hold {STREAMS + AT_ONCE} requests?"
        )
    step = fmean(alone)
    return Told(step, (sum(beside) - len(beside) * step) / len(counted))


def _ttft_ms(outcome: Outcome) -> float:
    return 1000 * (outcome.token_times[0] - outcome.sent)


def _prefill_ms(outcomes: Sequence[Outcome]) -> float | None:
    """Median of the stage, where the server tells of it."""
    told = [outcome.lifecycle or {} for outcome in outcomes]
    times = [
        1000 * (at["context_end"] - at["context_begin"])
        for at in told
        if {"context_begin", "context_end"} <= at.keys()
    ]
    return median(times) if times else None


def _handover_ms(outcome: Outcome) -> float:
    return 1000 * (outcome.token_times[1] - outcome.token_times[0])
