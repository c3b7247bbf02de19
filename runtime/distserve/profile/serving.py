"""Measures what a deployment adds to its engines' steps: clients of an otherwise idle one.

A few equal requests at a time, with nothing beside them: what their first token takes beyond the
prefill, the second beyond a decode step, and each step with how many streams. The planner takes the
steps' own times off these (`distserve.planner.serving`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import aiohttp

from distserve.bench.client import Client, Target
from distserve.bench.outcome import Outcome, Planned
from distserve.profile.database import Served
from distserve.profile.errors import ProfileError
from distserve.profile.grid import Point

POINTS = (Point(1, 32), Point(1, 256), Point(2, 32), Point(4, 32), Point(8, 32), Point(16, 32))
"""Several streams have short prompts: prefills in turn must end before the first stream does."""
OUTPUT_TOKENS = 64
ROUNDS = 5
"""Of each point, after one that is not counted."""
_TOKEN_IDS = (10, 1000)
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Round:
    """Medians of requests that ran at once, in ms."""

    ttft: float
    handover: float
    step: float


async def measure(
    target: Target,
    add: Callable[[Served], None],
    points: Sequence[Point] = POINTS,
    rounds: int = ROUNDS,
) -> None:
    """Raises ProfileError where the server does not answer as it should."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        client = Client(http, target)
        draw = random.Random(0)
        for point in points:
            before = await _moved_bytes(http, target.url)
            seen = [await _round(client, point, draw) for _ in range(rounds + 1)][1:]
            after = await _moved_bytes(http, target.url)
            add(
                Served(
                    streams=point.batch_size,
                    input_len=point.input_tokens,
                    output_len=OUTPUT_TOKENS,
                    context_len=point.input_tokens + OUTPUT_TOKENS / 2,
                    ttft=median(one.ttft for one in seen),
                    handover=median(one.handover for one in seen),
                    step=median(one.step for one in seen),
                    migrated=after > before,
                )
            )


async def _round(client: Client, point: Point, draw: random.Random) -> Round:
    length = point.input_tokens
    prompts = [
        [draw.randrange(*_TOKEN_IDS) for _ in range(length)] for _ in range(point.batch_size)
    ]
    requests = [
        Planned(index, 0.0, prompt, length, OUTPUT_TOKENS) for index, prompt in enumerate(prompts)
    ]
    bodies = [client.target.body(r.prompt, r.output_tokens) for r in requests]
    now = time.perf_counter()
    outcomes = await asyncio.gather(
        *(client.send(r, body, now) for r, body in zip(requests, bodies, strict=True))
    )
    for outcome in outcomes:
        if outcome.failure is not None:
            raise ProfileError(f"{client.target.address}: {outcome.failure}")
    return round_of(outcomes)


def round_of(outcomes: Sequence[Outcome]) -> Round:
    """Steps are taken while all streams decode: from the last one's second token to the first
    one's end."""
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


async def _moved_bytes(http: aiohttp.ClientSession, url: str) -> float:
    """KV that this gateway's engines migrated so far; 0 where the server does not say."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with http.get(f"{base}/stats") as answer:
            document = await answer.json() if answer.status == 200 else {}
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return 0.0
    return float(sum(document.get("transports", {}).values()))
