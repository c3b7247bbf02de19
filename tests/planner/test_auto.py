"""Mode Auto from the command line: `plan`, `render` and `up` say the same of one deployment."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.api.loading import load_deployment, read_manifest
from distserve.cli.main import main
from distserve.cli.planned import Sources, planned, texts_of
from distserve.cli.usage import UsageError
from distserve.planner.plan import Plan, PlanRequest, make_plan
from distserve.planner.worker import plan_within
from distserve.resources.planning import plan_request
from distserve.resources.support import unsupported_by_engine

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "opt-13b.yaml"


@pytest.fixture(autouse=True)
def here(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick plans are made in this process; test_worker.py has those in their own."""

    def plan_here(request: PlanRequest, deadline_seconds: float) -> Plan:
        return make_plan(request)

    monkeypatch.setattr("distserve.planner.worker.plan_within", plan_here)


@pytest.fixture
def written(tmp_path: Path):
    """written(slo=...) -> the sample with changes in its spec, shorter lengths for short runs."""

    def write(**changes: Any) -> Path:
        document = yaml.safe_load(SAMPLE.read_text())
        lengths = {
            "promptTokens": {"mean": 300, "p90": 500},
            "outputTokens": {"mean": 40, "p90": 60},
        }
        document["spec"] |= {"workload": {"requestsPerSecond": 6, "lengths": lengths}} | changes
        path = tmp_path / "deployment.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> tuple[str, str]:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def test_render_has_the_numbers_of_plan(written, capsys):
    path = written()
    plan = json.loads(said(capsys, 0, "plan", "-f", path, "--output", "json")[0])
    rendered, line = said(capsys, 0, "render", "-f", path, "--output", "json")
    sets = [o for o in json.loads(rendered)["items"] if o["kind"] == "StatefulSet"]
    for role, part in plan["unit"].items():
        pods = [
            o["spec"]["template"]
            for o in sets
            if o["spec"]["template"]["metadata"]["labels"]["distserve.io/role"] == role
        ]
        assert len(pods) == plan["units"] * part["instances"]
        for pod in pods:
            (engine,) = [c for c in pod["spec"]["containers"] if c["name"] == "engine"]
            ranks = part["tensor"] * part["pipeline"]
            assert engine["resources"]["limits"]["nvidia.com/gpu"] == str(ranks)
    assert line.count("\n") == 1
    assert plan["reason"] in line and f"accelerators {plan['accelerators']} " in line


def test_units_of_the_spec_are_rendered_in_the_plan_s_shape(written, capsys):
    path = written(planning={"mode": "Auto", "maxAccelerators": 8, "units": "Spec"}, units=2)
    plan = json.loads(said(capsys, 0, "plan", "-f", path, "--output", "json")[0])
    assert plan["units"] == 2
    rendered, line = said(capsys, 0, "render", "-f", path, "--output", "json")
    sets = [o for o in json.loads(rendered)["items"] if o["kind"] == "StatefulSet"]
    assert len(sets) == 2 * sum(part["instances"] for part in plan["unit"].values())
    assert "units 2," in line


def test_up_says_the_plan_and_what_the_engine_cannot_run(written, capsys):
    _, error = said(capsys, 2, "up", "-f", written())
    plan, refusal = error.splitlines()
    assert plan.startswith("plan of opt-13b: prefill")
    assert "NotSupportedByEngine" in refusal


@pytest.mark.parametrize("verb", ["plan", "render", "up", "demo"])
def test_what_nothing_meets_is_exit_3_with_the_nearest_miss(verb, written, capsys):
    path = written(slo={"ttft": "5ms", "tpot": "100ms"})
    output, error = said(capsys, 3, verb, "-f", path)
    assert "nearest: prefill" in error and "of 5 ms" in error
    assert error.count("\n") == 1
    assert bool(output) == (verb == "plan")


@pytest.mark.parametrize("verb", ["plan", "render", "up"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": None}, "planning.mode Auto needs slo and workload"),
        ({"planing": {}}, "spec.planing: unknown field; did you mean planning?"),
        ({"planning": {"mode": "Auto"}}, "maxAccelerators"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(verb, change, message, written, capsys):
    output, error = said(capsys, 2, verb, "-f", written(**change))
    assert message in error and error.count("\n") == 1
    assert not output


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """Step times of the tiny model in milliseconds, at which wider instances pay."""
    profile = {
        str(tp): {"prefill": [1.0, 0.4 / tp, 0.0]}
        | {name: [2.0, 0.0, 0.1] for name in ("decoding_smallbs", "decoding_largebs")}
        for tp in (1, 2)
    }
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"tiny": profile}))
    return path


