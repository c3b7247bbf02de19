"""Asks a deployment for requests, as a client does: what its measurements are made of."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import aiohttp

from distserve.bench.client import Client, Target, refused_as_it_was_asked
from distserve.bench.connections import Spare, open_session
from distserve.bench.openloop import offer
from distserve.bench.outcome import Outcome, Planned
from distserve.profile.errors import ProfileError

_TOKEN_IDS = (10, 1000)
TIMEOUT_SECONDS = 120.0
"""Until a request counts as failed."""
_ENDED_EARLY = "fewer tokens than asked"
_HINTS = {
    "cannot connect": "; start the deployment and wait until it says `ready`, or correct --url",
    "no event stream": "; correct --url",
    "HTTP 404": "; correct --url or --model",
}
"""What to do about a failure, by what stands in it."""


class Asker:
    """Requests to one server, each prompt another one, also when all is measured again: a prefix in
    the cache would cost nothing."""

    def __init__(self, http: aiohttp.ClientSession, client: Client) -> None:
        self._http = http
        self._client = client
        self._draw = random.Random()

    async def ask(self, prompt_tokens: Sequence[int], output_tokens: int) -> list[Outcome]:
        """A request for each prompt's length at once, to their ends; where the server refuses what
        times can do without, it is asked for less from then on. Raises ProfileError where one
        fails."""
        outcomes = await self._send(prompt_tokens, output_tokens)
        while failure := _failure(outcomes):
            less = less_than(self._client.target, failure)
            if less is None:
                raise self._failed(failure)
            self._client = Client(self._http, less)
            outcomes = await self._send(prompt_tokens, output_tokens)
        return outcomes

    async def offer(
        self, instants: Sequence[float], lengths: Sequence[tuple[int, int]]
    ) -> Sequence[Outcome]:
        """Requests of these lengths, prompt and output, at these instants in seconds, whatever the
        server does, as `distserve bench run` sends them; to their ends. Raises ProfileError where
        one fails."""
        observed = await offer(
            [
                self._planned(nth, at, *tokens)
                for nth, (at, tokens) in enumerate(zip(instants, lengths, strict=True))
            ],
            self._client,
        )
        if observed.interrupted:
            raise asyncio.CancelledError
        if failure := _failure(observed.outcomes):
            raise self._failed(failure)
        return observed.outcomes

    def _planned(self, index: int, at: float, prompt_tokens: int, output_tokens: int) -> Planned:
        prompt = [self._draw.randrange(*_TOKEN_IDS) for _ in range(prompt_tokens)]
        return Planned(index, at, prompt, prompt_tokens, output_tokens)

    def _failed(self, failure: str) -> ProfileError:
        hint = next((hint for word, hint in _HINTS.items() if word in failure), "")
        return ProfileError(f"{self._client.target.shown}: {failure}{hint}")

    async def _send(self, prompt_tokens: Sequence[int], output_tokens: int) -> list[Outcome]:
        planned = [
            self._planned(index, 0.0, tokens, output_tokens)
            for index, tokens in enumerate(prompt_tokens)
        ]
        target = self._client.target
        bodies = [target.body(one.prompt, one.output_tokens) for one in planned]
        async with _connections(self._client, len(planned)) as spares:
            now = time.perf_counter()
            return await asyncio.gather(
                *(
                    self._client.send(request, body, now, spare)
                    for request, body, spare in zip(planned, bodies, spares, strict=True)
                )
            )

    async def moved_bytes(self) -> float:
        """KV that this gateway's engines migrated so far; 0 where the server does not say."""
        return float(sum((await self._stats()).get("transports", {}).values()))

    async def instances(self) -> Counter[str]:
        """Of each role; empty where the server does not say."""
        return Counter(one["role"] for one in (await self._stats()).get("instances", ()))

    async def longest(self) -> int | None:
        """Tokens of a request, its answer included, that the server takes; None where it does not
        say."""
        for card in (await self._get("/v1/models")).get("data") or ():
            if card.get("id") == self._client.target.model:
                most = card.get("max_model_len")
                return most if isinstance(most, int) else None
        return None

    async def _stats(self) -> dict[str, Any]:
        return await self._get("/stats")

    async def _get(self, path: str) -> dict[str, Any]:
        """Empty where the server has nothing there."""
        base = self._client.target.url.rstrip("/").removesuffix("/v1")
        try:
            async with self._http.get(base + path) as answer:
                found = await answer.json() if answer.status == 200 else {}
                return found if isinstance(found, dict) else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}


def _failure(outcomes: Sequence[Outcome]) -> str | None:
    return next((one.failure for one in outcomes if one.failure is not None), None)


def within(
    most: int | None, prompt_tokens: Sequence[int], output_tokens: int
) -> tuple[Sequence[int], int]:
    """Requests of these lengths, shorter where one of them would have more than `most` tokens."""
    if most is None:
        return prompt_tokens, output_tokens
    output_tokens = min(output_tokens, most // 2)
    return [min(tokens, most - output_tokens) for tokens in prompt_tokens], output_tokens


def less_than(target: Target, failure: str) -> Target | None:
    """What such a failure leaves to be asked for; None where it is about something else."""
    if target.ignore_eos and ("ignore_eos" in failure or failure == _ENDED_EARLY):
        return replace(target, ignore_eos=False)
    return target.weaker() if refused_as_it_was_asked(failure) else None


@asynccontextmanager
async def asking(target: Target) -> AsyncIterator[Asker]:
    async with open_session(target.timeout_seconds) as http:
        yield Asker(http, Client(http, target))


@asynccontextmanager
async def _connections(client: Client, count: int) -> AsyncIterator[list[Spare]]:
    """So many, there before anything is timed; why one cannot be had its request says."""
    spares = [client.spare() for _ in range(count)]
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(client.target.timeout_seconds):
                for spare in spares:
                    await spare.ready()
        yield spares
    finally:
        for spare in spares:
            spare.drop()
