"""`distserve bench report`: from a folder of result files to tables, figures and one page."""

import csv
import json
import xml.etree.ElementTree as ElementTree
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
        ([], "do not agree on objectives"),
        (["--slo", "x"], "unknown SLO"),
        (["--slo", "sharegpt-opt-13b", "--normalised-slo", "x"], "unknown normalised SLO"),
        (["--slo", "sharegpt-opt-13b", "--slo-ttft", "1s"], "exclude each other"),
        (["--slo", "sharegpt-opt-13b", "--gpus", "x"], "SYSTEM=N"),
        (["--slo", "sharegpt-opt-13b", "--gpus", "x=1"], "no system x"),
        (["--slo", "sharegpt-opt-13b", "--slo-scales", "1,0"], "above 0"),
    ],
)
def test_a_mistake_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["bench", "report", str(results), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1
