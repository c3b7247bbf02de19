"""Requests may be promised different things: from the data set to the server to the report."""

import csv
import json
import marshal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distserve.bench.analysis import attainment
from distserve.bench.reading import read_run
from distserve.bench.slos import Slo
from distserve.cli.main import main
from distserve.workload import Objectives, WorkloadError, parse_requests, read_requests

ROWS = (
    "prompt_len,output_len,slo_tpot_ms,slo_ttft_ms\n"
    "6,4,60000,0.000976562\n"  # a start that nothing keeps
    "6,4,30000,\n"
    "6,4,,\n"
)
ASKED = [Objectives(0.000976562, 60000), Objectives(None, 30000), Objectives()]


def test_every_kind_of_file_has_them(tmp_path: Path) -> None:
    lines = [
        {"input_length": 6, "output_length": 4, "slo_ttft_ms": own.ttft_ms}
        | ({"slo_tpot_ms": own.tpot_ms} if own.tpot_ms else {})
        for own in ASKED
    ]
    ds = tmp_path / "x.ds"
    rows = [("a", 6, 4)] * 3
    slos = [(own.ttft_ms, own.tpot_ms) for own in ASKED]
    ds.write_bytes(marshal.dumps({"dataset_name": "x", "reqs": rows, "slos": slos}))
    assert parse_requests(ROWS, "x.csv").objectives == ASKED
    assert parse_requests("\n".join(map(json.dumps, lines)), "x.jsonl").objectives == ASKED
    assert read_requests(ds).objectives == ASKED
    assert parse_requests("prompt_len,output_len\n6,4\n", "x.csv").objectives is None


@pytest.mark.parametrize("value", ["-1", "0", "nan", "soon"])
def test_an_objective_that_is_none(value: str) -> None:
    with pytest.raises(WorkloadError):
        parse_requests(f"prompt_len,output_len,slo_tpot_ms\n6,4,{value}\n", "x.csv")


def test_a_draw_keeps_requests_and_their_objectives_together() -> None:
    requests = parse_requests(
        "prompt_len,output_len,slo_tpot_ms\n" + "".join(f"{n},1,{n}\n" for n in range(1, 50)), "x"
    )
    drawn = requests.sample(20, 3)
    assert drawn.objectives is not None
    assert [own.tpot_ms for own in drawn.objectives] == list(drawn.prompt_tokens)


@pytest.mark.parametrize("exp_format", ["distserve", "loongserve"])
def test_they_are_sent_kept_and_come_before_the_run_s(
    bench: Callable[..., Any], stub: Any, tmp_path: Path, exp_format: str
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(ROWS)
    words = ("--dataset", str(rows), "--slo-ttft", "50s", "--slo-tpot", "50s")
    words += ("--num-prompts-req-rates", "[(3,100)]", "--exp-format", exp_format)
    assert bench(*words)[0] == 0
    sent = [
        (h.get("x-slo-ttft-ms"), h.get("x-slo-tpot-ms")) for h in stub.headers[-3:]
    ]  # the one before is the warm-up's
    assert sorted(sent) == [("0.000976562", "60000"), ("50000", "30000"), ("50000", "50000")]
    run = read_run(tmp_path / "sys-3-100.exp")
    found = attainment(run, Slo(50, 50))
    assert (round(found.ttft, 3), found.tpot) == (0.667, 1)
    assert attainment(run, Slo(50, 50).scaled(1e-9)).ttft == 0, "their own are scaled too"
    with (tmp_path / "sys-3-100.csv").open() as text:
        rows_kept = list(csv.DictReader(text))
    names = ("slo_ttft", "slo_tpot")
    kept = {tuple(round(float(r[n]), 6) if r[n] else None for n in names) for r in rows_kept}
    assert kept == {(1e-06, 60.0), (None, 30.0), (None, None)}


@pytest.mark.parametrize(
    ("flags", "shares"),
    [
        (("--slo-tpot", "50s"), ["100.0%", "-", "100.0%"]),
        (("--slo-ttft", "50s"), ["100.0%", "100.0%", "-"]),
        (("--slo-ttft", "50s", "--slo-tpot", "50s"), ["100.0%"] * 3),
        ((), ["-"] * 3),
    ],
)
def test_a_run_prints_the_objectives_it_had(
    bench: Callable[..., Any], flags: tuple[str, ...], shares: list[str]
) -> None:
    code, out, _ = bench(*flags)
    assert code == 0
    assert out.splitlines()[1].split()[9:12] == shares


@pytest.mark.parametrize(
    ("row", "shares"),
    [
        ("6,4,60000,", ["100.0%", "-", "100.0%"]),
        ("6,4,,60000", ["100.0%", "100.0%", "-"]),
        ("6,4,60000,0.000976562", ["0.0%", "0.0%", "100.0%"]),
    ],
)
def test_a_run_prints_its_requests_own_objectives(
    bench: Callable[..., Any], tmp_path: Path, row: str, shares: list[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(ROWS.partition("\n")[0] + f"\n{row}" * 5 + "\n")
    code, out, _ = bench("--dataset", str(rows))
    assert code == 0
    assert out.splitlines()[1].split()[9:12] == shares


def test_a_report_counts_failures_by_class(
    bench: Callable[..., Any], stub: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt_len,output_len,slo_tpot_ms\n6,4,30000\n6,4,60000\n6,4,60000\n")
    stub.after = 3  # the warm-up's and two more
    words = ("--dataset", str(rows), "--num-prompts-req-rates", "[(3,100)]")
    assert bench(*words, "--request-distribution", "fixed")[0] == 0
    assert main(["bench", "report", str(tmp_path), "--no-figures"]) == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text())["classes"]
    assert [(row["slo_tpot_ms"], row["requests"]) for row in found] == [(30000, 1), (60000, 2)]
    assert sum(row["completed"] for row in found) == 2
    for row in found:
        assert row["attainment_both"] == row["completed"] / row["requests"]


def test_adaserve_s_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = []
    for name, tokens in (("code", 10), ("chat", 20), ("news", 30)):
        sources.append(str(tmp_path / f"{name}.ds"))
        rows = [("x", tokens, 5)]
        Path(sources[-1]).write_bytes(marshal.dumps({"dataset_name": name, "reqs": rows}))
    made = str(tmp_path / "mix.ds")
    words = ["bench", "prepare", "adaserve", *sources, "--ds", made, "--count", "50"]
    assert main([*words, "--class-slo-tpot", "36ms,50ms,150ms"]) == 0
    requests = read_requests(made)
    assert requests.objectives is not None
    classes = {10: 36.0, 20: 50.0, 30: 150.0}
    assert {own.tpot_ms for own in requests.objectives} == set(classes.values())
    for tokens, own in zip(requests.prompt_tokens, requests.objectives, strict=True):
        assert own == Objectives(tpot_ms=classes[tokens])
    for wrong in ("36ms", "fast,50ms,150ms"):
        assert main([*words, "--class-slo-tpot", wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
