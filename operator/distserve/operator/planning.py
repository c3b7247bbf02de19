"""Answers plan questions: in processes of their own, few at a time, each plan once.

The reconciler asks and gets what is there; the deployments that asked are queued when it comes. A
deployment wants one plan at a time, and what nobody wants any more is not made to its end. A plan
may take minutes, so namespaces have theirs made in turn.
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

    request: PlanRequest
    wanted_by: set[Key] = field(default_factory=set)
    begun: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def namespaces(self) -> set[str]:
        return {key.namespace for key in self.wanted_by}


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
        """In the order in which they were asked for."""
        self._wants: dict[Key, str] = {}
        """What each deployment waits for."""
        self._turns: dict[str, None] = {}
        """Namespaces that ask, the next one first."""
        self._tasks: set[asyncio.Task[None]] = set()
        """At work, one process each."""

    def ask(self, key: Key, request: PlanRequest) -> Answer | Pending:
        """What it asked before is not wanted any more."""
        digest = request.inputs_hash
        if self._wants.get(key) != digest:
            self.release(key)
        if digest in self._answers:
            self._answers.move_to_end(digest)
            return self._answers[digest]
        if digest not in self._searches:
            self._searches[digest] = Search(request)
        self._searches[digest].wanted_by.add(key)
        self._wants[key] = digest
        self._turns.setdefault(key.namespace, None)
        self._begin()
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

    def _begin(self) -> None:
        """What has its turn, as far as processes are free."""
        while len(self._tasks) < self._settings.processes and (digest := self._next()):
            self._searches[digest].begun = True
            task = asyncio.create_task(self._make(digest, self._searches[digest]))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _next(self) -> str:
        """What the namespace whose turn it is has waited for longest; empty: nothing waits."""
        for namespace in list(self._turns):
            del self._turns[namespace]
            for digest, search in self._searches.items():
                if not search.begun and namespace in search.namespaces:
                    self._turns[namespace] = None  # Again after all others.
                    return digest
        return ""

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():  # As when the process ends.
            self._begin()

    async def _make(self, digest: str, search: Search) -> None:
        answer: Answer
        if search.stop.is_set():
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answer = await _in_thread(
                lambda: self._plan(search.request, self._settings.deadline_seconds, search.stop)
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
