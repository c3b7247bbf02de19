"""Mode Auto with `planning.units: Spec`: the unit is the plan's, how many there are the user's."""

from collections.abc import Callable
from typing import Any

from tests.control.deciding.test_plans import AUTO, asked, auto, plan

from distserve.planner.plan import make_plan

Make = Callable[..., Any]


def test_units_of_the_spec_under_a_plan(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan()
    world.edit(planning=AUTO["planning"] | {"units": "Spec"}, units=1).settle()
    assert set(world.units()) == {"u0"}
    assert (world.status["plan"]["units"], world.status["plan"]["accelerators"]) == (1, 3)
    world.edit(units=4).settle()
    assert not asked(world), "how many units there are is no question to the planner"
    assert world.status["plan"]["accelerators"] == 12
    told = world.condition("Planned")["message"]
    assert told.startswith("4 units, 12 accelerators") and "maxAccelerators" not in told


def test_units_of_the_spec_stay_within_the_accelerators_that_a_plan_may_take(
    new_world: Make,
) -> None:
    """Whoever scales it, and whether a plan is kept, made or looked for in vain."""
    world = auto(new_world)
    planning = AUTO["planning"] | {"units": "Spec"}
    world.plans["*"] = plan()
    world.edit(planning=planning, units=1).settle()
    world.edit(units=6).settle()
    planned = world.condition("Planned")
    assert len(world.units()) == 5 and world.status["plan"]["accelerators"] == 15
    assert planned["status"] == "True" and planned["message"].startswith("5 units, 15 accel")
    assert "planning.maxAccelerators 16 allows 5 of spec.units 6" in planned["message"]
    load = AUTO["workload"] | {"requestsPerSecond": "400"}
    world.plans["*"] = plan()
    world.edit(workload=load).settle()
    short = world.condition("Planned")["message"].partition("allows 5 of spec.units 6; ")[2]
    assert short.startswith("5 units serve ") and " of 400 requests/s" in short
    assert short.endswith("give 89 units and planning.maxAccelerators 267"), "4.5/s by each of 3"

    world.plans["*"] = plan(feasible=False)
    world.edit(slo={"ttft": "1ms", "tpot": "100ms"}, units=7).settle()
    planned = world.condition("Planned")
    assert len(world.units()) == 5 and planned["reason"] == "SloNotReachable"
    assert planned["message"].endswith("allows 5 of spec.units 7")

    world.plans["*"] = plan(tensor=1)
    world.edit(slo={"ttft": "2s", "tpot": "100ms"}).settle()
    assert len(world.units()) == 7, "two accelerators each"
    world.edit(planning=planning | {"maxAccelerators": 1}).settle()
    assert world.ready_units() == 1, "what serves does not end by it"
    message = world.condition("Planned")["message"]
    assert message.endswith("planning.maxAccelerators 1 allows no unit of 2: one stays")


def test_units_of_the_spec_are_made_though_the_rate_exceeds_the_accelerators(
    new_world: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("distserve.planner.plan.SEARCH_REQUESTS", 80)
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 150)
    world = auto(new_world)
    planning = AUTO["planning"] | {"maxAccelerators": 2}
    load = AUTO["workload"] | {"requestsPerSecond": "160"}
    world.edit(workload=load, planning=planning)
    (question,) = asked(world)
    world.plans["*"] = make_plan(question.request)
    planned = world.settle().condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "SloNotReachable")
    world.edit(planning=planning | {"units": "Spec"}, units=1).settle()
    assert set(world.units()) == {"u0"}
    planned = world.condition("Planned")
    assert planned["status"] == "True" and " of 160 requests/s" in planned["message"]
    assert " units and planning.maxAccelerators " in planned["message"]
