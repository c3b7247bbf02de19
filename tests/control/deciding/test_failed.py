"""`Failed` speaks of pods that the present spec made, not of those that an edit leaves behind."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.test_plans import auto, plan

from distserve.api import labels

Make = Callable[..., Any]
DECODE, GATEWAY = "tiny-u0-decode-0-0", "tiny-gateway-0"


def crash_loop(world: Any, name: str, restarts: int = 6, ran_seconds: float = 3) -> Any:
    """The pod does not recover; another one of its name does, unless it is made from the same."""
    pod = world.pods[name]
    world.pods[name] = replace(
        pod, ready=False, restarts=restarts, waiting="CrashLoopBackOff",
        message="engine: exit code 1: no such model", ran_seconds=ran_seconds,
    )  # fmt: skip
    world.broken = lambda one: (one.name, one.revision) == (name, pod.revision)
    return world


def failed(world: Any) -> bool:
    return bool(world.condition("Failed")["status"] == "True")


@pytest.mark.parametrize("restarts,ran,expected", [(6, 3, True), (5, 3, False), (9, 9000, False)])
def test_the_restart_budget(world: Any, restarts: int, ran: float, expected: bool) -> None:
    crash_loop(world.settle(), DECODE, restarts, ran).settle()
    assert failed(world) is expected
    assert "no such model" in world.condition("Ready")["message"]


def test_failed_stays_until_the_spec_changes(world: Any) -> None:
    crash_loop(world.settle(), DECODE).settle()
    assert [e.type for e in world.events if e.reason == "RestartBudgetSpent"] == ["Warning"]
    world.broken = lambda pod: False
    assert failed(world.settle())
    assert not failed(world.edit(images={"engine": "mine:2"}).settle())


def test_the_edit_that_cures_it_ends_it_though_the_pod_still_crashes(world: Any) -> None:
    crash_loop(world.settle(), DECODE).settle()
    world.edit(images={"engine": "mine:2"})
    assert world.pods[DECODE].waiting
    world.settle(check=lambda now: None if now.status["observedGeneration"] < 2 else no(now))
    assert world.condition("Ready")["status"] == "True"


def no(world: Any) -> None:
    assert not failed(world), world.condition("Failed")["message"]


def test_an_edit_that_cures_nothing_does_not_end_it(world: Any) -> None:
    crash_loop(world.settle(), DECODE).settle()
    assert failed(world.edit(gateway={"replicas": 3}).settle())
    world.edit(images={"engine": "mine:2"}).settle()
    crash_loop(world, DECODE).settle()
    assert failed(world) and world.pods[DECODE].revision in world.condition("Failed")["message"]


def test_gateways_of_a_former_template_do_not_count(world: Any) -> None:
    crash_loop(world.settle(), GATEWAY).settle()
    assert f"pod {GATEWAY} (gateway)" in world.condition("Failed")["message"]
    assert failed(world.edit(images={"engine": "mine:2"}).settle()), "it is the same gateway"
    world.edit(gateway={"requestTimeout": "1m"}).reconcile()
    no(world.settle())
    del world.pods[GATEWAY]
    world.step()
    assert failed(crash_loop(world, GATEWAY).settle())


def test_gateways_whose_template_names_no_revision_count(world: Any) -> None:
    """As operators stored it before."""
    (record,) = world.settle().named("ControllerRevision").values()
    del record["data"]["gatewayTemplate"]["metadata"]["labels"][labels.REVISION]
    del world.settle().pods[GATEWAY]
    world.settle()
    assert world.pods[GATEWAY].revision == ""
    assert failed(crash_loop(world, GATEWAY).settle())


def test_what_a_former_plan_made_does_not_count(new_world: Make) -> None:
    """It stays in use after the edit, until there is another plan."""
    world = auto(new_world)
    world.plans["*"] = plan()
    crash_loop(world.settle(), DECODE).settle()
    world.plans.clear()
    assert failed(world.edit(slo={"ttft": "1s", "tpot": "100ms"}).settle())
    world.plans["*"] = plan(tensor=1)
    world.reconcile()
    no(world)
    no(world.settle())
