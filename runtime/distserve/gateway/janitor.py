"""Tells engines to let go of what nobody waits for any more, apart from the request that ended.

A request's handler may be cancelled at any await, so it only hands over what is left: the calls
are made here, with a bound, and a process that ends waits for them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from distserve.gateway.client import ENGINE_ERRORS, EngineClient
from distserve.gateway.fleet import Member

log = logging.getLogger(__name__)

TRIES = 3
PAUSE_SECONDS = 0.2
LINGER_SECONDS = 2.0


class Janitor:
    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._tasks: set[asyncio.Task[Any]] = set()

    def abort(self, member: Member, leg: str) -> None:
        """The instance ends the leg, whether or not it has it yet."""
        self._spawn(self._persist("abort", leg, lambda: self._client.abort(member.url, leg)))

    def release(self, member: Member, transfer: str) -> None:
        """Nobody will fetch what the instance offers."""
        self._spawn(
            self._persist("release", transfer, lambda: self._client.release(member.url, transfer))
        )

    def linger(self, task: asyncio.Task[Any]) -> None:
        """The client has all of it; the legs' last words are for the metrics."""
        self._spawn(self._outlive(task))

    async def close(self, bound_seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=bound_seconds)
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, what: str, name: str, call: Callable[[], Awaitable[None]]) -> None:
        for attempt in range(TRIES):
            try:
                return await call()
            except ENGINE_ERRORS as error:
                log.debug("%s %s failed: %s", what, name, error)
            await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
        log.info("%s %s was not delivered: the engine's own deadlines apply", what, name)

    async def _outlive(self, task: asyncio.Task[Any]) -> None:
        _, late = await asyncio.wait({task}, timeout=LINGER_SECONDS)
        for left in late:
            left.cancel()
        await asyncio.gather(task, return_exceptions=True)
