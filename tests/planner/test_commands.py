"""The simulator's commands as a user runs them: processes, files, exit codes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.planner.commands import command, simulate

from distserve.planner.commands import sweep
from distserve.planner.commands.figure import goodput

README_COMMAND = (
    "--num-node 1 --ngpu-per-node 4 --model-type facebook/opt-13b --workload sharegpt "
    "--backend distserve --prefill-target 200 --decode-target 100 --prefill-percentage 90 "
    "--decode-percentage 90 --max-per-gpu-rate 5 --esp 0.25 --N 300"
)


def csv_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_readme_command_prints_the_reference_s_two_lines(readme_file):
    done = simulate("search", *README_COMMAND.split(), "--requests", readme_file)
    assert done.stdout.splitlines() == [
        "Best per GPU rate: 1.56",
        "Best config: pp_cross=1, tp_prefill=2, pp_prefill=1, tp_decode=1, pp_decode=1",
    ]
    assert done.returncode == 0
    # A busy machine takes the two seconds after which progress is told.
    assert all("9 configurations" in line for line in done.stderr.split("\n") if line)


def test_search_for_the_vllm_backend(readme_file):
    done = simulate("search", "--backend", "vllm", "--requests", readme_file)
    assert done.stdout.splitlines() == ["Best per GPU rate: 1.25", "Best config:  tp=4, pp=1"]


def test_search_as_json_has_every_configuration(readme_file):
    done = simulate("search", "--requests", readme_file, "--output", "json", "--N", 100)
    document = json.loads(done.stdout)
    assert len(document["configs"]) == 9
    for entry in (document["best"], *document["configs"]):
        names = {"pp_cross", "tp_prefill", "pp_prefill", "tp_decode", "pp_decode"}
        assert names | {"per_gpu_rate", "reason"} <= entry.keys()
    assert document["best"]["per_gpu_rate"] > 0
    misses = [entry for entry in document["configs"] if entry["per_gpu_rate"] == 0]
    assert all("TTFT" in entry["reason"] for entry in misses)


def test_the_same_seed_gives_the_same_bytes_on_one_processor(readme_file, tmp_path):
    written = []
    for number in range(2):
        paths = [tmp_path / f"{name}{number}.csv" for name in ("requests", "worker")]
        program = (
            "import os, sys\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "from distserve.cli import simulate\nsys.exit(simulate.main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [
                *(sys.executable, "-c", program, "run", "--no-compat", "--seed", "5"),
                *("--rate", "5", "--requests", str(readme_file)),
                *("--output-requests", str(paths[0]), "--output-worker", str(paths[1])),
            ],
            capture_output=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        written.append((done.stdout, *[path.read_bytes() for path in paths]))
    assert written[0] == written[1]


def test_search_takes_its_set_from_dataset(tmp_path, readme_requests):
    import marshal

    rows = [
        ("", prompt, output)
        for prompt, output in zip(
            readme_requests.prompt_tokens, readme_requests.output_tokens, strict=True
        )
    ]
    (tmp_path / "humaneval.ds").write_bytes(marshal.dumps({"reqs": rows}))
    done = simulate("search", "--workload", "humaneval", DATASET=str(tmp_path))
    assert done.stdout.startswith("Best per GPU rate: 1.56\n")


def test_a_search_starts_without_heavy_modules(readme_file):
    program = (
        "import sys\nfrom distserve.cli import simulate\n"
        f"simulate.main(['search', '--N', '20', '--requests', {str(readme_file)!r}])\n"
        "heavy = {'pydantic', 'pandas', 'simpy', 'torch', 'msgspec', 'click', 'yaml', "
        "'distserve.api', 'matplotlib'}\nprint('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


@pytest.mark.parametrize("backend", ["distserve", "vllm"])
def test_the_nearest_miss_has_figures(readme_file, backend):
    done = simulate(
        *("search", "--backend", backend, "--prefill-target", 9000, "--decode-target", 2),
        *("--N", 60, "--requests", readme_file),
    )
    assert done.returncode == 3
    assert re.search(r"P90 TPOT is \d+ ms and must be below 2 ms", done.stderr)


@pytest.mark.parametrize("compat", ["--compat", "--no-compat"])
def test_an_slo_that_nothing_meets_is_exit_3_with_the_nearest_miss(readme_file, compat):
    done = simulate("search", compat, "--prefill-target", 1.5, "--requests", readme_file)
    assert done.returncode == 3
    assert "nearest: pp_cross=1" in done.stderr
    # The reference prints a configuration at rate 0; the default mode does not.
    assert ("Best" in done.stdout) == (compat == "--compat")


LOOSE = ("--prefill-target", 3000, "--decode-target", 500)


def test_a_best_that_only_the_bound_stops_is_said(readme_file):
    """The reference's answer stays: of all that pass throughout it takes the smallest."""
    done = simulate("search", *LOOSE, "--requests", readme_file)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Best per GPU rate: 4.84",
        "Best config: pp_cross=1, tp_prefill=1, pp_prefill=1, tp_decode=1, pp_decode=1",
    ]
    assert "passed at every rate up to --max-per-gpu-rate 5," in done.stderr
    higher = simulate("search", *LOOSE, "--requests", readme_file, "--max-per-gpu-rate", 100)
    assert "pp_prefill=2" in higher.stdout and "max-per-gpu-rate" not in higher.stderr


