"""Asks a deployment for requests, as a client does: what its measurements are made of."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from distserve.bench.client import Client, Target
from distserve.bench.outcome import Outcome, Planned
from distserve.profile.errors import ProfileError

_TOKEN_IDS = (10, 1000)
_TIMEOUT_SECONDS = 120.0


class Asker:
    """Requests to one server, each prompt another one, also when all is measured again: a prefix in
    the cache would cost nothing."""

    def __init__(self, http: aiohttp.ClientSession, client: Client) -> None:
        self._http = http
        self._client = client
        self._draw = random.Random()

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
        return float(sum((await self._stats()).get("transports", {}).values()))

    async def instances(self) -> Counter[str]:
        """Of each role; empty where the server does not say."""
        return Counter(one["role"] for one in (await self._stats()).get("instances", ()))

    async def _stats(self) -> dict[str, Any]:
        base = self._client.target.url.rstrip("/").removesuffix("/v1")
        try:
            async with self._http.get(f"{base}/stats") as answer:
                return await answer.json() if answer.status == 200 else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}


@asynccontextmanager
async def asking(target: Target) -> AsyncIterator[Asker]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield Asker(http, Client(http, target))
