"""`distserve bench report`: by which objectives runs and requests are judged."""

import csv
import json
from pathlib import Path

import pytest
from tests.bench.reports import report, rows, slo_line, told

from distserve.cli.main import main


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


def test_limits_per_token_are_numbers_or_multiples_of_the_least_mean(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def limits(text: str) -> dict[str, float]:
        rows = report(results, "--slo-ttft", "1s", "--normalised-slo", text)["normalised"]
        told = {(row["latency"], row["limit_ms"]) for row in rows}
        assert len(told) == 3, "one base for all systems"
        return dict(told)

    def approx(total: float, input: float, output: float) -> object:
        return pytest.approx({"total": total, "input": input, "output": output})

    assert limits("92ms,0.02s,320ms") == approx(92, 20, 320)
    # At 1/s 100 ms for 10 tokens of input, and 50 ms for the second one of output.
    assert limits("25x") == approx(25 * 150 / 12, 25 * 10, 25 * 50)
    assert limits("25x,20ms,2x") == approx(25 * 150 / 12, 20, 2 * 50)
    about = {"parameters": {"gpus": 1}, "complete": True, "valid": False}
    for name in ("apart-10-1", "together-10-1"):
        (results / f"{name}.run.json").write_text(json.dumps(about))
    # At 3/s two of ten take 500 ms: an INVALID run is no base.
    assert limits("1s,25x,1s") == approx(1000, 25 * 18, 1000)
    (results / "apart-10-3.run.json").write_text(json.dumps(about))
    words = ["--slo-ttft", "1s", "--no-figures", "--normalised-slo", "25x"]
    assert main(["bench", "report", str(results), *words]) == 2
    assert "no valid run has a latency per token (total)" in capsys.readouterr().err


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
