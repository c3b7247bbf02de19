"""Where a server's time went during a run, from this gateway's own metrics before and after it.

A client cannot see stages; DistServe's server sent them with its answers, this gateway counts them
in `distserve_request_stage_seconds`. Other servers have no such series: then nothing is known.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import aiohttp

from distserve.bench.analysis import STAGES

_SERIES = re.compile(
    r'^distserve_request_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', re.MULTILINE
)
_NAMES = dict(
    zip(
        ("prefill_queue", "prefill", "kv_transfer", "decode_queue", "decode"),
        STAGES,
        strict=True,
    )
)
_TRIES, _PAUSE_SECONDS = 10, 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True)
class StageCounts:
    """Of each of STAGES: seconds and requests since the server started."""

    seconds: dict[str, float]
    requests: dict[str, float]


def parse(text: str) -> StageCounts | None:
    """From a /metrics page; None where the server does not count stages."""
    counts = StageCounts({}, {})
    for kind, stage, value in _SERIES.findall(text):
        if stage in _NAMES:
            (counts.seconds if kind == "sum" else counts.requests)[_NAMES[stage]] = float(value)
    return counts if counts.seconds.keys() == counts.requests.keys() == set(STAGES) else None


def mean_seconds(
    before: StageCounts, after: StageCounts, completed: int
) -> dict[str, float] | None:
    """Mean seconds of a request in each stage; None unless exactly the run's requests were counted.

    Another client's requests, or another gateway's share of the run, would falsify it.
    """
    if after.requests["prefill"] - before.requests["prefill"] != completed or not completed:
        return None
    return {stage: (after.seconds[stage] - before.seconds[stage]) / completed for stage in STAGES}


async def read(http: aiohttp.ClientSession, url: str) -> StageCounts | None:
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with http.get(f"{base}/metrics", timeout=_TIMEOUT) as answer:
            return parse(await answer.text()) if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError):  # ValueError: a page that is no text
        return None


async def settled(http: aiohttp.ClientSession, url: str) -> StageCounts | None:
    """The counts once they rest: those of the warm-up may come a moment after its answers."""
    found = await read(http, url)
    for _ in range(_TRIES if found is not None else 0):
        await asyncio.sleep(_PAUSE_SECONDS)
        before, found = found, await read(http, url)
        if found is None or (before is not None and before.requests == found.requests):
            break
    return found


async def since(
    http: aiohttp.ClientSession, url: str, before: StageCounts | None, completed: int
) -> dict[str, float] | None:
    """What passed since `before`; the server may count its last requests a moment later."""
    for _ in range(_TRIES if before is not None else 0):
        after = await read(http, url)
        if after is None or before is None:
            return None
        if (found := mean_seconds(before, after, completed)) is not None:
            return found
        await asyncio.sleep(_PAUSE_SECONDS)
    return None
