"""`distserve plan` as a user runs it: files, exit codes, one line for a mistake."""

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from tests.planner.commands import command

from distserve.planner.commands.arguments import output_file
from distserve.planner.errors import InvalidRequest

DEPLOYMENT = """
apiVersion: distserve.io/v1alpha1
kind: DistServeDeployment
metadata: {name: opt-13b}
spec:
  model: {id: facebook/opt-13b, source: {hostPath: /models/opt-13b}, maxModelLen: 2048}
  slo: {ttft: TTFT, tpot: 100ms, attainmentPercent: 90}
  workload:
    requestsPerSecond: "RATE"
    lengths: {promptTokens: {mean: 755, p90: 1608}, outputTokens: {mean: 100, p90: 200}}
  planning: {mode: Auto, maxAccelerators: 4, hardwareProfile: a100-80g}
  prefill: {}
  decode: {}
"""
NODES = """
apiVersion: v1
kind: List
items:
- metadata: {name: a, labels: {kubernetes.io/hostname: a}}
  spec: {}
  status:
    allocatable: {nvidia.com/gpu: "3", cpu: "64", memory: 512Gi, pods: "110"}
    conditions: [{type: Ready, status: "True"}]
- metadata: {name: b, labels: {kubernetes.io/hostname: b}}
  spec: {unschedulable: true}
  status:
    allocatable: {nvidia.com/gpu: "8", cpu: "64", memory: 512Gi, pods: "110"}
    conditions: [{type: Ready, status: "True"}]
- metadata: {name: c, labels: {kubernetes.io/hostname: c}}
  spec: {}
  status:
    allocatable: {nvidia.com/gpu: "1", cpu: "64", memory: 512Gi, pods: "110"}
    conditions: [{type: Ready, status: "True"}]
"""


def deployment(folder: Path, ttft="250ms", rate="2") -> Path:
    path = folder / "deployment.yaml"
    path.write_text(DEPLOYMENT.replace("TTFT", ttft).replace("RATE", rate))
    return path


