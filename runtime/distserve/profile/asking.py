"""Asks a deployment for requests, as a client does: what its measurements are made of."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from distserve.bench.client import Client, Target
from distserve.bench.outcome import Outcome, Planned
from distserve.profile.errors import ProfileError

_TOKEN_IDS = (10, 1000)
_TIMEOUT_SECONDS = 120.0


class Asker:
    """One client's requests, each prompt another one: a prefix in the cache would cost nothing."""

    def __init__(self, http: aiohttp.ClientSession, client: Client) -> None:
        self._http = http
        self._client = client
        self._draw = random.Random(0)

    async def ask(self, prompt_tokens: Sequence[int], output_tokens: int) -> list[Outcome]:
        """A request for each prompt's length at once, to their ends. Raises ProfileError where one
        fails."""
        planned = [
            Planned(
                index, 0.0, [self._draw.randrange(*_TOKEN_IDS) for _ in range(tokens)], tokens,
                output_tokens,
            )
            for index, tokens in enumerate(prompt_tokens)
        ]  # fmt: skip
        target = self._client.target
        bodies = [target.body(one.prompt, one.output_tokens) for one in planned]
        now = time.perf_counter()
        outcomes = await asyncio.gather(
            *(self._client.send(r, body, now) for r, body in zip(planned, bodies, strict=True))
        )
        for outcome in outcomes:
            if outcome.failure is not None:
                raise ProfileError(f"{target.address}: {outcome.failure}")
        return outcomes

    async def moved_bytes(self) -> float:
        """KV that this gateway's engines migrated so far; 0 where the server does not say."""
        base = self._client.target.url.rstrip("/").removesuffix("/v1")
        try:
            async with self._http.get(f"{base}/stats") as answer:
                document = await answer.json() if answer.status == 200 else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return 0.0
        return float(sum(document.get("transports", {}).values()))


@asynccontextmanager
async def asking(target: Target) -> AsyncIterator[Asker]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield Asker(http, Client(http, target))
