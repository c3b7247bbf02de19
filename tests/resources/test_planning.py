"""Deployments in mode Auto: the question that they ask."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.resources.planned_specs import deployment

from distserve.api.deployment import Spec
from distserve.placement import InstanceRequest
from distserve.placement.inventory import Offer
from distserve.placement.nodes import Node
from distserve.planner.errors import InvalidProfile, InvalidRequest, NoProfile
from distserve.planner.plan import PlanRequest
from distserve.planner.roofline import with_estimates
from distserve.resources.planning import (
    machine_of,
    model_of,
    nodes_of,
    plan_request,
    profile_of,
    references,
)
from distserve.workload import RequestSet, WorkloadError


def question(**changes: Any) -> PlanRequest:
    return plan_request(deployment(**changes).spec)


def test_the_question_of_a_deployment() -> None:
    asked = question()
    assert (asked.slo.ttft_ms, asked.slo.tpot_ms, asked.slo.ttft_percent) == (250, 100, 95)
    assert (asked.rate, asked.strategy) == (3, "Disaggregated")
    assert (asked.max_batched_tokens, asked.max_requests) == (4096, 64)
    assert asked.machine.accelerators == 6 and not asked.machine.span_nodes
    longest = map(sum, zip(asked.requests.prompt_tokens, asked.requests.output_tokens, strict=True))
    assert max(longest) <= 2048


@pytest.mark.parametrize(
    "change",
    [
        {"slo": {"ttft": "251ms", "tpot": "100ms", "attainmentPercent": 95}},
        {"planning": {"mode": "Auto", "maxAccelerators": 7}},
        {"planning": {"mode": "Auto", "maxAccelerators": 6, "hardwareProfile": "h100-80g",
                      "estimate": True}},
        {"prefill": {"acceleratorMemoryUtilization": "0.5"}},
        {"decode": {}},
        {"model": {"id": "facebook/opt-13b", "source": {"hostPath": "/m"}, "dtype": "float32"}},
        {"model": {"id": "facebook/opt-13b", "source": {"hostPath": "/m"}, "maxModelLen": 999}},
        {"strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {}},
    ],
)  # fmt: skip
def test_what_a_plan_depends_on_changes_its_hash(change: dict[str, Any]) -> None:
    assert question(**change).inputs_hash != question().inputs_hash


def test_what_a_plan_does_not_depend_on_keeps_its_hash() -> None:
    same = question(gateway={"replicas": 5}, rollout={"drainDeadline": "5s"})
    assert same.inputs_hash == question().inputs_hash


def test_a_plan_takes_no_more_memory_than_the_engines_may() -> None:
    full, half = question(), question(prefill={"acceleratorMemoryUtilization": "0.5"})
    assert full.profile.kv_budget_bytes == 0.9 * full.profile.memory_bytes
    assert half.profile.kv_tokens(half.model, 1, 1) < full.profile.kv_tokens(full.model, 1, 1)


def test_a_cpu_s_kv_cache_is_what_a_plan_may_fill() -> None:
    def tokens(cache: str) -> int:
        source = {"id": "tiny", "source": {"builtin": "tiny"}}
        spec = deployment(model=source, accelerator={"type": "CPU", "kvCache": cache}).spec
        model = model_of(spec)
        asked = plan_request(spec, profile=with_estimates("a100-80g", "distserve", model))
        assert asked.profile.kv_tokens(model, 2, 1) == 2 * asked.profile.kv_tokens(model, 1, 1)
        return asked.profile.kv_tokens(model, 1, 1) * model.kv_bytes_per_token

    assert (tokens("64Mi"), tokens("1Mi")) == (64 << 20, 1 << 20)


def test_requests_of_one_s_own_replace_the_summary() -> None:
    own, spec = RequestSet([10], [20]), deployment(workload=None, planning={"maxAccelerators": 2})
    assert plan_request(spec.spec, requests=own).requests is own
    with pytest.raises(InvalidRequest, match="workload is missing; add it, or give --requests"):
        plan_request(spec.spec)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"slo": None, "planning": {"maxAccelerators": 2}}, InvalidRequest, "slo is missing"),
        ({"planning": {"mode": "Auto"}}, InvalidRequest, "maxAccelerators or --nodes"),
        ({"model": {"id": "a/b", "source": {"imagePath": "/m"}}}, InvalidRequest, "unknown model"),
        (
            {"model": {"id": "facebook/opt-175b", "source": {"imagePath": "/m"}}},
            NoProfile, "give --hardware-profile or --estimate .*planning.estimate: true",
        ),
        (
            {"planning": {"mode": "Auto", "maxAccelerators": 2, "hardwareProfile": "h100-80g"}},
            NoProfile, "measured on h100-80g; set planning.estimate: true",
        ),
        ({"accelerator": {"type": "CPU"}}, InvalidRequest, "no step times are shipped for CPUs"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_names_the_cure(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        question(**changes)


TINY_TIMES = (
    '{"tiny": {"1": {"prefill": [1, 0.1, 0], "decoding_smallbs": [2, 0, 0.1],'
    ' "decoding_largebs": [2, 0, 0.1]}}}'
)


def test_texts_of_config_maps_are_the_load_and_the_step_times() -> None:
    spec = deployment(
        model={"id": "tiny", "source": {"builtin": "tiny"}, "maxModelLen": 400},
        accelerator={"type": "CPU"},
        workload={"trace": {"configMapName": "seen", "key": "monday.csv"}},
        planning={
            "mode": "Auto",
            "maxAccelerators": 4,
            "hardwareProfileFrom": {"configMapName": "times", "key": "cpu.json"},
        },
    ).spec
    trace, times = references(spec)
    assert (str(trace), str(times)) == ("seen/monday.csv", "times/cpu.json")
    texts = {trace: "prompt_len,output_len\n100,20\n390,20\n30,7\n", times: TINY_TIMES}
    asked = plan_request(spec, texts=texts)
    assert list(asked.requests.prompt_tokens) == [100, 30], "390 + 20 exceed maxModelLen"
    assert asked.profile.name == "times/cpu.json"
    other = plan_request(spec, texts=texts | {trace: "prompt_len,output_len\n100,21\n30,7\n"})
    assert other.inputs_hash != asked.inputs_hash


def test_of_names_of_config_maps_only_the_profile_s_changes_the_hash() -> None:
    def asked(load: str, times: str) -> str:
        spec = deployment(
            model={"id": "tiny", "source": {"builtin": "tiny"}},
            workload={"trace": {"configMapName": load, "key": "a.csv"}},
            planning={
                "mode": "Auto",
                "maxAccelerators": 4,
                "hardwareProfileFrom": {"configMapName": times, "key": "b.json"},
            },
        ).spec
        texts = ("prompt_len,output_len\n100,20\n", TINY_TIMES)
        return plan_request(spec, texts=dict(zip(references(spec), texts, strict=True))).inputs_hash

    assert asked("monday", "times") == asked("tuesday", "times")
    assert asked("monday", "times") != asked("monday", "other"), "status.plan tells its name"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "workload.trace: no ConfigMap seen with the key monday.csv is at hand; create it"),
        ({"monday.csv": "a,b\n1,2\n"}, "seen/monday.csv lacks the columns prompt_len,output_len"),
        ({"monday.csv": "prompt_len,output_len\n9999,1\n"}, "raise maxModelLen"),
    ],
)
def test_texts_that_are_missing_or_wrong(texts: dict[str, str], message: str) -> None:
    spec = deployment(workload={"trace": {"configMapName": "seen", "key": "monday.csv"}}).spec
    with pytest.raises((InvalidRequest, WorkloadError), match=message):
        plan_request(spec, texts={key: texts[key.key] for key in references(spec) if texts})


OWN = {"hardwareProfileFrom": {"configMapName": "times", "key": "cpu.json"}}


@pytest.mark.parametrize(
    ("planning", "error", "message"),
    [
        (OWN, NoProfile, "has step times of tiny, not of facebook/opt-13b; .*--served-name facebo"),
        (OWN | {"estimate": True}, InvalidRequest, "estimate .* has no effect beside step times"),
        ({"hardwareProfile": "h9000", "estimate": True}, InvalidProfile, "no data sheet of h9000"),
    ],
)
def test_what_a_profile_of_one_s_own_lacks_is_not_estimated(
    planning: dict[str, Any], error: type[Exception], message: str
) -> None:
    spec = deployment(planning={"mode": "Auto", "maxAccelerators": 4} | planning).spec
    with pytest.raises(error, match=message):
        plan_request(spec, texts={key: TINY_TIMES for key in references(spec)})


def test_estimates_may_be_allowed_beside_step_times_of_the_model() -> None:
    spec = deployment(
        model={"id": "tiny", "source": {"builtin": "tiny"}, "maxModelLen": 400},
        planning={"mode": "Auto", "maxAccelerators": 4, "estimate": True} | OWN,
    ).spec
    asked = plan_request(spec, texts={key: TINY_TIMES for key in references(spec)})
    assert asked.profile.name == "times/cpu.json"


@pytest.mark.parametrize("planning", [{"hardwareProfile": "a100-80g"}, {"estimate": True}])
def test_an_accelerator_s_step_times_are_no_cpu_s(planning: dict[str, Any]) -> None:
    spec = deployment(
        accelerator={"type": "CPU"}, planning={"mode": "Auto", "maxAccelerators": 4} | planning
    ).spec
    with pytest.raises(InvalidRequest, match="no step times are shipped for CPUs"):
        plan_request(spec)


def test_a_folder_is_read_for_the_commands_alone(tmp_path: Path) -> None:
    spec = deployment(model={"id": "m", "source": {"hostPath": str(tmp_path)}}).spec
    with pytest.raises(InvalidRequest, match=r"unknown model m: .* mode: Manual"):
        model_of(spec)
    with pytest.raises(InvalidRequest, match=r"no config.json is at .*; give a model's folder"):
        model_of(spec, files_at_hand=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert model_of(spec, files_at_hand=True).name == "m"
    with (tmp_path / "config.json").open("r+b") as opened:
        opened.truncate(8 << 20)
    with pytest.raises(InvalidRequest, match="it has more than 4 MiB"):
        model_of(spec, files_at_hand=True)


def test_a_short_word_for_a_known_model_may_be_another_s_name(tmp_path: Path) -> None:
    def spec(name: str) -> Spec:
        planning = {"mode": "Auto", "maxAccelerators": 4} | OWN
        model = {"id": name, "source": {"hostPath": str(tmp_path)}}
        return deployment(model=model, planning=planning).spec

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("13b", "opt_13b"):
        with pytest.raises(InvalidRequest, match=f"unknown model {name}: known by name are"):
            model_of(spec(name))
        own = model_of(spec(name), files_at_hand=True)
        assert (own.name, own.layers) == (name, 2)
        texts = {key: TINY_TIMES.replace("tiny", name) for key in references(spec(name))}
        assert profile_of(spec(name), own, texts=texts).times(own, 1)
    for name in ("facebook/opt-13b", "OPT-13B", "opt-13b"):
        assert model_of(spec(name), files_at_hand=True).name == "facebook/opt-13b"


CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 9,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def test_a_plan_keeps_to_what_this_engine_runs_where_it_runs() -> None:
    source = {"id": "tiny", "source": {"builtin": "tiny"}}
    spec = deployment(model=source, accelerator={"type": "CPU"}).spec
    times = with_estimates("a100-80g", "distserve", model_of(spec))
    assert plan_request(spec, profile=times).max_ranks == 1
    assert plan_request(spec, profile=times, any_ranks=True).max_ranks is None
    assert question().max_ranks is None, "no GPU engine yet: a plan for one is not limited"


def test_shape_and_times_of_a_model_that_nobody_measured() -> None:
    spec = deployment(model={"id": "tiny", "source": {"builtin": "tiny"}, "dtype": "float64"}).spec
    model = model_of(spec)
    assert (model.name, model.dtype_bytes) == ("tiny", 8)
    assert profile_of(spec, model, estimate=True).estimated


def test_nodes_that_the_pods_of_every_role_may_use() -> None:
    def offer(count: int, ready: bool = True, cordoned: bool = False, **labels: str) -> Offer:
        return Offer(Node("n", labels, {}, (), cordoned, ready), count)

    offers = [
        offer(8, gpu="a100"), offer(4, gpu="a100", zone="b"), offer(16, gpu="t4"),
        offer(2, ready=False, gpu="a100"), offer(1, cordoned=True, gpu="a100"),
    ]  # fmt: skip
    prefill = InstanceRequest("prefill", 1, {}, node_selector={"gpu": "a100"})
    decode = InstanceRequest("decode", 1, {}, node_selector={"zone": "b"})
    assert nodes_of(offers, [InstanceRequest("any", 1, {})]) == [4, 8, 16]
    assert nodes_of(offers, [prefill]) == [4, 8]
    assert nodes_of(offers, [prefill, decode]) == [4]
    assert nodes_of(offers[:1], [prefill, decode]) == []


def test_without_nodes_the_limit_is_laid_out_in_nodes() -> None:
    spec = deployment(planning={"maxAccelerators": 20}).spec
    assert list(machine_of(spec).nodes) == [8, 8, 4]
    assert machine_of(spec, [8, 8, 8]).accelerators == 20