CPU = {
    "model": {"id": "tiny", "source": {"builtin": "tiny"}},
    "accelerator": {"type": "CPU", "kvCache": "64Mi"},
    "slo": {"ttft": "0.3s", "tpot": "100ms"},
    "planning": {"mode": "Auto", "maxAccelerators": 8},
}


def test_a_profile_of_one_s_own_plans_for_cpus(written, times, capsys):
    path = written(**CPU)
    _, error = said(capsys, 2, "render", "-f", path)
    assert "no step times are shipped for CPUs" in error
    asked = ("-f", path, "--hardware-profile", times, "--output", "json")
    plan = json.loads(said(capsys, 0, "plan", *asked)[0])
    rendered, line = said(capsys, 0, "render", *asked)
    sets = [o for o in json.loads(rendered)["items"] if o["kind"] == "StatefulSet"]
    assert len(sets) == plan["accelerators"]
    assert plan["unit"]["prefill"]["instances"] > plan["unit"]["decode"]["instances"] == 1
    assert "(cpu.json)" in line


def test_a_plan_for_this_machine_is_one_that_its_engine_runs(written, times, capsys):
    """What fits the SLO best has two ranks an instance; the engine runs one."""
    path = written(**CPU)
    asked = ("plan", "-f", path, "--hardware-profile", times, "--output", "json")
    future = json.loads(said(capsys, 0, *asked, "--any-ranks")[0])
    assert any(part["tensor"] * part["pipeline"] > 1 for part in future["unit"].values())
    found = json.loads(said(capsys, 0, *asked)[0])
    assert all(part["tensor"] * part["pipeline"] == 1 for part in found["unit"].values())
    deployment = planned(load_deployment(path), Sources(hardware_profile=str(times)))
    assert unsupported_by_engine(deployment) is None
    capsys.readouterr()


def test_the_manifest_s_own_config_maps_are_planned_with(written, times, tmp_path, capsys):
    workload = {"requestsPerSecond": 4, "trace": {"configMapName": "load", "key": "seen.csv"}}
    profile = {"hardwareProfileFrom": {"configMapName": "load", "key": "cpu.json"}}
    path = written(**(CPU | {"workload": workload, "planning": CPU["planning"] | profile}))
    for verb in ("plan", "render", "up"):
        _, error = said(capsys, 2, verb, "-f", path)
        assert "no ConfigMap load with the key" in error and error.count("\n") == 1
    seen = "prompt_len,output_len\n" + "100,20\n50,30\n" * 100
    load = {"kind": "ConfigMap", "metadata": {"name": "load"}}
    load["data"] = {"seen.csv": seen, "cpu.json": times.read_text()}
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump_all([load, yaml.safe_load(path.read_text())]))
    plan = json.loads(said(capsys, 0, "plan", "-f", whole, "--output", "json")[0])
    assert plan["hardwareProfile"] == "load/cpu.json"
    assert "(load/cpu.json)" in said(capsys, 0, "render", "-f", whole)[1]
    trace = tmp_path / "seen.csv"
    trace.write_text(seen)
    given = ("--trace", trace, "--hardware-profile", times, "--output", "json")
    same = json.loads(said(capsys, 0, "plan", "-f", path, *given)[0])
    assert same["unit"] == plan["unit"] and same["units"] == plan["units"]
    said(capsys, 0, "render", "-f", path, *given)


def test_a_manifest_may_come_by_a_pipe(written, capsys):
    """As from `-f <(kustomize build .)`, which can be read once."""
    workload = {"requestsPerSecond": 4, "trace": {"configMapName": "load", "key": "seen.csv"}}
    seen = {"seen.csv": "prompt_len,output_len\n" + "100,20\n50,30\n" * 100}
    load = {"kind": "ConfigMap", "metadata": {"name": "load"}, "data": seen}
    document = yaml.safe_load(written(workload=workload).read_text())
    for verb, code in (("plan", 0), ("render", 0), ("up", 2)):
        reading, writing = os.pipe()
        with open(reading), open(writing, "w") as pipe:
            yaml.safe_dump_all([document, load], pipe)
            pipe.close()
            output, error = said(capsys, code, verb, "-f", f"/dev/fd/{reading}")
        assert ("plan of opt-13b: prefill" in error) == (verb != "plan")
        assert bool(output) == (verb != "up")


