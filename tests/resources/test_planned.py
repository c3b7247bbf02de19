"""Deployments in mode Auto: a plan put back into them, and what their status says of it."""

from pathlib import Path
from typing import Any

import pytest
from tests.resources.planned_specs import deployment

from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import load_deployment
from distserve.planner.errors import InvalidRequest, NoProfile
from distserve.planner.plan import Plan, RolePlan, make_plan
from distserve.planner.worker import PlanningOverdue
from distserve.resources.errors import NoPlan
from distserve.resources.planned import (
    plan_document,
    plan_line,
    plan_status,
    planned_reason,
    shortfall,
    with_plan,
)
from distserve.resources.planning import plan_request
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images
from distserve.workload import WorkloadError

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "opt-13b.yaml"


def made(feasible: bool = True, **changes: Any) -> Plan:
    """A plan as the planner gives it, without its work."""
    roles = {"prefill": RolePlan(1, 2, 1), "decode": RolePlan(2, 1, 1)}
    fields = {
        "feasible": feasible, "reason": "because", "inputs_hash": "abc", "estimated": False,
        "hardware_profile": "a100-80g", "roles": roles, "segments": 1, "units": 3,
        "accelerators": 12, "goodput": 1.564, "total_goodput": 18.8, "binds": "TTFT",
        "prediction": None, "runner_up": None,
    }  # fmt: skip
    return Plan(**(fields | changes))


def test_a_plan_s_numbers_stand_where_the_user_would_write_them() -> None:
    asked = deployment(planning={"mode": "Auto", "maxAccelerators": 12})
    planned = with_plan(asked, made())
    prefill, decode = planned.spec.prefill, planned.spec.decode
    assert prefill and decode
    assert (prefill.instances_per_unit, prefill.parallelism.tensor) == (1, 2)
    assert (decode.instances_per_unit, decode.parallelism.tensor) == (2, 1)
    assert planned.spec.units == 3
    assert prefill.scheduling.max_num_batched_tokens == 4096
    manual = DistServeDeployment.model_validate(planned.document())
    assert manual == planned and not manual.spec.planning.automatic


def test_units_of_the_spec_are_kept_within_the_limit() -> None:
    planning = {"mode": "Auto", "maxAccelerators": 12, "units": "Spec"}
    for units in (0, 2):
        asked = deployment(planning=planning, units=units)
        assert with_plan(asked, made()).spec.units == units
        assert plan_status(asked, made()).units == units
        assert plan_status(asked, made()).accelerators == units * 4
        assert float(plan_document(asked, made())["totalGoodput"]) == pytest.approx(
            units * 4 * 1.564, rel=1e-3
        )
    with pytest.raises(NoPlan, match="4 of 4 accelerators each need 16, and planning"):
        with_plan(deployment(planning=planning, units=4), made())


def test_units_of_the_spec_that_are_too_few_say_so_with_both_numbers() -> None:
    """A unit of the plan serves 4 x 1.56 requests/s."""
    counted = {"mode": "Auto", "maxAccelerators": 12, "units": "Spec"}
    lengths = deployment().spec.document()["workload"]["lengths"]

    def asked(rate: str, **changes: Any) -> DistServeDeployment:
        return deployment(workload={"requestsPerSecond": rate, "lengths": lengths}, **changes)

    few = asked("15", planning=counted, units=1)
    said = "1 units serve 6.24 of 15 requests/s within the SLO; give 3 units, or planning.units"
    assert said in (shortfall(few, plan_status(few, made())) or "")
    assert said in plan_document(few, made())["shortfall"]
    assert said in plan_line(few, made())
    held = asked("15", planning=counted | {"maxAccelerators": 11}, units=1)
    told = shortfall(held, plan_status(held, made())) or ""
    assert told.endswith("give 3 units and planning.maxAccelerators 12")
    for fine in (
        asked("15", planning=counted, units=3),
        asked("15"),
        asked("6.25", planning=counted, units=1),
        deployment(planning=counted, workload={"lengths": lengths}),
    ):
        assert shortfall(fine, plan_status(fine, made())) is None
        assert "shortfall" not in plan_document(fine, made())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoPlan("nearest: ..."), "SloNotReachable"),
        (NoProfile("..."), "NoProfile"),
        (PlanningOverdue("..."), "PlanningFailed"),
        (InvalidRequest("..."), "InvalidRequest"),
        (WorkloadError("..."), "InvalidRequest"),
    ],
)
def test_every_error_has_its_reason(error: Exception, reason: str) -> None:
    assert planned_reason(error) == reason


def test_a_miss_is_not_rendered() -> None:
    with pytest.raises(NoPlan, match="because"):
        with_plan(deployment(), made(feasible=False))
    with pytest.raises(NoPlan, match="there is no plan yet"):
        render(deployment(), RenderSettings(released_images()))


def test_status_holds_the_plan() -> None:
    asked = deployment()
    status = plan_status(asked, made(estimated=True))
    assert status.document() == {
        "mode": "Auto",
        "inputsHash": "abc",
        "unit": {
            "prefill": {"instances": 1, "tensor": 2, "pipeline": 1},
            "decode": {"instances": 2, "tensor": 1, "pipeline": 1},
        },
        "units": 3,
        "accelerators": 12,
        "goodput": "1.56",
        "hardwareProfile": "a100-80g",
        "estimated": True,
    }
    assert plan_document(asked, made(estimated=True)).items() >= status.document().items()
    assert plan_line(asked, made(estimated=True)) == (
        "because; units 3, accelerators 12 (a100-80g, estimated)"
    )


def test_the_sample_runs_with_its_plan_s_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real planner, and the objects that come of it."""
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 300)
    sample = load_deployment(SAMPLE)
    plan = make_plan(plan_request(sample.spec))
    planned = with_plan(sample, plan)
    objects = render(planned, RenderSettings(released_images()))
    engines = [
        next(c for c in o["spec"]["template"]["spec"]["containers"] if c["name"] == "engine")
        for o in objects
        if o["kind"] == "StatefulSet"
    ]
    assert len(engines) == plan.units * sum(part.instances for part in plan.roles.values())
    asked = sum(int(e["resources"]["limits"]["nvidia.com/gpu"]) for e in engines)
    assert asked == plan.accelerators == plan_status(sample, plan).accelerators <= 16
    assert plan.total_goodput >= 4.5