def test_plan_for_a_deployment(tmp_path):
    path = deployment(tmp_path)
    done = command("main", "plan", "-f", path, "--output", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["feasible"] and plan["accelerators"] <= 4
    assert float(plan["totalGoodput"]) >= 2
    assert plan["predicted"]["attainmentPercent"] >= 90
    assert plan["predicted"]["ttftMilliseconds"]["p90"] <= 250
    assert plan["unit"].keys() == {"prefill", "decode"}
    assert plan["binds"] and plan["runnerUp"]["unit"].keys() == {"prefill", "decode"}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--figure", "/none/plan.png", "cannot write into a folder /none"),
        ("--figure", ".", "is a folder; give a file in it"),
        ("--figure", "plan.pgn", "does not end in .png, .svg, .pdf"),
        ("--hardware-profile", "p.sqlite", "`distserve profile fit --db p.sqlite --output p.json`"),
    ],
)
def test_a_wrong_file_is_told_before_the_search(tmp_path, monkeypatch, flag, value, message, run):
    monkeypatch.chdir(tmp_path)
    Path("p.sqlite").write_bytes(b"SQLite format 3\0\xf8")
    done = run("plan", "-f", deployment(tmp_path), flag, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_name_that_nobody_can_look_at_is_told_too():
    with pytest.raises(ArgumentTypeError, match="cannot write into a folder /none"):
        output_file(f"/none/{'x' * 300}")


def test_a_file_that_is_there_needs_no_right_in_its_folder(tmp_path, monkeypatch):
    own = tmp_path / "plan.csv"
    own.touch()
    monkeypatch.setattr("os.access", lambda path, mode: path == own)
    assert output_file(str(own)) == own
    with pytest.raises(ArgumentTypeError, match="cannot write into a folder"):
        output_file(str(tmp_path / "other.csv"))


def test_plan_for_instances_that_do_both(tmp_path, run, quick):
    path = deployment(tmp_path)
    text = path.read_text().replace("  prefill: {}\n  decode: {}\n", "  hybrid: {}\n")
    path.write_text(text + "  strategy: {name: ChunkedPrefill, options: {chunkTokens: 256}}\n")
    done = run("plan", "-f", path, "--output", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["unit"].keys() == {"hybrid"}
    assert plan["hardwareProfile"] == "a100-80g"


def test_plan_on_the_cluster_s_nodes_with_a_figure(tmp_path, run, quick):
    (tmp_path / "nodes.yaml").write_text(NODES)
    done = run(
        *("plan", "-f", deployment(tmp_path, rate="1")),
        *("--nodes", tmp_path / "nodes.yaml"),
        *("--figure", tmp_path / "plan.png", "--prefill-tp", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "unit.prefill" in done.stdout and "tensor 2" in done.stdout
    placed = done.stdout.splitlines()[-1].split()
    assert placed == ["1", "create", "u0", "yes", "a", "(2)"], "prefill and decode, on the one node"
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_plan_without_an_answer_is_exit_3(tmp_path, run, quick):
    figure = tmp_path / "plan.png"
    done = run(
        *("plan", "-f", deployment(tmp_path, ttft="5ms")),
        *("--output", "yaml", "--figure", figure),
    )
    assert done.returncode == 3
    assert not figure.exists(), "there is nothing to draw"
    assert "nearest" in done.stderr
    assert "feasible: false" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ttft: 250ms", "ttft: quick"), "spec.slo.ttft"),
        (("  slo:", "  slow:"), "spec.slow: unknown field; did you mean slo?"),
        (("maxAccelerators", "maxAccelerator"), "did you mean maxAccelerators?"),
        (("  slo: {ttft: 250ms, tpot: 100ms, attainmentPercent: 90}\n", ""), "needs slo and"),
        (("maxAccelerators: 4, ", ""), "maxAccelerators or --nodes"),
        (("p90: 200", "p90: 2000"), "p90 must be between"),
        (("facebook/opt-13b", "nobody/knows"), "no config.json is at /models/opt-13b"),
        (("kind: DistServeDeployment", "kind: Other"), "no document of kind DistServeDeployment"),
        (("metadata:", "metadata: ]"), "no valid YAML"),
        (
            (", hardwareProfile: a100-80g}", "}\n  accelerator: {type: CPU}"),
            "no step times are shipped for CPUs",
        ),
    ],
)
def test_a_deployment_that_cannot_be_planned_is_one_line(tmp_path, change, message, run):
    path = deployment(tmp_path)
    path.write_text(path.read_text().replace(*change))
    done = run("plan", "-f", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_process_ends_so_too(tmp_path):
    done = command("main", "plan", "-f", tmp_path / "none.yaml")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("distserve plan: ") and "none.yaml" in done.stderr


def test_a_degree_that_nobody_measured_is_not_estimated(tmp_path, run):
    done = run("plan", "-f", deployment(tmp_path), "--prefill-tp", 8, "--estimate")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "TP 8 (known: TP 1, 2, 4); fix one of these, or give a --hardware" in done.stderr


def test_what_is_predicted_is_of_the_units_that_there_are(tmp_path, run, quick):
    path = deployment(tmp_path, rate="160")
    text = path.read_text().replace("maxAccelerators: 4,", "maxAccelerators: 64, units: Spec,")
    path.write_text(text)
    done = run("plan", "-f", path, "--output", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["units"] == 1 and " of 160 requests/s" in plan["shortfall"]
    served = float(plan["predicted"]["requestsPerSecond"])
    assert served == pytest.approx(float(plan["totalGoodput"]), rel=0.01) and served < 160
    assert plan["predicted"]["ttftMilliseconds"]["p50"] < 250


def test_a_rate_beyond_the_machine_is_no_miss_of_units_that_the_spec_counts(tmp_path, run, quick):
    path = deployment(tmp_path, rate="160")
    done = run("plan", "-f", path, "--output", "json")
    assert done.returncode == 3 and not json.loads(done.stdout)["feasible"]
    assert "give more accelerators or a looser SLO" in done.stderr
    path.write_text(
        path.read_text().replace("maxAccelerators: 4,", "maxAccelerators: 4, units: Spec,")
    )
    done = run("plan", "-f", path, "--output", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["feasible"] and plan["units"] == 1
    assert plan["reason"].endswith(" requests/s per unit")
    assert plan["shortfall"].startswith("1 units serve ")
    assert " of 160 requests/s within the SLO; give " in plan["shortfall"]
    assert " units and planning.maxAccelerators " in plan["shortfall"]
    path.write_text(path.read_text().replace("250ms", "5ms"))
    done = run("plan", "-f", path)
    assert done.returncode == 3 and "nothing meets the SLO" in done.stderr


def test_a_plan_is_told_before_it_is_drawn(tmp_path, run, quick, monkeypatch):
    def full(*_):
        raise InvalidRequest("cannot write plan.png: No space left on device")

    monkeypatch.setattr("distserve.planner.commands.plan_figure.draw_attainment", full)
    figure = ("--figure", tmp_path / "plan.png")
    done = run("plan", "-f", deployment(tmp_path), *figure, "--output", "json")
    assert done.returncode == 2 and "No space left" in done.stderr
    assert json.loads(done.stdout)["feasible"]
    path = deployment(tmp_path)
    text = path.read_text().replace("maxAccelerators: 4,", "maxAccelerators: 4, units: Spec,")
    for units, code in ((0, 0), (9, 3)):  # Nothing to draw, and more than there may be.
        path.write_text(f"{text}  units: {units}\n")
        done = run("plan", "-f", path, *figure)
        assert done.returncode == code and ("No space left" in done.stderr) == (units > 0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("distserve.planner.plan.make_plan", full)
    done = run("plan", "-f", deployment(tmp_path), *figure)
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs matplotlib, in a checkout: pip install '.[bench]'" in done.stderr
