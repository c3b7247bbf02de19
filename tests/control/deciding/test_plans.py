"""Mode Auto: who is asked, and what stays while a plan is made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tests.control.deciding.played_cluster import node

from distserve.api import labels
from distserve.operator.model import PlanQuestion
from distserve.placement.inventory import Offer
from distserve.planner.errors import NoProfile
from distserve.planner.plan import Plan, RolePlan
from distserve.planner.worker import PlanningOverdue
from distserve.resources import planning

Make = Callable[..., Any]
AUTO: dict[str, Any] = {
    "model": {"id": "facebook/opt-13b", "source": {"persistentVolumeClaim": {"claimName": "m"}}},
    "accelerator": {"type": "GPU"},
    "slo": {"ttft": "250ms", "tpot": "100ms"},
    "workload": {
        "requestsPerSecond": "4.5",
        "lengths": {
            "promptTokens": {"mean": 755, "p90": 1608},
            "outputTokens": {"mean": 200, "p90": 447},
        },
    },
    "planning": {"mode": "Auto", "maxAccelerators": 16, "hardwareProfile": "a100-80g"},
}


def plan(units: int = 2, tensor: int = 2, feasible: bool = True) -> Plan:
    return Plan(
        feasible=feasible,
        reason="it meets the SLO" if feasible else "the best reaches 61% of 90%: relax slo.ttft",
        inputs_hash="abc",
        hardware_profile="a100-80g",
        estimated=False,
        roles={"prefill": RolePlan(1, tensor, 1), "decode": RolePlan(1, 1, 1)},
        segments=1,
        units=units,
        accelerators=3 * units,
        goodput=1.5,
        total_goodput=4.5,
        binds="TTFT",
        prediction=None,
        runner_up=None,
    )


def auto(new_world: Make) -> Any:
    world = new_world(**AUTO)
    world.settings = replace(world.settings, engine_check=False)
    return world


def asked(world: Any) -> list[PlanQuestion]:
    world.decide()
    return [question for question in world.questions if isinstance(question, PlanQuestion)]


def test_nothing_is_made_before_there_is_a_plan(new_world: Make) -> None:
    world = auto(new_world).settle()
    assert not world.objects
    assert world.condition("Planned")["status"] == "Unknown"
    assert world.condition("Ready")["reason"] == "NotPlanned"
    assert len(asked(world)) == 1


def test_the_plans_numbers(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan()
    world.settle()
    assert set(world.units()) == {"u0", "u1"}
    assert world.status["plan"]["unit"]["prefill"] == {"instances": 1, "tensor": 2, "pipeline": 1}
    assert world.condition("Planned")["status"] == "True"
    assert not asked(world), "a plan is kept"
    world.accelerators = (Offer(node("a"), 8), Offer(node("b"), 8))
    assert not asked(world), "also where nodes come and go"


def test_a_plan_counts_on_the_nodes_that_its_pods_may_use(new_world: Make) -> None:
    """One node of A100s, three of T4s, for pods that go to A100s alone."""
    world = auto(new_world)
    planned = {"podTemplate": {"spec": {"nodeSelector": {"gpu": "a100"}}}}
    world.edit(prefill=planned, decode=planned)
    right, wrong = {"gpu": "a100"}, {"gpu": "t4"}
    world.accelerators = (
        Offer(node("a", labels=right), 8),
        Offer(node("ill", labels=right, ready=False), 8),
        *(Offer(node(f"b{number}", labels=wrong), 8) for number in range(3)),
    )
    (question,) = asked(world)
    assert list(question.request.machine.nodes) == [8]
    world.edit(decode={}, prefill={})
    (question,) = asked(world)
    assert list(question.request.machine.nodes) == [8, 8, 8, 8]


def test_without_a_node_for_its_pods_a_plan_takes_what_the_spec_allows(new_world: Make) -> None:
    """In nodes as large as those that are there: an autoscaler may bring more of them."""
    world = auto(new_world)
    world.edit(prefill={"podTemplate": {"spec": {"nodeSelector": {"gpu": "a100"}}}})
    world.accelerators = (Offer(node("b", labels={"gpu": "t4"}), 4),)
    (question,) = asked(world)
    assert list(question.request.machine.nodes) == [4, 4, 4, 4]
    world.edit(planning={"mode": "Auto", "hardwareProfile": "a100-80g"}).settle()
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "InvalidRequest")
    said = "none of the 1 nodes that offer nvidia.com/gpu (1 without the label gpu=a100)"
    assert said in planned["message"]
    assert world.decide().again_seconds == 300, "nodes that come wake nobody"


def test_before_any_node_is_there(new_world: Make) -> None:
    world = auto(new_world)
    (question,) = asked(world)
    assert list(question.request.machine.nodes) == [8, 8]
    world.edit(planning={"mode": "Auto", "hardwareProfile": "a100-80g"}).settle()
    assert "no nodes are known" in world.condition("Planned")["message"]
    assert world.decide().again_seconds == 300
    # Nodes that come do not mend this one.
    world.edit(planning={"mode": "Auto", "maxAccelerators": 16, "hardwareProfile": "h9000"})
    world.settle()
    assert world.condition("Planned")["status"] == "False"
    assert world.decide().again_seconds is None


def test_no_node_mends_a_plan_for_cpus(new_world: Make) -> None:
    world = auto(new_world)
    accelerator = {"type": "CPU"}
    world.edit(accelerator=accelerator, planning={"mode": "Auto", "hardwareProfile": "a100-80g"})
    world.settle()
    assert "no nodes are known" in world.condition("Planned")["message"]
    assert world.decide().again_seconds is None


def test_a_template_that_cannot_be_read_is_told_before_a_plan_is_made(new_world: Make) -> None:
    world = auto(new_world)
    world.edit(decode={"podTemplate": {"spec": {"nodeSelector": "a100"}}})
    world.accelerators = (Offer(node("a"), 8),)
    assert not asked(world)
    world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidPodTemplate")
    assert "spec.decode.podTemplate.spec.nodeSelector: a map is needed" in accepted["message"]


def test_a_plan_stays_in_use_while_another_is_made(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan()
    pods = set(world.settle().pods)
    world.plans.clear()
    world.edit(slo={"ttft": "1s", "tpot": "100ms"}).settle()
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("Unknown", "Planning")
    assert set(world.pods) == pods and world.condition("Ready")["status"] == "True"
    world.plans["*"] = plan(units=1, tensor=1)
    world.settle()
    assert set(world.units()) == {"u0"}
    assert world.condition("Planned")["status"] == "True"


def test_of_plans_with_the_same_pods_the_one_that_is_told_stays(new_world: Make) -> None:
    world = auto(new_world)
    for rate, units in (("4.5", 2), ("9", 4), ("4.5", 2)):
        world.plans["*"] = replace(plan(units), inputs_hash=rate)
        world.edit(workload=AUTO["workload"] | {"requestsPerSecond": rate}).settle()
        assert len(world.units()) == units
    world.plans.clear()
    for wish in ("1s", "2s"):  # Also at the next edit, while no plan was made for the first.
        world.edit(slo={"ttft": wish, "tpot": "100ms"}).settle()
        assert world.condition("Planned")["reason"] == "Planning"
        assert set(world.units()) == {"u0", "u1"}
    world.plans["*"] = NoProfile("no step times; set planning.estimate: true")
    assert set(world.settle().units()) == {"u0", "u1"}


def test_the_nearest_miss(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan(feasible=False)
    world.settle()
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "SloNotReachable")
    assert "61% of 90%" in planned["message"]
    assert world.decide().again_seconds == 300, "more nodes may reach it, and wake nobody"


def test_what_the_planner_cannot(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = NoProfile("no step times; set planning.estimate: true")
    world.settle()
    assert world.condition("Planned")["reason"] == "NoProfile"
    world.edit(planning={"mode": "Auto", "hardwareProfile": "h9000"}).settle()
    assert world.condition("Planned")["status"] == "False"


def test_asked_to_plan_again(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan()
    world.settle().document["metadata"]["annotations"][labels.REPLAN] = "1"
    world.plans.clear()
    assert len(asked(world)) == 1
    world.plans["*"] = plan(units=3)
    assert set(world.settle().units()) == {"u0", "u1", "u2"}


@pytest.mark.parametrize("source", ["hostPath", "imagePath"])
def test_the_operator_opens_no_path_that_a_spec_names(
    new_world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """It would be a file of its own container: one without an end ends the operator."""
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 9,
              "num_attention_heads": 2, "max_position_embeddings": 2048}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own").symlink_to(tmp_path)
    step = {name: [2, 0, 0.1] for name in ("prefill", "decoding_smallbs", "decoding_largebs")}
    (tmp_path / "times").write_text(json.dumps({"facebook/opt-13b": {"1": step}}))
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path) if source == "hostPath" else "/proc/self"  # /tmp is a volume of the pod
    estimate = AUTO["planning"] | {"estimate": True}
    for name in ("m", "own"):
        model = {"id": name, "source": {source: path}}
        world = auto(new_world)
        world.edit(model=model, planning=estimate).settle()
        planned = world.condition("Planned")
        assert (planned["status"], planned["reason"]) == ("False", "InvalidRequest")
        assert f"unknown model {name}: known by name are facebook/opt-13b" in planned["message"]
        assert "mode: Manual" in planned["message"]
    named = AUTO["planning"] | {"hardwareProfile": "times"}
    world = auto(new_world)
    world.edit(planning=named).settle()
    assert "unknown hardware profile times" in world.condition("Planned")["message"]


def test_a_plan_that_this_engine_cannot_run(new_world: Make) -> None:
    times = {"configMapName": "times", "key": "cpu.json"}
    world = new_world(
        **AUTO
        | {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "accelerator": {"type": "CPU"},
            "planning": {"mode": "Auto", "maxAccelerators": 8, "hardwareProfileFrom": times},
        }
    )
    step = {name: [2, 0, 0.1] for name in ("prefill", "decoding_smallbs", "decoding_largebs")}
    world.texts["times/cpu.json"] = json.dumps({"tiny": {"1": step}})
    world.plans["*"] = plan(tensor=2)
    world.settle()
    assert world.condition("Accepted")["reason"] == "NotSupportedByEngine"
    assert not world.objects


def test_a_trace_of_the_users(new_world: Make) -> None:
    world = auto(new_world)
    trace = {"configMapName": "loads", "key": "trace.csv"}
    world.edit(workload={"requestsPerSecond": "4.5", "trace": trace}).settle()
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "InvalidRequest")
    assert "create it" in planned["message"]
    assert world.decide().again_seconds == 60
    world.texts["loads/trace.csv"] = "prompt_len,output_len\n100,20\n200,30\n"
    world.settle()
    assert world.condition("Planned")["reason"] == "Planning"


@pytest.mark.parametrize("answer", [None, plan(feasible=False), NoProfile("no step times")])
def test_a_trace_is_read_again_until_there_is_a_plan(new_world: Make, answer: Any) -> None:
    """Nobody watches it, and nothing else would wake the operator once it is corrected."""
    world = auto(new_world)
    trace = {"configMapName": "loads", "key": "trace.csv"}
    good = "prompt_len,output_len\n100,20\n200,30\n"
    world.texts["loads/trace.csv"] = good if answer else "prompt_len,output_len\nmany,20\n"
    if answer:
        world.plans["*"] = answer
    world.edit(workload={"requestsPerSecond": "4.5", "trace": trace}).settle()
    assert world.condition("Planned")["status"] == "False"
    assert world.decide().again_seconds == 60
    world.texts["loads/trace.csv"] = good
    world.plans["*"] = plan()
    world.settle()
    assert world.condition("Planned")["status"] == "True"
    before = set(world.units())
    # From now on it is kept, whatever the ConfigMap says.
    world.texts["loads/trace.csv"] = "prompt_len,output_len\n900,20\n"
    world.plans["*"] = plan(units=3)
    assert set(world.settle().units()) == before
    world.document["metadata"]["annotations"][labels.REPLAN] = "1"
    assert len(world.settle().units()) == 3


@pytest.mark.parametrize("row", ["100,20", "many,20"], ids=["right", "wrong"])
def test_a_trace_is_parsed_once(new_world: Make, monkeypatch: Any, row: str) -> None:
    """A megabyte takes a second, in which the operator does nothing else."""
    parsed = Mock(wraps=planning.parse_requests)
    monkeypatch.setattr(planning, "parse_requests", parsed)
    world = auto(new_world)
    world.texts["loads/once.csv"] = f"prompt_len,output_len\n{row}\n"
    trace = {"configMapName": "loads", "key": "once.csv"}
    world.edit(workload={"requestsPerSecond": "4.5", "trace": trace}).settle()
    world.edit(units=2).settle()
    assert world.condition("Planned")["status"] == ("False" if row == "many,20" else "Unknown")
    assert parsed.call_count == 1


@pytest.mark.parametrize("limit", [901, 64], ids=["right", "hopeless"])
def test_lengths_are_drawn_once(new_world: Make, monkeypatch: Any, limit: int) -> None:
    drawn = Mock(wraps=planning.from_summary)
    monkeypatch.setattr(planning, "from_summary", drawn)
    world = auto(new_world)
    world.edit(model=AUTO["model"] | {"maxModelLen": limit}).settle()
    world.edit(units=2).settle()
    assert world.condition("Planned")["status"] == ("False" if limit == 64 else "Unknown")
    assert drawn.call_count == 1


def test_a_plan_that_took_too_long(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = PlanningOverdue("no plan within 600 s: narrow the search")
    world.settle()
    assert world.condition("Planned")["reason"] == "PlanningFailed"
    assert world.decide().again_seconds is not None


def test_step_times_of_a_configmap_with_a_long_name(new_world: Make) -> None:
    """NAME/KEY, of which each may have 253 characters."""
    world = auto(new_world)
    name = f"{'c' * 253}/{'k' * 253}"
    world.plans["*"] = replace(plan(), hardware_profile=name)
    world.settle()
    assert world.condition("Planned")["status"] == "True"
    assert world.status["plan"]["hardwareProfile"] == name


def test_one_answer_to_two_questions(new_world: Make) -> None:
    """The default said in words: nothing is rolled out, and nothing asked for ever."""
    world = auto(new_world)
    world.plans["*"] = plan()
    world.settle()
    uids = {pod.uid for pod in world.pods.values()}
    world.edit(planning=AUTO["planning"] | {"hardwareProfile": None}).settle()
    assert not asked(world)
    assert {pod.uid for pod in world.pods.values()} == uids
    assert len(world.named("ControllerRevision")) == 1


def test_a_plan_of_more_instances_than_one_deployment_may_have(new_world: Make) -> None:
    world = auto(new_world)
    world.plans["*"] = plan()
    world.settle()
    world.plans["*"] = plan(units=2049)
    load = AUTO["workload"] | {"requestsPerSecond": "4000"}
    world.edit(workload=load, planning=AUTO["planning"] | {"maxAccelerators": 65536}).settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert "the plan has 4098 instances in all units, and 4096 is" in accepted["message"]
    assert world.ready_units() == 2, "what serves does not end by it"
