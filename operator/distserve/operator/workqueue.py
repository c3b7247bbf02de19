"""The queue of deployments to decide about: each at most once in it, and never twice at work.

    add ----> dirty --get--> at work --done--> gone, or dirty again when it was added meanwhile
    add_after, retry --(time)--^

First come, first served: a deployment that changes all the time waits behind the others after
each turn. The time is the event loop's.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from distserve.operator.settings import QueueSettings

K = TypeVar("K")


class WorkQueue(Generic[K]):
    def __init__(
        self, settings: QueueSettings, jitter: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._delayed: dict[K, asyncio.TimerHandle] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones do not count."""
        return len(self._ready)

    @property
    def failing(self) -> int:
        """Keys that failed `failing_after` times in a row or more, and wait for their next try."""
        after = self._settings.failing_after
        return sum(failures >= after for failures in self._failures.values())

    def add(self, key: K) -> None:
        """Work on it as soon as a worker is free."""
        self._forget_delay(key)
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._push(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Work on it then, or sooner when somebody asked for sooner."""
        due = asyncio.get_running_loop().time() + seconds
        if key in self._dirty or (key in self._delayed and self._delayed[key].when() <= due):
            return
        self._forget_delay(key)
        self._delayed[key] = asyncio.get_running_loop().call_at(due, self.add, key)

    def retry(self, key: K, at_least_seconds: float = 0.0) -> float:
        """Work on it after a pause that doubles with each failure; returns the pause."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        # Doubling past the cap would overflow after a thousand failures.
        backoff = self._settings.backoff_seconds * 2.0 ** min(failures - 1, 30)
        # Between half and all of it: what failed together is not tried together.
        pause = min(backoff, self._settings.backoff_cap_seconds) * (1 + self._jitter()) / 2
        pause = max(pause, at_least_seconds)
        self.add_after(key, pause)
        return pause

    def succeeded(self, key: K) -> None:
        """The next failure is a first one again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The key that waits longest. Whoever takes it must call `done`."""
        while not self._ready:
            self._some.clear()
            await self._some.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        self._working.discard(key)
        if key in self._dirty:
            self._push(key)

    def _push(self, key: K) -> None:
        self._ready.append(key)
        self._some.set()

    def _forget_delay(self, key: K) -> None:
        if handle := self._delayed.pop(key, None):
            handle.cancel()
