"""Takes deployments from the queue one by one, and says what a failure means for the next try."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from distserve.operator.errors import (
    ClusterError,
    Conflict,
    LeaseLost,
    NotFound,
    Refused,
    Tripped,
    Unavailable,
)
from distserve.operator.model import Key
from distserve.operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

Reconcile = Callable[[Key], Awaitable[float | None]]
Tell = Callable[[str, float], None]
"""(result, seconds)"""


class Worker:
    def __init__(self, queue: WorkQueue[Key], reconcile: Reconcile, tell: Tell) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._tell = tell

    async def run(self) -> None:
        """Never returns; raises LeaseLost."""
        while True:
            key = await self._queue.get()
            started = time.monotonic()
            try:
                result = await self._work(key)
            finally:
                self._queue.done(key)
            self._tell(result, time.monotonic() - started)

    async def _work(self, key: Key) -> str:
        """Returns one of metrics.RESULTS."""
        extra = {"deployment": f"{key.namespace}/{key.name}"}
        try:
            again = await self._reconcile(key)
        except Conflict as error:
            log.info("looking again: %s", error, extra=extra)
            self._queue.retry(key)
            return "conflict"
        except Unavailable as error:
            pause = self._pause(key, error, error.retry_after_seconds)
            log.warning("trying again in %.1f s: %s", pause, error, extra=extra)
            return "unavailable"
        except (NotFound, Refused) as error:
            pause = self._pause(key, error)
            log.warning("refused, trying again in %.1f s: %s", pause, error, extra=extra)
            return "refused"
        except LeaseLost:
            raise
        except Exception as error:
            # One deployment that trips over a fault of ours must not stop the others.
            pause = self._pause(key, error)
            log.exception("a fault of the operator, trying again in %.1f s", pause, extra=extra)
            return "error"
        self._queue.succeeded(key)
        if again is not None:
            self._queue.add_after(key, again)
        # Whoever writes without waiting must not hold up the others.
        await asyncio.sleep(0)
        return "done"

    def _pause(self, key: Key, error: Exception, at_least_seconds: float = 0.0) -> float:
        """Until the next try, or what the deployment waits for besides: the sooner counts."""
        pause = self._queue.retry(key, at_least_seconds)
        again = error.again_seconds if isinstance(error, ClusterError | Tripped) else None
        if again is None:
            return pause
        again = max(again, at_least_seconds)
        self._queue.add_after(key, again)
        return min(pause, again)
