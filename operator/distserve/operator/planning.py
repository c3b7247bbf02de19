"""Answers plan questions: in processes of their own, few at a time, each plan once.

The reconciler asks and gets what is there; the deployments that asked are queued when it comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from distserve.operator.model import Key, Pending
from distserve.operator.settings import PlanSettings
from distserve.planner.errors import PlannerError
from distserve.planner.plan import Plan, PlanRequest
from distserve.planner.worker import PlanningFailed, PlanningOverdue, plan_within

log = logging.getLogger(__name__)

Answer = Plan | PlannerError


class Planning:
    def __init__(
        self,
        settings: PlanSettings,
        wake: Callable[[Key], None],
        plan: Callable[[PlanRequest, float], Plan] = plan_within,
    ) -> None:
        self._settings = settings
        self._wake = wake
        self._plan = plan
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        """By inputs hash, least recently used first."""
        self._asking: dict[str, set[Key]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # The threads only wait for the processes.
        self._threads = ThreadPoolExecutor(settings.processes, thread_name_prefix="planning")

    def ask(self, key: Key, request: PlanRequest) -> Answer | Pending:
        digest = request.inputs_hash
        if digest in self._answers:
            self._answers.move_to_end(digest)
            return self._answers[digest]
        if digest not in self._asking:
            self._asking[digest] = set()
            task = asyncio.create_task(self._make(digest, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._asking[digest].add(key)
        return Pending()

    def close(self) -> None:
        """Leaves running plans to their end; the processes are daemons and end with this one."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _make(self, digest: str, request: PlanRequest) -> None:
        answer: Answer
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answer = await loop.run_in_executor(
                self._threads, self._plan, request, self._settings.deadline_seconds
            )
        except PlannerError as error:
            answer = error
        except Exception as error:
            log.exception("planning failed", extra={"plan": digest})
            answer = PlanningFailed(f"planning failed: {error}")
        log.info("planned", extra={"plan": digest, "seconds": round(loop.time() - started, 1)})
        self._keep(digest, answer)
        for key in self._asking.pop(digest):
            self._wake(key)

    def _keep(self, digest: str, answer: Answer) -> None:
        self._answers[digest] = answer
        while len(self._answers) > self._settings.kept:
            self._answers.popitem(last=False)
        if isinstance(answer, PlanningOverdue | PlanningFailed):
            # These say nothing of the question: it may be asked again.
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.retry_seconds, self._answers.pop, digest, None)
