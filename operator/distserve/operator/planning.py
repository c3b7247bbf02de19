"""Answers plan questions: in processes of their own, few at a time, each plan once.

The reconciler asks and gets what is there; the deployments that asked are queued when it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

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
        self._free = asyncio.Semaphore(settings.processes)

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

    async def _make(self, digest: str, request: PlanRequest) -> None:
        answer: Answer
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with self._free:
                answer = await _in_thread(
                    lambda: self._plan(request, self._settings.deadline_seconds)
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


async def _in_thread(call: Callable[[], Plan]) -> Plan:
    """In a daemon thread, which only waits for the planning process: an executor's threads would
    hold up the end of this one until the plan is there."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Plan] = loop.create_future()

    def tell(plan: Plan | None, error: Exception | None) -> None:
        if answer.done():
            return
        if plan is not None:
            answer.set_result(plan)
        elif error is not None:
            answer.set_exception(error)

    def wait() -> None:
        plan, failed = None, None
        try:
            plan = call()
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(tell, plan, failed)

    threading.Thread(target=wait, name="planning", daemon=True).start()
    return await answer
