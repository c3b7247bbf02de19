"""What the simulator's commands say to a mistake: one line with its cure, and exit code 2."""

import pytest
from tests.planner.commands import command

ESTIMATE = ("--estimate", "--hardware-profile", "h100-80g")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "give --requests FILE"),
        (["search", "--requests", "none.csv"], "cannot read the requests"),
        (["search", "--requests", "README", "--N", "30000"], "ask for at most 20000"),
        (
            ["search", "--requests", "README", "--model-type", "175b"],
            "no profile for facebook/opt-175b, give --hardware-profile or --estimate",
        ),
        (["search", "--requests", "README", "--model-type", "gpt-5"], "unknown model"),
        (["search", "--requests", "README", "--hardware-profile", "x"], "unknown hardware"),
        (
            ["search", "--requests", "README", "--no-compat", "--decode-percentage", "80"],
            "the same value",
        ),
        (["search", "--requests", "README", "--esp", "0"], "not above 1e-06"),
        (["search", "--requests", "README", "--max-per-gpu-rate", "inf"], "at most 1e+06"),
        (["run", "--requests", "README", "--arrival", "recorded"], "no arrival times"),
        (["run", "--requests", "README", "--tp-decode", "0"], "at least 1"),
        (["run", "--requests", "README", "--rate", "-1"], "above 0"),
        (["run", "--requests", "README", "--tp-prefill", "3"], "no profile"),
        (["run", "--requests", "README", "--prefill-instances", "2"], "add --no-compat"),
        (["run", "--requests", "README", "--output-requests", "/none/x.csv"], "cannot write"),
        (["sweep", "--requests", "README", "--no-compat"], "knows only --compat"),
        (["run", "--requests", "README", "--arrival", "fixed", "--cv", "2"], "no effect"),
        (["run", "--requests", "README", "--burst-size", "2"], "no effect"),
        (["search", "--requests", "README", "--network", "h100-dgx"], "add --no-compat"),
        (["run", "--requests", "README", "--pp-prefill", "0", "--no-compat"], "less than 1"),
        (["run", "--requests", "README", "--tp-prefill", "0"], "less than 1"),
        (["run", "--requests", "README", "--slas", "[150]"], "percentiles from 0 to 100"),
        (["run", "--requests", "README", "--slas=-5"], "percentiles from 0 to 100"),
        (["sweep", "--requests", "README", "--slas", "[1e999]"], "percentiles from 0 to 100"),
        (["sweep", "--requests", "README", "--base-N", "[1e999]"], "whole numbers"),
        (["sweep", "--requests", "README", "--base-N", "[2.5]"], "whole numbers"),
        (["sweep", "--requests", "README", "--base-N", "0"], "whole numbers from 1"),
        (["sweep", "--requests", "README", "--tp-decode", "0"], "whole numbers from 1"),
        (
            ["sweep", "--requests", "README", "--pp-prefill", "[1,0]", "--estimate"],
            "whole numbers from 1",
        ),
        (
            ["run", "--requests", "README", "--no-compat", "--pp-prefill", "80"],
            "the 40 layers of facebook/opt-13b are not 80 equal stages; give one of PP 1, 2, 4, 5,",
        ),
        (["run", "--requests", "README", "--pp-decode", "3"], "are not 3 equal stages"),
        (
            ["run", "--requests", "README", "--pp-decode", "3", *ESTIMATE],
            "are not 3 equal stages",
        ),
        (["sweep", "--requests", "README", "--num-node", "2"], "no effect without --figure"),
        (
            ["search", "--requests", "README", "--estimate", "--hardware-profile", "mine.json"],
            "there is no data sheet of mine.json to estimate from; give one of a100-80g",
        ),
        (["sweep", "--requests", "README", "--output-points", "p"], "no effect without --figure"),
        (["sweep", "--requests", "README", "--output-summary", "/none/x.csv"], "cannot write into"),
        (
            ["sweep", "--requests", "README", "--figure", "f.png", "--slo-scales", "[0.5]"],
            "the figure needs 1.0 among --slo-scales and --figure-rate",
        ),
        (
            ["sweep", "--requests", "README", "--figure", "f.png", "--per-gpu-rate", "[1,2]"],
            "the figure needs 1.0 among --slo-scales and --figure-rate",
        ),
        (["run", "--workload", "lengths.json", "--rate", "4"], "(--arrival poisson draws others)"),
        (["sweep", "--requests", "README", "--arrival", "recorded"], "a sweep is over rates"),
        (["run", "--requests", "EMPTY"], "holds no requests"),
        (
            ["run", "--requests", "README", "--hardware-profile", "DATABASE"],
            "distserve profile fit",
        ),
        (["run", "--requests", "LONG", "--N", "1"], "exceeds the 66144 tokens"),
        (["run", "--requests", "LONG", "--N", "1", "--no-compat"], "exceeds the 66144 tokens"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, message, readme_file, tmp_path, run):
    (tmp_path / "empty.csv").write_text("prompt_len,output_len\n")
    (tmp_path / "p.sqlite").write_bytes(b"SQLite format 3\0\xf8")
    (tmp_path / "long.csv").write_text("prompt_len,output_len\n70000,9\n")
    files = {
        "README": str(readme_file),
        "EMPTY": str(tmp_path / "empty.csv"),
        "LONG": str(tmp_path / "long.csv"),
        "DATABASE": str(tmp_path / "p.sqlite"),
    }
    done = run("simulate", *[files.get(argument, argument) for argument in arguments])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_process_ends_so_too():
    done = command("main", "simulate", "run", "--requests", "none.csv")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("distserve simulate run: cannot read the requests in none.csv")


