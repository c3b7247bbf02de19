"""A plan back into its deployment: the same spec with the plan's numbers, and `status.plan`."""

import math
from dataclasses import asdict
from typing import Any

from distserve.api.conditions import PlannedReason
from distserve.api.deployment import DistServeDeployment, Spec
from distserve.api.planning import Planning
from distserve.api.quantities import parse_quantity
from distserve.api.roles import Parallelism, RoleSpec
from distserve.api.status import PlanStatus, UnitPlan
from distserve.planner.errors import NoProfile
from distserve.planner.plan import Plan, RolePlan, unit_alone
from distserve.planner.worker import PlanningFailed, PlanningOverdue
from distserve.resources.errors import NoPlan

GOODPUT_ROUNDING = 0.005
"""Of three digits."""


def with_plan(deployment: DistServeDeployment, plan: Plan) -> DistServeDeployment:
    """What a user would write under mode Manual for the plan's numbers; all else stays.

    Raises NoPlan for a plan that is only a nearest miss.
    """
    spec, plan = deployment.spec, _counted(deployment, plan)
    if not plan.feasible:
        raise NoPlan(plan.reason)
    units = _units(deployment, plan)
    wanted, limit = units * _per_unit(plan), spec.planning.max_accelerators
    if limit is not None and wanted > limit:
        raise NoPlan(
            f"spec.units {units} of {_per_unit(plan)} accelerators each need {wanted}, and "
            f"planning.maxAccelerators is {limit}; lower units or raise maxAccelerators"
        )
    sections = {
        role.value: _with_numbers(section, plan.roles[role.value])
        for role, section in spec.roles.items()
    }
    numbers = {**sections, "units": units, "planning": Planning()}
    return deployment.model_copy(update={"spec": spec.model_copy(update=numbers)})


def plan_status(deployment: DistServeDeployment, plan: Plan) -> PlanStatus:
    """`status.plan`."""
    units = _units(deployment, plan)
    return PlanStatus.model_validate(
        {
            "mode": deployment.spec.planning.mode,
            "inputsHash": plan.inputs_hash,
            "unit": _unit(plan.roles),
            "units": units,
            "accelerators": units * _per_unit(plan),
            "goodput": f"{plan.goodput:.3g}",
            "hardwareProfile": plan.hardware_profile,
            "estimated": plan.estimated,
        }
    )


def accelerators_of(unit: UnitPlan) -> int:
    """Of one unit."""
    parts = (unit.prefill, unit.decode, unit.hybrid)
    return sum(one.instances * one.tensor * one.pipeline for one in parts if one is not None)


def with_units(status: PlanStatus, units: int) -> PlanStatus:
    """As if the plan had so many, whoever decides them."""
    each = accelerators_of(status.unit)
    return status.model_copy(update={"units": units, "accelerators": units * each})


def shortfall(deployment: DistServeDeployment, status: PlanStatus) -> str | None:
    """One line where `spec.units`, which the plan does not decide, are too few for the load.

    Part of the message of `Planned=True`.
    """
    spec = deployment.spec
    asked = spec.workload.requests_per_second if spec.workload else None
    unit_rate = float(status.goodput) * accelerators_of(status.unit)
    if asked is None or spec.planning.plans_units or not unit_rate:
        return None
    rate = float(parse_quantity(asked))
    needed = math.ceil(rate / unit_rate * (1 - GOODPUT_ROUNDING))
    if spec.units >= needed:
        return None
    limit, wanted = spec.planning.max_accelerators, needed * accelerators_of(status.unit)
    held = limit is not None and wanted > limit
    return (
        f"{spec.units} units serve {spec.units * unit_rate:.3g} of {rate:g} requests/s within the "
        f"SLO; give {needed} units"
        + (f" and planning.maxAccelerators {wanted}" if held else ", or planning.units: Planned")
    )


def planned_reason(error: Exception) -> PlannedReason:
    """What a deployment without a plan says of it: the reason of `Planned=False`.

    Of PlannerError, WorkloadError and NoPlan; the message is the error's own.
    """
    if isinstance(error, NoPlan):
        return PlannedReason.SLO_NOT_REACHABLE
    if isinstance(error, NoProfile):
        return PlannedReason.NO_PROFILE
    if isinstance(error, PlanningOverdue | PlanningFailed):
        return PlannedReason.PLANNING_FAILED
    return PlannedReason.INVALID_REQUEST


def plan_document(deployment: DistServeDeployment, plan: Plan) -> dict[str, Any]:
    """What `distserve plan` prints: `status.plan`, and what led to it."""
    status, plan = plan_status(deployment, plan), _counted(deployment, plan)
    document: dict[str, Any] = {
        "feasible": plan.feasible,
        "reason": plan.reason,
        **status.model_dump(mode="json", exclude_none=True),
        "totalGoodput": f"{plan.goodput * status.accelerators:.4g}",
        **({"shortfall": short} if (short := shortfall(deployment, status)) else {}),
        "binds": plan.binds,
    }
    if plan.prediction:
        found = plan.prediction
        document["predicted"] = {
            "requestsPerSecond": f"{found.rate:.4g}",
            "attainmentPercent": round(found.attainment_percent, 2),
            "ttftMilliseconds": {f"p{p}": round(ms, 1) for p, ms in found.ttft_ms.items()},
            "tpotMilliseconds": {f"p{p}": round(ms, 1) for p, ms in found.tpot_ms.items()},
            "utilisation": {role: round(share, 3) for role, share in found.utilisation.items()},
        }
    if plan.runner_up:
        document["runnerUp"] = {
            "unit": _unit(plan.runner_up.roles),
            "goodput": f"{plan.runner_up.goodput:.3g}",
            "reason": plan.runner_up.reason,
        }
    return document


def plan_line(deployment: DistServeDeployment, plan: Plan) -> str:
    """The plan in one line, which is also the message of `Planned=True`."""
    status, plan = plan_status(deployment, plan), _counted(deployment, plan)
    profile = status.hardware_profile.removesuffix(" (estimate)")
    basis = f"{profile}, estimated" if status.estimated else profile
    line = f"{plan.reason}; units {status.units}, accelerators {status.accelerators} ({basis})"
    short = shortfall(deployment, status)
    return f"{line}; {short}" if short else line


def _with_numbers(section: RoleSpec, part: RolePlan) -> RoleSpec:
    parallelism = Parallelism(tensor=part.tensor, pipeline=part.pipeline)
    numbers = {"instances_per_unit": part.instances, "parallelism": parallelism}
    return section.model_copy(update=numbers)


def _counts(spec: Spec) -> bool:
    """Whether `spec.units` stands beside a plan."""
    return spec.planning.automatic and not spec.planning.plans_units


def _counted(deployment: DistServeDeployment, plan: Plan) -> Plan:
    return unit_alone(plan) if _counts(deployment.spec) else plan


def _units(deployment: DistServeDeployment, plan: Plan) -> int:
    return deployment.spec.units if _counts(deployment.spec) else plan.units


def _per_unit(plan: Plan) -> int:
    return sum(part.instances * part.tensor * part.pipeline for part in plan.roles.values())


def _unit(roles: dict[str, RolePlan]) -> dict[str, dict[str, int]]:
    return {role: asdict(part) for role, part in roles.items()}
