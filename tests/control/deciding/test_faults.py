"""Mistakes in podTemplates, and faults of ours: each is a condition, and what runs is healed."""

from dataclasses import replace
from typing import Any

import pytest

from distserve.api import labels
from distserve.operator.model import NoPlace

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def matching(**requirement: Any) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"spec": {"affinity": {"nodeAffinity": {REQUIRED: terms}}}}


def asking(**requests: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", "resources": {"requests": requests}}]}}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "operator": (matching(key="a", operator="in", values=["b"]), "operator: one of In, NotIn"),
    "no operator": (matching(key="a"), "operator: one of In, NotIn"),
    "no number": (matching(key="a", operator="Gt", values=["abc"]), "Gt needs one whole number"),
    "toleration": ({"spec": {"tolerations": ["x"]}}, "spec.tolerations[0]: a map is needed"),
    "quantity": (asking(cpu="2 cores"), "requests.cpu: '2 cores' is no quantity"),
    "huge quantity": (asking(cpu="1e999999999"), "requests.cpu: '1e999999999' is no quantity"),
    "spec that is text": ({"spec": "x"}, "podTemplate.spec: a map is needed"),
    "no label": ({"metadata": {"labels": {"a": None}}}, "metadata.labels.a: text is needed"),
    "name that is a number": ({"spec": {"containers": [{"name": 5}]}}, "name of each item is text"),
}


@pytest.fixture
def running(world: Any) -> Any:
    """A deployment whose node was just deleted; there is another one."""
    world.settle()
    world.silent = {"node-a"}
    world.nodes = {"node-b": replace(world.nodes["node-a"], name="node-b")}
    return world


def healed(world: Any) -> bool:
    return bool(world.pods) and {pod.node for pod in world.pods.values()} == {"node-b"}


@pytest.mark.parametrize("section", ["decode", "gateway"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_pod_template_is_told_and_what_runs_is_healed(
    running: Any, section: str, mistake: str
) -> None:
    template, words = MISTAKES[mistake]
    running.edit(**{section: {"podTemplate": template}}).settle()
    accepted = running.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidPodTemplate")
    assert accepted["message"].startswith(f"spec.{section}.podTemplate.")
    assert words in accepted["message"]
    assert healed(running) and running.condition("Ready")["status"] == "True"
    running.edit(**{section: {}}).settle()
    assert running.condition("Accepted")["status"] == "True"


def test_a_fault_is_told_and_what_runs_is_healed(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: Any) -> Any:
        raise KeyError("what is\nmissing")

    monkeypatch.setattr("distserve.operator.decide._steer", trip)
    running.trips = True
    running.settle()
    accepted = running.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "OperatorFault")
    assert "KeyError: " in accepted["message"] and "\n" not in accepted["message"]
    assert healed(running) and running.condition("Ready")["status"] == "True"
    decision = running.decide()
    assert decision.questions == () and decision.fault.__traceback__ is not None
    monkeypatch.undo()
    running.trips = False
    running.settle()
    assert running.condition("Accepted")["status"] == "True"


@pytest.mark.parametrize("label", [labels.ROLE, labels.REVISION])
def test_what_runs_is_healed_beside_a_label_that_was_overwritten(running: Any, label: str) -> None:
    """Which nothing puts back while the spec is refused."""
    running.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["labels"][label] = "x"
    running.edit(decode={"podTemplate": {"spec": "x"}}).settle()
    assert running.condition("Accepted")["reason"] == "InvalidPodTemplate"
    assert healed(running) and running.condition("Ready")["status"] == "True"


def test_a_role_that_somebody_wrote_into_the_status_is_not_told(world: Any) -> None:
    world.settle().status["roles"].append({"name": "x", "desired": 1, "ready": 0, "updated": 0})
    world.edit(decode={"podTemplate": {"spec": "x"}}).settle()
    assert [one["name"] for one in world.status["roles"]] == ["prefill", "decode"]


def test_what_runs_is_healed_though_its_fault_cannot_be_told(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr("distserve.operator.decide._steer", trip)
    monkeypatch.setattr("distserve.operator.report.health_facts", trip)
    running.trips = True
    running.settle()
    assert healed(running)
    fault = running.decide().fault
    assert isinstance(fault.__context__, KeyError), "the first one is told, too"


@pytest.fixture
def unplaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placement trips over each unit that is asked for."""
    trips = NoPlace("Placing", "unit u1: the operator trips over finding its place")
    monkeypatch.setattr("tests.control.deciding.conftest.World._place", lambda *_: trips)


@pytest.mark.usefixtures("unplaced")
def test_no_nodes_are_asked_for_because_of_a_fault(new_world: Any) -> None:
    world = new_world(topology={"whenNoFit": "Provision"}).settle()
    assert not world.named("StatefulSet")
    placed = world.condition("Placed")
    assert (placed["status"], placed["reason"]) == ("Unknown", "Placing")
    assert "the operator trips" in placed["message"]


def test_no_unit_makes_room_because_of_a_fault(world: Any, request: Any) -> None:
    world.settle()
    before = set(world.pods)
    request.getfixturevalue("unplaced")
    world.edit(rollout={"whenFull": "ReplaceOne"}, images={"engine": "mine:2"}).settle()
    assert world.status["revision"]["current"] != world.status["revision"]["target"]
    assert set(world.pods) == before
