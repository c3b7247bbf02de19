"""A question that the planner can answer."""

from dataclasses import replace

from distserve.planner.models import find_model
from distserve.planner.plan import PlanRequest
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo


def question(lengths, machine, **changes) -> PlanRequest:
    return replace(
        PlanRequest(find_model("13b"), load_profile(), Slo(250, 100), lengths, machine), **changes
    )
