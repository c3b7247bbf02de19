"""`distserve bench report`: from a folder of result files to tables, figures and one page."""

import contextlib
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distserve.cli.main import main

EVENTS = (
    "issued", "context_begin", "context_end", "migration_begin", "migration_end",
    "decoding_begin", "decoding_end",
)  # fmt: skip


def rows(good: int, bad: int, told: bool) -> list[dict[str, Any]]:
    return [
        {
            "prompt_len": 10, "output_len": 2, "start_time": 0.0, "end_time": ttft + 0.05,
            "token_timestamps": [ttft, ttft + 0.05], "latency": ttft + 0.05, "ftl": ttft,
            "tpot": 0.05, "lifecycle_events": [
                {"event_type": name, "timestamp": 0.125 * at} for at, name in enumerate(EVENTS)
            ] if told else [],
        }
        for ttft in [0.1] * good + [0.5] * bad
    ]  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two systems at two rates; one of them tells its stages."""
    for system, told in (("apart", True), ("together", False)):
        for rate, good in ((1, 10), (3, 8 if told else 4)):
            path = tmp_path / f"{system}-10-{rate}.exp"
            path.write_text(json.dumps(rows(good, 10 - good, told)))
    about = {"parameters": {"gpus": 2, "dataset": "synthetic:sharegpt"}, "valid": False}
    (tmp_path / "together-10-3.run.json").write_text(json.dumps(about))
    return tmp_path


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]


def test_a_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "report", str(results), "--slo", "sharegpt-opt-13b", "--gpus", "apart=2"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "together at 3/s: INVALID" in err
    assert "synthetic:sharegpt: made-up lengths" in err
    folder = results / "report"
    with (folder / "crossings.csv").open() as file:
        found = {(row["system"], row["level"]): row for row in csv.DictReader(file)}
    # 100 % at 1/s and 80 % at 3/s on two GPUs: 90 % at 2/s, 1 per GPU.
    assert float(found["apart", "0.9"]["rate_per_gpu"]) == pytest.approx(1.0)
    assert "apart" in out and "90%" in out
    with (folder / "requests.csv").open() as file:
        requests = list(csv.DictReader(file))
    assert len(requests) == 40 and float(requests[0]["transmission"]) == 0.125
    assert sum(row["met_ttft"] == "True" for row in requests) == 32
    assert all(
        (row["met_ttft"] == "True") == (float(row["ttft"]) <= float(row["slo_ttft"]))
        and row["requests"] == "10"
        for row in requests
    ), "can be worked out anew"
    document = json.loads((folder / "report.json").read_text())
    assert {row["system"] for row in document["runs"]} == {"apart", "together"}
    assert document["runs"][1]["attainment_both"] == 0.8
    assert document["runs"][0]["share_transmission"] == pytest.approx(1 / 6)
    page = Elements()
    page.feed((folder / "report.html").read_text())
    assert page.tags.count("svg") == 5 and page.tags.count("table") == 3
    assert all(source.startswith("#") for source in page.sources), "the page needs nothing else"
    for name in ("attainment", "latency", "stages", "normalised", "goodput"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        ElementTree.parse(folder / f"{name}.svg")


def test_figures_are_left_out_where_nobody_told(results: Path) -> None:
    for path in results.glob("apart*"):
        path.unlink()
    assert main(["bench", "report", str(results), "--slo", "sharegpt-opt-13b"]) == 0
    assert not (results / "report" / "stages.png").exists()
    assert (results / "report" / "attainment.png").exists()


def test_json_and_no_figures(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--slo-ttft", "600ms", "--slo-tpot", "100ms", "--no-figures", "--output", "json"]
    words += ["--normalised-slo", "sharegpt"]
    scales = ["--slo-scales", "1,0.5", "--output-dir", str(results / "x")]
    assert main(["bench", "report", str(results), *words, *scales]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["attainment_both"] for row in document["runs"]] == [1, 1, 1, 1]
    assert [row["slo_scale"] for row in document["scales"][:2]] == [1, 0.5]
    assert not list((results / "x").glob("*.png"))
    assert (results / "x" / "normalised.csv").exists()
    # Output at 50 ms a token keeps 320 ms at both rates, on one GPU.
    (row,) = (
        row
        for row in document["normalised"]
        if (row["system"], row["latency"]) == ("apart", "output")
    )
    assert (row["rate_per_gpu"], row["rate_per_gpu_is"]) == (3, "bound")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no objectives are known"),
        (["--slo", "x"], "unknown SLO"),
        (["--slo", "sharegpt-opt-13b", "--normalised-slo", "x"], "unknown normalised SLO"),
        (["--slo", "sharegpt-opt-13b", "--slo-ttft", "1s"], "exclude each other"),
        (["--slo", "sharegpt-opt-13b", "--gpus", "x"], "SYSTEM=N"),
        (["--slo", "sharegpt-opt-13b", "--gpus", "x=1"], "no system x"),
        (["--slo", "sharegpt-opt-13b", "--slo-scales", "1,0"], "above 0"),
        (["--slo", "sharegpt-opt-13b", "--scale-rate", "0"], "above 0"),
        (["--slo-ttft", "5"], "no duration"),
        (["--slo-ttft", "none", "--slo-tpot", "none"], "no objectives are known"),
    ],
)
def test_a_mistake_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["bench", "report", str(results), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1


def told(results: Path, name: str, **parameters: Any) -> None:
    about = {"parameters": {"gpus": 1, **parameters}, "complete": True, "valid": True}
    (results / f"{name}.run.json").write_text(json.dumps(about))


def report(results: Path, *words: str) -> dict[str, Any]:
    assert main(["bench", "report", str(results), "--no-figures", *words]) == 0
    found: dict[str, Any] = json.loads((results / "report" / "report.json").read_text())
    return found


def slo_line(results: Path) -> str:
    (line,) = (
        line
        for line in (results / "report" / "report.html").read_text().splitlines()
        if line.startswith("<p>SLO (")
    )
    return line


def test_what_is_not_given_is_that_of_the_runs(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("apart-10-1", "apart-10-3", "together-10-1", "together-10-3"):
        told(results, name, slo_ttft=0.2, slo_tpot=None)
    rows = report(results)["runs"]
    assert [row["attainment_both"] for row in rows] == [1, 0.8, 1, 0.4]
    assert {row["attainment_tpot"] for row in rows} == {None}
    assert slo_line(results) == "<p>SLO (of the runs): TTFT ≤ 200 ms.</p>"
    report(results, "--slo-tpot", "1ms")
    assert "SLO (TTFT of the runs, TPOT given): TTFT ≤ 200 ms and TPOT ≤ 1 ms" in slo_line(results)
    rows = report(results, "--slo-ttft", "none", "--slo-tpot", "60ms")["runs"]
    assert [row["attainment_both"] for row in rows] == [1, 1, 1, 1]
    assert slo_line(results) == "<p>SLO (given): TPOT ≤ 60 ms.</p>"
    told(results, "apart-10-3", slo_ttft=0.3, slo_tpot=None)
    capsys.readouterr()
    assert main(["bench", "report", str(results)]) == 2
    assert "do not agree on TTFT: 200 ms, 300 ms; give --slo-ttft" in capsys.readouterr().err
    assert report(results, "--slo-ttft", "0.1s")["runs"][0]["attainment_both"] == 1


def test_a_multiple_is_of_the_least_median_of_all_systems(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = rows(10, 0, told=False)
    for row in fast:
        row["ftl"] = 0.03
    (results / "quick-10-2.exp").write_text(json.dumps(fast))
    found = {row["system"]: row for row in report(results, "--slo", "tropical")["runs"]}
    assert (
        "(tropical; Tropical, DAC 2025; TTFT 5 times 30 ms, the median of quick at 2/s/GPU): "
        in (slo_line(results))
    )
    assert "TTFT ≤ 150 ms and TPOT ≤ 100 ms" in slo_line(results)
    assert found["quick"]["attainment_both"] == 1
    found = {row["system"]: row for row in report(results, "--slo-ttft", "2.5x")["runs"]}
    assert (found["quick"]["attainment_both"], found["apart"]["attainment_both"]) == (1, 0)
    about = {"parameters": {"gpus": 1}, "complete": True, "valid": False}
    (results / "quick-10-2.run.json").write_text(json.dumps(about))
    report(results, "--slo-ttft", "2.5x")
    assert "TTFT 2.5 times 100 ms" in slo_line(results), "an INVALID run is no base"
    for path in results.glob("*.exp"):
        path.with_suffix(".run.json").write_text(json.dumps(about))
    assert main(["bench", "report", str(results), "--slo", "adaserve-coding"]) == 2
    assert "no valid run has a TPOT" in capsys.readouterr().err


def test_the_rate_at_which_objectives_are_scaled(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(*words: str) -> dict[str, float]:
        crossings = report(results, *words, "--gpus", "together=1")["crossings"]
        return {row["system"]: row["slo_scale_at_rate_per_gpu"] for row in crossings}

    given = ("--slo-ttft", "200ms", "--slo-tpot", "100ms")
    (results / "together-10-1.exp").rename(results / "together-10-2.exp")
    assert at(*given) == {"apart": 1, "together": 2}, "next to the lowest that both have reached"
    assert "apart: the objectives are scaled at 1/s/GPU" in capsys.readouterr().err
    assert at(*given, "--scale-rate", "2.9") == {"apart": 3, "together": 3}
    assert "the objectives are scaled at" not in capsys.readouterr().err
    assert at("--slo", "sharegpt-opt-13b") == {"apart": 1, "together": 2}, "the paper's is 1.5"
    assert "scaled at 2/s/GPU, the measured rate next to 1.5" in capsys.readouterr().err
    assert at("--slo", "sharegpt-opt-13b", "--scale-rate", "7") == {"apart": 3, "together": 3}
    # At that rate four of ten take 100 ms, the others 500: at 2.5 of 200 ms all are within.
    scales = ("--slo-scales", "2.5,2,0.5", "--scale-rate", "3")
    tightest = {
        (row["system"], row["level"]): row["slo_scale"]
        for row in report(results, *given, *scales, "--gpus", "together=1")["crossings"]
    }
    assert tightest["together", 0.9] == pytest.approx(2 + 0.5 * 5 / 6)


def test_what_rests_on_invalid_runs_is_marked(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--slo", "sharegpt-opt-13b", "--gpus", "together=1")
    found = report(results, *words, "--normalised-slo", "sharegpt")
    valid = {row["system"]: row["rate_per_gpu_valid"] for row in found["crossings"]}
    assert valid == {"apart": True, "together": False}
    assert {row["system"] for row in found["crossings"] if not row["slo_scale_valid"]} == set()
    assert [row["valid"] for row in found["scales"]] == [True] * 21 + [False] * 7
    assert {row["rate_per_gpu_valid"] for row in found["normalised"]} == {True, False}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "* rests on an INVALID run"
    assert ["*" in line for line in lines[1:5]] == [False, False, True, True]
    found = report(results, *words, "--scale-rate", "3")
    valid = {row["system"]: row["slo_scale_valid"] for row in found["crossings"]}
    assert valid == {"apart": True, "together": False}
    assert main(["bench", "report", str(results), *words, "--scale-rate", "3"]) == 0
    drawn = (results / "report" / "report.html").read_text()
    assert "<!-- hollow: INVALID -->" in drawn
    assert "together, 3/s/GPU, INVALID, both" in drawn
    assert "apart, 3/s/GPU, both" in drawn
    (results / "together-10-3.run.json").unlink()
    capsys.readouterr()
    report(results, *words)
    assert "*" not in capsys.readouterr().out


def test_an_interrupted_run_is_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "apart-10-3.run.json").write_text(json.dumps({"complete": False, "valid": True}))
    assert len(report(results, "--slo", "sharegpt-opt-13b")["runs"]) == 3
    assert "apart-10-3: interrupted and left out" in capsys.readouterr().err


def test_figures_are_counted_while_they_are_drawn(results: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with contextlib.redirect_stderr(Terminal()) as screen:
        assert main(["bench", "report", str(results), "--slo", "sharegpt-opt-13b"]) == 0
    shown = screen.getvalue().split("\r\033[K")
    assert "report: 1 figures" in shown


def test_equal_gaps_are_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "apart-10-9-uniform.exp").write_text(json.dumps(rows(10, 0, False)))
    assert len(report(results, "--slo", "sharegpt-opt-13b")["runs"]) == 4
    assert "apart-10-9-uniform: equal gaps" in capsys.readouterr().err


def test_classes_of_requests(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in results.glob("*.exp"):
        requests = json.loads(path.read_text())
        for index, request in enumerate(requests[:7]):
            request["slo_tpot"] = 0.036 if index < 5 else 0.15
        path.write_text(json.dumps(requests))
    assert main(["bench", "report", str(results), "--slo-tpot", "60ms"]) == 0
    assert "28 of 40 completed requests were judged by objectives of their own" in (
        capsys.readouterr().err
    )
    folder = results / "report"
    with (folder / "classes.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["system"] == "apart"]
    assert [row["slo_tpot_ms"] for row in found] == ["36.0", "150.0", "60.0"] * 2
    assert [row["requests"] for row in found] == ["5", "2", "3"] * 2
    assert [float(row["attainment_both"]) for row in found] == [0, 1, 1] * 2
    assert {float(row["tpot_mean_ms"]) for row in found} == {50.0}
    assert {row["attainment_ttft"] for row in found} == {""}
    with (folder / "runs.csv").open() as file:
        whole = [float(row["goodput_tokens_per_second"]) for row in csv.DictReader(file)]
    parts = [float(row["goodput_tokens_per_second"]) for row in found]
    assert [sum(parts[:3]), sum(parts[3:])] == pytest.approx(whole[:2])
    page = (folder / "report.html").read_text()
    assert "<h2>classes</h2>" in page and "judged by objectives of their own" in page
    assert "apart, TPOT 36 ms" in page and "apart, the others" in page
    assert (folder / "classes.png").exists()
    # One that failed, and nobody knows of which class it was.
    path = results / "apart-10-1.exp"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    report(results, "--slo-tpot", "60ms")
    assert "apart at 1/s: without its .csv" in capsys.readouterr().err


def test_each_request_has_its_own(results: Path) -> None:
    for path in results.glob("*.exp"):
        requests = json.loads(path.read_text())
        path.write_text(json.dumps([request | {"slo_tpot": 0.06} for request in requests]))
    assert {row["attainment_both"] for row in report(results)["runs"]} == {1}
    assert "each request's own" in slo_line(results)


def test_what_is_not_of_one_question_is_said(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(**together: Any) -> list[str]:
        for system, gpus, other in (("apart", 2, {}), ("together", 1, together)):
            asked = {"dataset": "a.csv", "seed": 0, "cv": None, "gpus": gpus, **other}
            for rate in (1, 3):
                told(results, f"{system}-10-{rate}", **asked)
        report(results, "--slo", "sharegpt-opt-13b")
        return [line for line in capsys.readouterr().err.splitlines() if "differ" in line]

    assert said() == []
    assert said(dataset="b.csv", seed=1) == [
        "the runs differ in dataset (a.csv: apart; b.csv: together), seed (0: apart; 1: together): "
        "they answer different questions"
    ]
    assert said(cv=2.0, request_distribution="gamma", slo_ttft=1.0) == [
        "the runs differ in cv (none: apart; 2.0: together): they answer different questions"
    ]
    told(results, "apart-10-3", dataset="c.csv", model="tiny")
    for name in ("together-10-1", "together-10-3"):
        (results / f"{name}.run.json").unlink()
    report(results, "--slo", "sharegpt-opt-13b")
    assert "the runs differ in dataset (a.csv: apart; c.csv: apart): they" in (
        capsys.readouterr().err
    ), "at another rate of one system; of the other nothing is known"


def test_a_rate_without_a_number_is_an_empty_cell_everywhere(results: Path) -> None:
    for path in results.glob("apart-10-3*"):
        path.rename(path.with_name("apart-10-inf.exp"))
    document = report(results, "--slo-ttft", "600ms")
    assert [row["rate"] for row in document["runs"]][:2] == [1, None]
    with (results / "report" / "runs.csv").open() as file:
        assert [row["rate"] for row in csv.DictReader(file)][:2] == ["1.0", ""]
    page = (results / "report" / "report.html").read_text()
    assert "<td>inf</td>" not in page and "<td>1</td>" in page
    # 80 % hold of those that left at once: 90 % are bounded by the last rate that there is.
    found = report(results, "--slo-ttft", "250ms")["crossings"][0]
    assert (found["rate_per_gpu"], found["rate_per_gpu_is"]) == (1, "bound")


def test_what_is_of_completed_requests_alone_is_said(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results / "apart-10-1.exp"
    path.write_text(json.dumps(json.loads(path.read_text())[:6]))
    row = report(results, "--slo", "sharegpt-opt-13b")["runs"][0]
    assert (row["requests"], row["completed"]) == (10, 6)
    assert "4 of 10 requests failed; they met no SLO and are in no percentile" in (
        capsys.readouterr().err
    )
    page = (results / "report" / "report.html").read_text()
    assert "<h2>runs</h2><p>Attainment is of all asked requests; percentiles" in page


def test_a_full_disk_is_one_line(
    results: Path,
    capsys: pytest.CaptureFixture[str],
    no_room: Callable[[], AbstractContextManager[None]],
) -> None:
    words = ["bench", "report", str(results), "--slo", "sharegpt-opt-13b", "--no-figures"]
    assert main(words) == 0
    good = {path.name: path.read_bytes() for path in (results / "report").iterdir()}
    capsys.readouterr()
    with no_room():
        assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "cannot be written: File too large; make room, or give another --output-dir" in err
    assert {path.name: path.read_bytes() for path in (results / "report").iterdir()} == good


def test_so_is_one_that_the_tables_are_sent_to(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "report", str(results), "--slo", "sharegpt-opt-13b", "--no-figures"]
    code = None
    with (
        contextlib.suppress(OSError),  # of closing it: what could not be written is still there
        open("/dev/full", "w", buffering=1) as full,
        monkeypatch.context() as patch,
    ):
        patch.setattr("sys.stdout", full)
        code = main([*words, "--output", "json"])
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "distserve bench: No space left on device; make room and repeat the command"
    )
