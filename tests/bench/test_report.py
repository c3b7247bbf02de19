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
from tests.bench.reports import report, rows, told

from distserve.cli.main import main


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
        (["--slo", "sharegpt-opt-13b", "--normalised-slo", "x"], "choose one of sharegpt, l-eval"),
        (["--slo", "sharegpt-opt-13b", "--normalised-slo", "1s,2s"], "as 92ms,20ms,320ms or as"),
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
