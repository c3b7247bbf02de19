"""A deployment with its numbers: in mode Auto `render`, `up` and `demo` plan before all else."""

import argparse
import sys
from typing import TYPE_CHECKING

from distserve.cli.usage import Infeasible, UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment

DEADLINE_SECONDS = 300.0


def add_planning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware-profile",
        metavar="NAME|FILE",
        help="plan with these step times, mode Auto only (default: planning.hardwareProfile)",
    )


def planned(
    deployment: "DistServeDeployment",
    hardware_profile: str | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> "DistServeDeployment":
    """The deployment as it is in mode Manual, else with its plan's numbers.

    Says the plan in one line on stderr. Raises Infeasible, and UsageError where no plan can be
    made.
    """
    if not deployment.spec.planning.automatic:
        if hardware_profile is not None:
            raise UsageError(
                f"{deployment.name}: --hardware-profile has no effect in planning.mode Manual; "
                "leave it out, or set mode: Auto"
            )
        return deployment
    from distserve.planner.errors import PlannerError
    from distserve.planner.worker import plan_within
    from distserve.resources.errors import NoPlan
    from distserve.resources.planned import plan_line, with_plan
    from distserve.resources.planning import model_of, plan_request, profile_of
    from distserve.workload import WorkloadError

    spec = deployment.spec
    try:
        profile = profile_of(spec, model_of(spec), hardware_profile)
        plan = plan_within(plan_request(spec, profile=profile), deadline_seconds)
        result = with_plan(deployment, plan)
    except (PlannerError, WorkloadError) as error:
        raise UsageError(f"{deployment.name}: {error}") from None
    except NoPlan as error:
        raise Infeasible(f"{deployment.name}: {error}") from None
    print(f"plan of {deployment.name}: {plan_line(deployment, plan)}", file=sys.stderr)
    return result
