"""Answers plan questions: in processes of their own, few at a time, each plan once.

The reconciler asks and gets what is there; the deployments that asked are queued when it comes. A
deployment wants one plan at a time, and what nobody wants any more is not made to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distserve.operator.model import Key, Pending
from distserve.operator.settings import PlanSettings
from distserve.planner.errors import PlannerError
from distserve.planner.plan import Plan, PlanRequest
from distserve.planner.worker import PlanningFailed, PlanningOverdue, plan_within

log = logging.getLogger(__name__)

Answer = Plan | PlannerError
Make = Callable[[PlanRequest, float, threading.Event], Plan]
"""(request, deadline in seconds, whether it is to stop)"""


@dataclass
class Search:
    """A plan that is being made, or is to be."""

    wanted_by: set[Key] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)


class Planning:
    def __init__(
        self, settings: PlanSettings, wake: Callable[[Key], None], plan: Make = plan_within
    ) -> None:
        self._settings = settings
        self._wake = wake
        self._plan = plan
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        """By inputs hash, least recently used first."""
        self._failures: OrderedDict[str, int] = OrderedDict()
        """How often in a row there was neither a plan nor a reason why there is none."""
        self._searches: dict[str, Search] = {}
        self._wants: dict[Key, str] = {}
        """What each deployment waits for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(settings.processes)

    def ask(self, key: Key, request: PlanRequest) -> Answer | Pending:
        """What it asked before is not wanted any more."""
        digest = request.inputs_hash
        if self._wants.get(key) != digest:
            self.release(key)
        if digest in self._answers:
            self._answers.move_to_end(digest)
            return self._answers[digest]
        if digest not in self._searches:
            self._begin(digest, request)
        self._searches[digest].wanted_by.add(key)
        self._wants[key] = digest
        return Pending()

    def release(self, key: Key) -> None:
        """It wants no plan."""
        digest = self._wants.pop(key, "")
        search = self._searches.get(digest)
        if search is None:
            return
        search.wanted_by.discard(key)
        if not search.wanted_by:
            search.stop.set()
            del self._searches[digest]

    def _begin(self, digest: str, request: PlanRequest) -> None:
        search = self._searches[digest] = Search()
        task = asyncio.create_task(self._make(digest, request, search))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, digest: str, request: PlanRequest, search: Search) -> None:
        answer: Answer
        async with self._free:
            if search.stop.is_set():
                return
            loop = asyncio.get_running_loop()
            started = loop.time()
            try:
                answer = await _in_thread(
                    lambda: self._plan(request, self._settings.deadline_seconds, search.stop)
                )
            except PlannerError as error:
                answer = error
            except Exception as error:
                log.exception("planning failed", extra={"plan": digest})
                answer = PlanningFailed(f"planning failed: {error}")
            seconds = round(loop.time() - started, 1)
        if search.stop.is_set():
            log.info("not planned to the end", extra={"plan": digest, "seconds": seconds})
            return
        log.info("planned", extra={"plan": digest, "seconds": seconds})
        self._keep(digest, answer)
        for key in self._searches.pop(digest).wanted_by:
            self._wants.pop(key, None)
            self._wake(key)

    def _keep(self, digest: str, answer: Answer) -> None:
        self._answers[digest] = answer
        failures = self._failures.pop(digest, 0)
        if isinstance(answer, PlanningOverdue | PlanningFailed):
            # These say nothing of the question: it may be asked again, more and more seldom, since
            # others wait meanwhile.
            self._failures[digest] = failures + 1
            pause = self._settings.retry_seconds * 2.0 ** min(failures, 30)
            pause = min(pause, self._settings.longest_retry_seconds)
            asyncio.get_running_loop().call_later(pause, self._answers.pop, digest, None)
            _forget_oldest(self._failures, self._settings.kept)
        _forget_oldest(self._answers, self._settings.kept)


def _forget_oldest(found: OrderedDict[str, Any], most: int) -> None:
    while len(found) > most:
        found.popitem(last=False)


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