@pytest.mark.parametrize("verb", ["plan", "render", "up"])
def test_a_machine_too_small_for_the_model_is_exit_3_with_its_numbers(verb, written, capsys):
    """One accelerator of 72 GiB, for two instances of 122 GiB."""
    path = written(
        model={"id": "facebook/opt-66b", "source": {"hostPath": "/models/opt-66b"}},
        planning={"mode": "Auto", "maxAccelerators": 1},
    )
    output, error = said(capsys, 3, verb, "-f", path)
    assert "takes 4 accelerators of one node and 246.6 GiB of memory for weights" in error
    assert "the machine has 1 with 72 GiB" in error
    assert "give at least 4 accelerators in one node" in error
    assert error.count("\n") == 1
    assert bool(output) == (verb == "plan")


def test_units_of_the_spec_that_are_too_few_are_told(written, capsys):
    path = written(planning={"mode": "Auto", "maxAccelerators": 8, "units": "Spec"}, units=0)
    document = json.loads(said(capsys, 0, "plan", "-f", path, "--output", "json")[0])
    assert document["shortfall"].startswith("0 units serve 0 of 6 requests/s")
    assert "predicted" not in document
    assert "0 units serve 0 of 6 requests/s" in said(capsys, 0, "render", "-f", path)[1]


def test_a_profile_in_mode_manual_has_no_effect_and_is_refused(capsys):
    manual = SAMPLE.parent / "tiny-cpu.yaml"
    for verb in ("render", "up"):
        for flag, value in (("--hardware-profile", "a100-80g"), ("--trace", "seen.csv")):
            _, error = said(capsys, 2, verb, "-f", manual, flag, value)
            assert f"{flag} has no effect in planning.mode Manual" in error


def test_planning_has_a_deadline(written, monkeypatch):
    monkeypatch.setattr("distserve.planner.worker.plan_within", plan_within)
    deployment = load_deployment(written())
    assert plan_request(deployment.spec).rate == 6
    with pytest.raises(UsageError, match=r"opt-13b: no plan within 0.01 s"):
        planned(deployment, deadline_seconds=0.01)


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf"), -50.0])
def test_step_times_that_are_none_are_one_line(coefficient, written, times, capsys):
    profile = json.loads(times.read_text())
    profile["tiny"]["1"]["decoding_smallbs"][2] = coefficient
    times.write_text(json.dumps(profile))
    path = written(**CPU)
    for verb in ("plan", "render"):
        output, error = said(capsys, 2, verb, "-f", path, "--hardware-profile", times)
        assert "cpu.json: by `decoding_smallbs` of tiny at TP 1 a step takes no time" in error
        assert error.count("\n") == 1 and not output


@pytest.mark.parametrize("strategy", ["Colocated", "ChunkedPrefill"])
def test_a_decode_degree_where_nothing_only_decodes_is_refused(strategy, written, capsys):
    path = written(strategy={"name": strategy}, prefill=None, decode=None, hybrid={})
    output, error = said(capsys, 2, "plan", "-f", path, "--decode-tp", "2")
    assert f"--decode-tp has no effect with {strategy}" in error and "--prefill-tp" in error
    assert error.count("\n") == 1 and not output
    output, error = said(capsys, 2, "plan", "-f", path, "--network", "a100-dgx")
    assert f"--network has no effect with {strategy}, which moves no KV" in error
    assert error.count("\n") == 1 and not output


@pytest.mark.parametrize("where", [["--nodes", "nodes.yaml"], ["--cluster"]])
def test_a_node_size_beside_nodes_is_refused(where, written, capsys):
    output, error = said(capsys, 2, "plan", "-f", written(), "--ngpu-per-node", "4", *where)
    assert "--ngpu-per-node has no effect on nodes that are given" in error
    assert error.count("\n") == 1 and not output


@pytest.mark.parametrize(
    "other",
    [
        {"metadata": {"generateName": "load-"}, "data": {"seen.csv": "no"}},
        {"metadata": None, "data": {"seen.csv": "no"}},
        {"data": {"seen.csv": "no"}},
        {"metadata": "load", "data": {"seen.csv": "no"}},
        {"metadata": {"name": ["load"]}, "data": {"seen.csv": "no"}},
        {"metadata": {"name": "load"}, "data": ["seen.csv"]},
        {"metadata": {"name": "load"}, "data": None},
        {"metadata": {"name": "load"}},
    ],
)
def test_a_config_map_without_a_name_or_data_is_passed_over(other, written, tmp_path):
    workload = {"requestsPerSecond": 4, "trace": {"configMapName": "load", "key": "seen.csv"}}
    path = written(workload=workload)
    load = {"kind": "ConfigMap", "metadata": {"name": "load"}, "data": {"seen.csv": "yes"}}
    documents = [load, yaml.safe_load(path.read_text()), {"kind": "ConfigMap"} | other]
    path.write_text(yaml.safe_dump_all(documents))
    manifest = read_manifest(path)
    texts = texts_of(manifest.deployment().spec, manifest)
    assert list(texts.values()) == ["yes"]
