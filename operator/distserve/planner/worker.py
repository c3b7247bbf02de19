"""Plans in a process of its own, with a deadline: planning must not hold up who asks.

Called by the operator's reconcile loop, which goes on serving with the plan in use meanwhile.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from typing import Final

from distserve.planner.errors import PlannerError
from distserve.planner.plan import Plan, make_plan
from distserve.planner.question import PlanRequest
from distserve.workload import WorkloadError

LOOK_SECONDS: Final = 0.2
"""Whether the plan is still wanted is looked at this often."""


class PlanningOverdue(PlannerError):
    """The deadline passed; asking again with a smaller machine may help."""


class PlanningFailed(PlannerError):
    """The worker process ended without an answer."""


class PlanningStopped(PlannerError):
    """Nobody wants the plan any more."""


def plan_within(
    request: PlanRequest, deadline_seconds: float, stop: threading.Event | None = None
) -> Plan:
    """Make the plan in a fresh process and wait for it at most this long, or until `stop` is set.

    Raises PlanningOverdue after the deadline and PlanningStopped after `stop` (the process is
    ended), PlanningFailed when the process died, and whatever PlannerError or WorkloadError the
    planning itself raised.
    """
    context = multiprocessing.get_context("spawn")  # no threads or locks of the caller's
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, request), daemon=True)
    process.start()
    sender.close()
    try:
        end = time.monotonic() + deadline_seconds
        while not receiver.poll(max(0.0, min(LOOK_SECONDS, end - time.monotonic()))):
            if stop is not None and stop.is_set():
                raise PlanningStopped("nobody wants this plan any more")
            if time.monotonic() >= end:
                raise PlanningOverdue(
                    f"no plan within {deadline_seconds:g} s; lower planning.maxAccelerators, or "
                    "make it with `distserve plan`, which takes its time, and write its numbers "
                    "into the spec with mode: Manual"
                )
        answer: Plan | PlannerError | WorkloadError = receiver.recv()
    except EOFError as error:
        raise PlanningFailed("the planning process died; see its standard error") from error
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if not isinstance(answer, Plan):
        raise answer
    return answer


def _answer(sender: Connection, request: PlanRequest) -> None:
    try:
        answer: Plan | PlannerError | WorkloadError = make_plan(request)
    except (PlannerError, WorkloadError) as error:
        answer = error
    sender.send(answer)
