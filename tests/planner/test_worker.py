"""Planning in a process of its own."""

import multiprocessing
import threading
from dataclasses import replace

import pytest

from distserve.planner.errors import NoProfile
from distserve.planner.machine import Machine
from distserve.planner.models import find_model
from distserve.planner.plan import PlanRequest, make_plan
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.worker import PlanningOverdue, PlanningStopped, plan_within
from distserve.workload import ArrivalProcess, RequestSet, WorkloadError


@pytest.fixture
def request_for_two() -> PlanRequest:
    lengths = RequestSet([100, 300, 700] * 30, [20, 50, 80] * 30)
    return PlanRequest(
        find_model("13b"), load_profile(), Slo(250, 100), lengths, Machine([2]), rate=2.0
    )


def test_the_worker_s_plan_is_the_plan(request_for_two):
    assert plan_within(request_for_two, 90) == make_plan(request_for_two)


def test_an_overdue_plan_is_given_up(request_for_two):
    with pytest.raises(PlanningOverdue, match=r"lower planning.maxAccelerators, or make it with"):
        plan_within(request_for_two, 0.01)


def test_a_plan_that_nobody_wants_is_not_made(request_for_two):
    """Its process ends with the call."""
    before = multiprocessing.active_children()
    stop = threading.Event()
    stop.set()
    with pytest.raises(PlanningStopped):
        plan_within(request_for_two, 90, stop)
    assert set(multiprocessing.active_children()) <= set(before)


def test_the_worker_s_refusal_is_the_caller_s(request_for_two):
    with pytest.raises(NoProfile, match="give --hardware-profile"):
        plan_within(replace(request_for_two, model=find_model("175b")), 90)


def test_a_workload_s_refusal_is_the_caller_s_too(request_for_two):
    recorded = replace(request_for_two, arrivals=ArrivalProcess("recorded"))
    with pytest.raises(WorkloadError, match="records no arrival times"):
        plan_within(recorded, 90)
