"""Plans in a process of its own, with a deadline: planning must not hold up who asks.

Called by the operator's reconcile loop, which goes on serving with the plan in use meanwhile.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

from distserve.planner.errors import PlannerError
from distserve.planner.plan import Plan, make_plan
from distserve.planner.question import PlanRequest
from distserve.workload import WorkloadError


class PlanningOverdue(PlannerError):
    """The deadline passed; asking again with a smaller machine or a longer deadline may help."""


class PlanningFailed(PlannerError):
    """The worker process ended without an answer."""


def plan_within(request: PlanRequest, deadline_seconds: float) -> Plan:
    """Make the plan in a fresh process and wait for it at most this long.

    Raises PlanningOverdue after the deadline (the process is ended), PlanningFailed when the
    process died, and whatever PlannerError or WorkloadError the planning itself raised.
    """
    context = multiprocessing.get_context("spawn")  # no threads or locks of the caller's
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, request), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(deadline_seconds):
            raise PlanningOverdue(
                f"no plan within {deadline_seconds:g} s; allow longer, or lower maxAccelerators"
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
