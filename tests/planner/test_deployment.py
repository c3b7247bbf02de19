"""Deployments and nodes as documents, and plans back into deployments."""

import copy
from typing import Any

import pytest

from distserve.planner.deployment import (
    duration_ms,
    machine_of,
    nodes_of,
    plan_document,
    plan_request,
    with_plan,
)
from distserve.planner.errors import InvalidRequest
from distserve.planner.plan import make_plan
from distserve.planner.profiles import load_profile
from distserve.workload import RequestSet

DOCUMENT: dict[str, Any] = {
    "apiVersion": "distserve.io/v1alpha1",
    "kind": "DistServeDeployment",
    "metadata": {"name": "opt-13b"},
    "spec": {
        "model": {
            "id": "facebook/opt-13b",
            "source": {"hostPath": "/models/opt-13b"},
        },
        "slo": {"ttft": "250ms", "tpot": "0.1s", "attainmentPercent": 95},
        "workload": {
            "requestsPerSecond": "3",
            "lengths": {
                "promptTokens": {"mean": 300, "p90": 600},
                "outputTokens": {"mean": 50, "p90": 100},
            },
        },
        "planning": {"mode": "Auto", "maxAccelerators": 6},
        "prefill": {"scheduling": {"maxNumBatchedTokens": 4096}},
        "decode": {},
    },
}


def document(**changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(DOCUMENT)
    changed["spec"].update(changes)
    return changed


def request_for(asked: dict[str, Any], **options: Any):
    return plan_request(asked, load_profile(), machine_of(asked["spec"], None), **options)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("250ms", 250), ("1.5s", 1500), ("1m30s", 90_000), ("1h", 3.6e6)]
)
def test_durations(text, milliseconds):
    assert duration_ms(text, "x") == milliseconds


@pytest.mark.parametrize("text", ["250", "ms", "1s junk", None, "-1s"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidRequest, match="write 250ms"):
        duration_ms(text, "spec.slo.ttft")


def test_a_document_s_question():
    asked = request_for(document())
    assert (asked.slo.ttft_ms, asked.slo.tpot_ms, asked.slo.ttft_percent) == (250, 100, 95)
    assert asked.rate == 3
    assert asked.max_batched_tokens == 4096
    assert asked.machine.accelerators == 6
    assert not asked.machine.span_nodes
    longest = map(sum, zip(asked.requests.prompt_tokens, asked.requests.output_tokens, strict=True))
    assert max(longest) <= 2048


def test_requests_of_one_s_own_replace_the_summary():
    own = RequestSet([10], [20])
    assert request_for(document(workload={}), requests=own).requests is own


def test_memory_utilisation_changes_what_fits():
    small = request_for(document(prefill={"acceleratorMemoryUtilization": "0.5"}))
    full = request_for(document())
    assert small.profile.kv_tokens(small.model, 1, 1) < full.profile.kv_tokens(full.model, 1, 1)
    assert small.inputs_hash != full.inputs_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": None}, "slo is missing"),
        ({"workload": {}}, "lengths is missing"),
        ({"workload": {"lengths": {"promptTokens": {"mean": 3}}}}, "mean and p90"),
        ({"workload": {**DOCUMENT["spec"]["workload"], "requestsPerSecond": "many"}}, "no number"),
        ({"model": {"id": "nobody/knows"}}, "unknown model"),
    ],
)
def test_fields_that_are_wrong_are_named(changes, message):
    with pytest.raises(InvalidRequest, match=message):
        request_for(document(**changes))


def test_nodes_that_can_be_used():
    node = {"spec": {}, "status": {"allocatable": {"nvidia.com/gpu": "8", "cpu": "4"}}}
    cordoned = {"spec": {"unschedulable": True}, "status": node["status"]}
    plain = {"spec": {}, "status": {"allocatable": {"cpu": "4"}}}
    assert nodes_of({"items": [node, cordoned, plain]}) == [8]
    with pytest.raises(InvalidRequest, match="no schedulable node offers amd"):
        nodes_of({"items": [node]}, "amd.com/gpu")


def test_without_nodes_the_limit_is_laid_out_in_nodes():
    assert list(machine_of({"planning": {"maxAccelerators": 20}}, None).nodes) == [8, 8, 4]
    with pytest.raises(InvalidRequest, match="maxAccelerators or --nodes"):
        machine_of({}, None)


def test_a_plan_becomes_a_deployment_that_the_api_accepts(monkeypatch):
    from distserve.api.deployment import DistServeDeployment

    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 200)
    asked = document()
    plan = make_plan(request_for(asked))
    planned = with_plan(asked, plan)
    manual = copy.deepcopy(planned)
    del manual["spec"]["workload"]
    manual["spec"]["planning"] = {"mode": "Manual"}
    deployment = DistServeDeployment.model_validate(manual)
    ranks = sum(
        section.instances_per_unit * section.parallelism.ranks
        for section in deployment.spec.roles.values()
    )
    assert deployment.spec.units * ranks == plan.accelerators <= 6
    assert planned["spec"]["prefill"]["scheduling"] == {"maxNumBatchedTokens": 4096}
    assert plan_document(plan)["inputsHash"] == request_for(asked).inputs_hash


def test_a_miss_is_not_rendered(monkeypatch):
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 200)
    asked = document(slo={"ttft": "1ms", "tpot": "1ms"})
    with pytest.raises(InvalidRequest, match="no plan to render"):
        with_plan(asked, make_plan(request_for(asked)))