def test_the_default_mode_looks_as_high_as_the_accelerators_can(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("prompt_len,output_len\n" + "100,8\n" * 50)
    search = ("search", "--no-compat", *LOOSE, "--N", 50, "--requests", path, "--output", "json")
    done, wide = simulate(*search), simulate(*search, "--max-per-gpu-rate", 640)
    assert done.returncode == 0 and "max-per-gpu-rate" not in done.stderr
    best = json.loads(done.stdout)["best"]
    assert best["per_gpu_rate"] > 5 and best == json.loads(wide.stdout)["best"]
    narrow = simulate(*search, "--max-per-gpu-rate", 5)
    assert json.loads(narrow.stdout)["best"]["per_gpu_rate"] < 5
    assert "passed at every rate up to --max-per-gpu-rate 5," in narrow.stderr


def test_few_requests_pass_no_rate_that_the_accelerators_cannot_sustain(readme_file):
    targets = ("--prefill-target", 1e9, "--decode-target", 1e9)
    source = ("--N", 3, "--requests", readme_file)
    done = simulate("search", "--no-compat", *targets, *source, "--max-per-gpu-rate", 640)
    assert 3 < float(done.stdout.split()[4]) < 4, "three requests by themselves pass at any rate"
    done = simulate("search", "--no-compat", *targets, *source, "--esp", 100)
    assert done.returncode == 3
    assert "--esp 100 tells no rates apart below; give a smaller one" in done.stderr


@pytest.mark.parametrize("layout", [("--is-high-affinity",), ("--backend", "vllm")])
def test_tensor_parallelism_stays_in_a_node_of_the_default_mode(layout, readme_file):
    def degrees(mode):
        done = simulate(
            *("search", mode, *layout, "--ngpu-per-node", 2, "--num-node", 3, "--N", 20, *LOOSE),
            *("--requests", readme_file, "--output", "json"),
        )
        assert done.returncode == 0, done.stderr
        configurations = json.loads(done.stdout)["configs"]
        return {c["tp_prefill"] for c in configurations} | {c["tp_decode"] for c in configurations}

    assert max(degrees("--no-compat")) == 2
    assert max(degrees("--compat")) > 2, "the reference's, as they are"


def test_float_rates_and_targets(readme_file):
    done = simulate(
        *("search", "--max-per-gpu-rate", 2.5, "--prefill-target", 250.5, "--N", 50),
        *("--requests", readme_file),
    )
    assert done.returncode == 0


def test_vllm_takes_the_reference_s_zero_for_no_decode_instance(readme_file):
    vllm = ("run", "--backend", "vllm", "--requests", readme_file)
    plain = simulate(*vllm)
    done = simulate(*vllm, "--tp-decode", 0, "--pp-decode", 0)
    assert (done.returncode, done.stdout) == (0, plain.stdout) and plain.stdout


def test_one_token_has_no_rate_per_token(tmp_path):
    (tmp_path / "one.csv").write_text("prompt_len,output_len\n100,1\n100,3\n")
    done = simulate(
        *("run", "--no-compat", "--requests", tmp_path / "one.csv", "--N", 2),
        *("--output-request-latency", tmp_path / "latency.csv"),
    )
    assert done.returncode == 0, done.stderr
    one, three = sorted(csv_rows(tmp_path / "latency.csv"), key=lambda row: float(row["tpot"]))
    assert (one["tpot"], one["inv_tpot_ms"], one["inv_tpot_s"]) == ("0.0", "", "")
    assert float(three["inv_tpot_s"]) == pytest.approx(1000 / float(three["tpot"]))


@pytest.mark.parametrize("mode", ["--compat", "--no-compat"])
@pytest.mark.parametrize(("backend", "needed"), [("distserve", 4), ("vllm", 2)])
def test_a_machine_too_small_is_exit_3_with_its_numbers(mode, backend, needed, readme_file):
    done = simulate(
        *("search", "--model-type", "66b", "--ngpu-per-node", 1, "--backend", backend),
        *("--requests", readme_file, "--output", "json", mode),
    )
    assert done.returncode == 3
    assert f"takes {needed} accelerators of one node and" in done.stderr
    assert "the machine has 1 with 74.4 GiB" in done.stderr
    assert f"give at least {needed} accelerators" in done.stderr
    document = json.loads(done.stdout)
    assert document["best"] is None and document["reason"] in done.stderr


def test_a_search_without_a_profile_still_lists_what_it_tried(readme_file):
    done = simulate(
        *("search", "--model-type", "175b", "--requests", readme_file, "--output", "json")
    )
    assert done.returncode == 2
    assert "no profile for facebook/opt-175b" in done.stderr
    document = json.loads(done.stdout)
    assert document["best"] is None
    assert all("no profile" in found["reason"] for found in document["configs"])


def test_a_model_without_profile_can_be_estimated(readme_file):
    done = simulate(
        *("search", "--model-type", "opt_175b", "--estimate", "--num-node", 2),
        *("--ngpu-per-node", 8, "--is-high-affinity", "--N", 20, "--requests", readme_file),
        *("--prefill-target", 4000, "--decode-target", 200, "--max-per-gpu-rate", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "estimates" in done.stdout


def test_run_writes_what_is_asked(readme_file, tmp_path, reference_rows):
    names = ("summary", "requests", "request-info", "request-event", "request-latency", "worker")
    files = {name: tmp_path / f"{name}.csv" for name in names}
    done = simulate(
        *("run", "--rate", 4.6875, "--N", 300, "--tp-prefill", 2, "--requests", readme_file),
        *("--prefill-containment", 90, "--decode-containment", 90),
        *(part for name, path in files.items() for part in (f"--output-{name}", path)),
    )
    assert done.returncode == 0, done.stderr
    assert "prefill_contained: True" in done.stdout
    rows = {name: csv_rows(path) for name, path in files.items()}
    expected = reference_rows("run_13b_2_1_1_1_rate4.6875.csv")
    for found, row in zip(rows["requests"], expected, strict=True):
        assert {key: float(value) for key, value in found.items()} == pytest.approx(row, rel=1e-6)
    assert len(rows["summary"]) == 3 * 5 + 2 * 5
    assert rows["request-info"][0] == {"req_id": "0", "prefill_lens": "946", "output_lens": "78"}
    assert float(rows["request-latency"][0]["first_token_latency"]) == expected[0]["ttft_ms"]
    events = [row["event_type"] for row in rows["request-event"] if row["req_id"] == "0"]
    assert events[0] == "init" and events[-1] == "exit_system"
    assert events.count("do_decode") == 78
    assert {row["event_type"] for row in rows["worker"]} == {"do_prefill", "do_decode", "wait"}


def test_run_replays_a_recorded_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("prompt_len,output_len,arrival_ms\n100,5,10\n200,6,40\n")
    for mode in ("--compat", "--no-compat"):
        done = simulate(
            *("run", "--arrival", "recorded", "--requests", path, mode),
            *("--output-requests", tmp_path / "out.csv"),
        )
        assert done.returncode == 0, done.stderr
        rows = csv_rows(tmp_path / "out.csv")
        assert [float(row["arrival_ms"]) for row in rows] == [0, 30]
        assert [row["prompt_len"] for row in rows] == ["100", "200"]


@pytest.mark.parametrize("arrival", ["poisson", "gamma", "fixed", "burst", "uniform"])
def test_run_in_the_default_mode(readme_file, arrival, tmp_path):
    done = simulate(
        *("run", "--no-compat", "--arrival", arrival, "--rate", 6, "--requests", readme_file),
        *("--prefill-instances", 2, "--decode-instances", 2, "--output", "json"),
        *("--output-worker", tmp_path / "w.csv", "--output-request-event", tmp_path / "e.csv"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 64
    workers = {row["instance"] for row in csv_rows(tmp_path / "w.csv")}
    assert workers == {"prefill-0", "prefill-1", "decode-0", "decode-1"}
    events = csv_rows(tmp_path / "e.csv")
    assert sum(event["event_type"] == "exit_system" for event in events) == 64


def test_a_json_workload_brings_its_times(tmp_path):
    path = tmp_path / "trace.json"
    rows = [(0.5, 100, 5), (0.75, 200, 6)]
    path.write_text(
        json.dumps([{"start_time": s, "prompt_len": p, "output_len": o} for s, p, o in rows])
    )
    done = simulate("run", "--workload", path, "--output-requests", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    assert [float(row["arrival_ms"]) for row in csv_rows(tmp_path / "out.csv")] == [0, 250]


def test_lengths_without_times_are_a_workload_too(tmp_path):
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps([{"prompt_len": 100, "output_len": 5}] * 4))
    asked = ("run", "--workload", path, "--arrival", "poisson", "--rate", 4, "--N", 3)
    done = simulate(*asked, "--output", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 3


@pytest.mark.parametrize(
    ("curve", "rate"),
    [
        ([(1, 100), (2, 95), (3, 85)], 2.5),
        ([(1, 100), (2, 90), (3, 80)], 2.0),
        ([(3, 99), (1, 100)], 3.0),
        ([(1, 89), (2, 40)], 0.0),
    ],
)
def test_goodput_of_a_curve_is_where_it_falls_below_ninety_percent(curve, rate):
    assert goodput(curve)[0] == pytest.approx(rate)


def test_sweep_with_a_figure_needs_no_grid_from_the_user():
    assert sweep.FIGURE["figure_rate"] in sweep.ABLATION_GRID["per_gpu_rate"]
    assert 1.0 in sweep.ABLATION_GRID["slo_scales"]
    assert sweep.GRID.keys() == sweep.ABLATION_GRID.keys()


def test_sweep_draws_four_curves(readme_file, tmp_path):
    done = simulate(
        *("sweep", "--requests", readme_file, "--base-N", 10, "--total-gpu", 8),
        *("--per-gpu-rate", "[0.375, 1.5]", "--tp-prefill", "[1,2]", "--pp-prefill", "[1,2]"),
        *("--tp-decode", "[1,2]", "--figure", tmp_path / "ablation.png"),
        *("--output-summary", tmp_path / "all.csv", "--output-points", tmp_path / "points.json"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert not (tmp_path / "ablation.json").exists(), "nothing is written that nobody asked for"
    panels = json.loads((tmp_path / "points.json").read_text())
    assert panels.keys() == {"rate", "slo"}
    for panel in panels.values():
        assert panel.keys() == {"dist++", "dist", "vllm++", "vllm"}
    rows = csv_rows(tmp_path / "all.csv")
    assert {row["backend"] for row in rows} == {"distserve", "vllm"}


def test_a_sweep_s_figure_that_cannot_be_written_is_told_before_the_sweep(readme_file):
    done = simulate("sweep", "--requests", readme_file, "--figure", "/none/ablation.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/none/ablation.png: cannot write into a folder /none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_leaves_out_what_cannot_hold_a_prompt(tmp_path, run):
    (tmp_path / "long.csv").write_text("prompt_len,output_len\n" + "70000,9\n" * 60)
    done = run("simulate", "sweep", "--requests", tmp_path / "long.csv", "--base-N", 2)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1, "the columns' names"
    assert "left out: " in done.stderr and "exceeds the 66144 tokens" in done.stderr


def test_help_has_no_default_that_is_none(tmp_path):
    for words in (("plan",), *(("simulate", verb) for verb in ("search", "run", "sweep"))):
        done = command("main", *words, "--help")
        assert done.returncode == 0 and "(None)" not in done.stdout
