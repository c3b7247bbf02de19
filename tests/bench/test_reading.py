"""The `.csv` beside an `.exp` has the failed requests too: span and rate are of all of them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from distserve.bench.analysis import Crossing, Run, Sample, normalised_crossing, throughput
from distserve.bench.errors import BenchError
from distserve.bench.reading import read_folder, read_run
from distserve.bench.slos import NormalisedSlo, Slo
from distserve.bench.tables import Question, normalised_rows
from distserve.cli.main import main

SLO = Slo(0.25, 0.25)
TOOK = 0.25


def measured(path: Path, planned: Sequence[float], completed: int, waited: float = 0.0) -> Path:
    """The first requests are answered within the SLO, the others refused after `waited` seconds."""
    rows = [
        {
            "prompt_len": 10, "output_len": 2, "start_time": at, "end_time": at + TOOK,
            "token_timestamps": [at + TOOK / 2, at + TOOK], "latency": TOOK, "ftl": TOOK / 2,
            "tpot": TOOK / 2,
        }
        for at in planned[:completed]
    ]  # fmt: skip
    path.write_text(json.dumps(rows))
    lines = ["planned,start_time,end_time,slo_ttft,slo_tpot,failure"]
    lines += [f"{at},{at},{at + TOOK},,," for at in planned[:completed]]
    lines += [f"{at},{at},{at + waited},,,HTTP 429" for at in planned[completed:]]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return path


REFUSED = [0.025 * place for place in range(400)]
"""40 requests a second, of which the server answers those of the first quarter of a second."""


def test_goodput_is_per_second_of_all_requests(tmp_path: Path) -> None:
    run = read_run(measured(tmp_path / "s-400-40.exp", REFUSED, 10))
    assert run.seconds == pytest.approx(9.975), "to the last refusal"
    speed = throughput(run, SLO)
    assert speed.goodput == speed.requests == pytest.approx(10 / 9.975)
    assert speed.goodput_tokens == pytest.approx(20 / 9.975)
    run = read_run(measured(tmp_path / "s-400-40.exp", REFUSED, 10, waited=60.0))
    assert run.seconds == pytest.approx(69.975), "a failure takes time too"
    path = measured(tmp_path / "s-400-40.exp", REFUSED, 0)
    assert throughput(read_run(path), SLO).goodput == 0
    assert read_run(path).seconds == pytest.approx(9.975)


def test_the_report_s_goodput_too(tmp_path: Path) -> None:
    measured(tmp_path / "s-400-40.exp", REFUSED, 10)
    words = ["--slo-ttft", "250ms", "--slo-tpot", "250ms", "--no-figures"]
    assert main(["bench", "report", str(tmp_path), *words]) == 0
    (row,) = json.loads((tmp_path / "report" / "report.json").read_text())["runs"]
    assert row["attainment_both"] == 0.025
    assert row["goodput_per_second"] == pytest.approx(10 / 9.975)


@pytest.mark.parametrize("other", ["none", "another run's", "somebody else's"])
def test_without_it_there_are_only_the_completed(tmp_path: Path, other: str) -> None:
    path = measured(tmp_path / "s-400-40.exp", REFUSED, 10)
    lines = path.with_suffix(".csv").read_text().splitlines()
    path.with_suffix(".csv").unlink()
    if other != "none":
        kept = lines[:-1] if other == "another run's" else ["mine,yours"] + ["1,2"] * 400
        path.with_suffix(".csv").write_text("\n".join(kept) + "\n")
    assert read_run(path).seconds == pytest.approx(9 * 0.025 + TOOK)


def test_a_recorded_rate_is_that_of_all_requests(tmp_path: Path) -> None:
    path = measured(tmp_path / "s-5-recorded.exp", [0.0, 1.0, 2.0, 3.0, 8.0], 2)
    assert read_run(path).rate == 0.5
    measured(path, [0.0, 1.0, 2.0, 3.0, 8.0], 1)
    assert read_run(path).rate == 0.5
    measured(path, [0.0, 1.0, 2.0, 3.0, 8.0], 3)
    path.with_suffix(".csv").unlink()
    assert read_run(path).rate == 1.0, "by what there is"


@pytest.mark.parametrize("cell", ["noon", '"' + "x" * 200_000 + '"'], ids=["noon", "long"])
def test_a_damaged_one_is_one_line(tmp_path: Path, cell: str) -> None:
    path = measured(tmp_path / "s-1-1.exp", [0.0], 1)
    path.with_suffix(".csv").write_text(f"planned,start_time,end_time\n{cell},0,1\n")
    with pytest.raises(BenchError, match=r"s-1-1\.csv is damaged: .*; delete it"):
        read_run(path)


def test_a_run_that_completed_nothing_keeps_no_limit(tmp_path: Path) -> None:
    """Nor does a faster one behind it save the rate."""
    for rate, completed in ((1, 2), (3, 0), (5, 1)):
        measured(tmp_path / f"s-2-{rate}.exp", [0.0, 1 / rate], completed)
    runs = read_folder(tmp_path)
    for part in ("total", "input", "output"):
        assert normalised_crossing(runs, part, 1.0) == Crossing(1.0, "exact")
    assert normalised_crossing(runs[1:], "total", 1.0) == Crossing(None, "none")


def test_it_is_told_how_many_a_normalised_latency_is_of(tmp_path: Path) -> None:
    for rate, completed in ((1, 5), (3, 2), (5, 0)):
        measured(tmp_path / f"s-5-{rate}.exp", [n / rate for n in range(5)], completed)
    words = ["--slo-ttft", "1s", "--no-figures", "--normalised-slo", "sharegpt"]
    assert main(["bench", "report", str(tmp_path), *words]) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["normalised"]
    told = {row["latency"]: (row["rate_per_gpu"], row["completed_share"]) for row in rows}
    # 125 ms for 10 tokens of input and 125 a token of output keep 20 and 320 ms.
    assert told == {"total": (3, 0.4), "input": (3, 0.4), "output": (3, 0.4)}


def test_the_run_that_ends_a_limit_counts_too() -> None:
    """The rate lies between it and the one before; what lies further away has no part in it."""

    def run(rate: float, completed: int, took: float) -> Run:
        return Run("s", 5, rate, [Sample(10, 2, 0.0, took, took, took / 2, took / 2)] * completed)

    def told(*runs: Run) -> tuple[str, float | None]:
        rows = normalised_rows(Question(runs, SLO, [1.0]), NormalisedSlo(100, 1000, 1000))
        return rows[0]["rate_per_gpu_is"], rows[0]["completed_share"]

    kept, ends = run(1.0, 4, 0.6), run(3.0, 2, 6.0)
    assert told(kept, ends, run(5.0, 1, 6.0)) == ("exact", 0.4)
    assert told(kept, run(3.0, 0, 6.0)) == ("exact", 0.8), "no latency, so no share"
    assert told(kept) == told(kept, run(math.inf, 1, 6.0)) == ("bound", 0.8)
    assert told(ends) == ("none", None)
