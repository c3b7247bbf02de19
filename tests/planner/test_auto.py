"""Mode Auto from the command line: `plan`, `render` and `up` say the same of one deployment."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.cli.main import main
from distserve.cli.planned import planned
from distserve.cli.usage import UsageError
from distserve.resources.planning import plan_request

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "opt-13b.yaml"


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


def test_a_profile_of_one_s_own_plans_for_cpus(written, tmp_path, capsys):
    """Step times of the tiny model in milliseconds."""
    times = {"prefill": [1.0, 0.1, 0.0], "decoding_smallbs": [2.0, 0.0, 0.1]}
    profile = tmp_path / "cpu.json"
    profile.write_text(json.dumps({"tiny": {"1": times | {"decoding_largebs": [2.0, 0.0, 0.1]}}}))
    path = written(
        model={"id": "tiny", "source": {"builtin": "tiny"}},
        accelerator={"type": "CPU", "kvCache": "64Mi"},
        slo={"ttft": "1s", "tpot": "100ms"},
        planning={"mode": "Auto", "maxAccelerators": 8},
    )
    _, error = said(capsys, 2, "render", "-f", path)
    assert "no step times are shipped for CPUs" in error
    asked = ("-f", path, "--hardware-profile", profile, "--output", "json")
    plan = json.loads(said(capsys, 0, "plan", *asked)[0])
    rendered, line = said(capsys, 0, "render", *asked)
    sets = [o for o in json.loads(rendered)["items"] if o["kind"] == "StatefulSet"]
    assert len(sets) == plan["accelerators"] == 2
    assert "(cpu.json)" in line


def test_a_profile_in_mode_manual_has_no_effect_and_is_refused(capsys):
    manual = SAMPLE.parent / "tiny-cpu.yaml"
    for verb in ("render", "up"):
        _, error = said(capsys, 2, verb, "-f", manual, "--hardware-profile", "a100-80g")
        assert "has no effect in planning.mode Manual" in error


def test_planning_has_a_deadline(written):
    from distserve.api.loading import load_deployment

    deployment = load_deployment(written())
    assert plan_request(deployment.spec).rate == 6
    with pytest.raises(UsageError, match=r"opt-13b: no plan within 0.01 s"):
        planned(deployment, deadline_seconds=0.01)