VLLM = ("run", "--backend", "vllm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*VLLM, "--no-compat", "--decode-instances", 4), "--decode-instances has no effect with"),
        ((*VLLM, "--no-compat", "--network", "nonsense"), "--network has no effect with"),
        ((*VLLM, "--no-compat", "--ngpu-per-node", 4), "--ngpu-per-node has no effect with"),
        ((*VLLM, "--tp-decode", 2), "--tp-decode has no effect with backend vllm; leave it out"),
        ((*VLLM, "--pp-decode", 2, "--no-compat"), "--pp-decode has no effect with backend vllm"),
        (
            ("run", "--no-compat", "--colocated-strategy", "ChunkedPrefill"),
            "--colocated-strategy has no effect with backend distserve",
        ),
        (("run", "--arrival", "recorded", "--rate", 2), "--rate has no effect on recorded"),
        (("run", "--arrival", "custom", "--N", 64, "--no-compat"), "--N has no effect on recorded"),
        (
            ("search", "--no-compat", "--backend", "vllm", "--network", "nonsense"),
            "--network has no effect with backend vllm",
        ),
        (
            ("search", "--no-compat", "--backend", "vllm", "--is-high-affinity"),
            "--is-high-affinity has no effect with backend vllm",
        ),
        (
            ("search", "--backend", "vllm", "--is-high-affinity"),
            "--is-high-affinity has no effect with backend vllm",
        ),
        (
            ("sweep", "--backend", "vllm", "--tp-decode", "[1,2]"),
            "--tp-decode has no effect with backend vllm",
        ),
        (
            ("sweep", "--backend", "vllm", "--pp-decode", 2),
            "--pp-decode has no effect with backend vllm",
        ),
        (
            ("sweep", "--figure", "f.png", "--backend", "distserve"),
            "--backend has no effect with --figure, which draws both",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(arguments, message, tmp_path, run):
    path = tmp_path / "trace.csv"
    path.write_text("prompt_len,output_len,arrival_ms\n100,5,10\n200,6,40\n")
    done = run("simulate", *arguments, "--requests", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
