"""Figures of merit of hand-made result files, against values worked out by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distserve.bench.analysis import (
    NOT_ITS_OWN,
    Crossing,
    Own,
    attainment,
    breakdown,
    classes,
    crossing,
    normalised,
    normalised_crossing,
    rate_crossing,
    rests_on,
    scale_crossing,
    throughput,
)
from distserve.bench.errors import BenchError
from distserve.bench.page import warnings
from distserve.bench.quantiles import quantile
from distserve.bench.reading import equal_gaps, interrupted, read_folder, read_run
from distserve.bench.slos import NONE, Multiple, Slo, named_slo
from distserve.bench.tables import Question

SLO = Slo(0.25, 0.1)
INFINITE = float("inf")
Write = Callable[..., Path]


def record(ttft: float, tpot: float, tokens: int = 3, start: float = 0.0) -> dict[str, Any]:
    """As DistServe's client writes it; exact in binary where the arguments are."""
    times = [start + ttft + step * tpot for step in range(tokens)]
    return {
        "prompt_len": 10, "output_len": tokens, "start_time": start, "end_time": times[-1],
        "token_timestamps": times, "lifecycle_events": None, "latency": times[-1] - start,
        "ftl": ttft, "tpot": tpot if tokens > 1 else 0,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def one(rows: Sequence[dict[str, Any]], name: str = "sys-4-1.exp") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
        return path

    return one


def shares(path: Path, slo: Slo = SLO) -> tuple[float, float, float]:
    found = attainment(read_run(path), slo)
    return found.both, found.ttft, found.tpot


def test_both_objectives_of_one_request_count_together(write: Write) -> None:
    rows = [record(0.1, 0.05), record(0.1, 0.2), record(0.5, 0.05), record(0.5, 0.2)]
    assert shares(write(rows)) == (0.25, 0.5, 0.5)


def test_a_tie_with_the_objective_meets_it(write: Write) -> None:
    assert shares(write([record(0.25, 0.1)] * 4)) == (1, 1, 1)
    assert shares(write([record(0.2500001, 0.1)] * 4)) == (0, 0, 1)


def test_an_objective_that_is_not_there_is_met_at_any_scale(write: Write) -> None:
    rows = [record(9.0, 0.05), record(9.0, 0.1), record(9.0, 0.2)]
    assert shares(write(rows), Slo(tpot=0.1)) == (0.5, 0.75, 0.5)
    assert shares(write(rows), Slo(tpot=0.1).scaled(0.5)) == (0.25, 0.75, 0.25)
    assert shares(write(rows), Slo(ttft=0.1)) == (0, 0, 0.75)


def test_what_was_found_of_a_run_is_not_another_s(write: Write) -> None:
    run = read_run(write([record(0.1, 0.05), record(0.5, 0.05)], "s-2-1.exp"))
    assert attainment(run, SLO) is attainment(run, Slo(SLO.ttft, SLO.tpot))
    assert attainment(run, Slo(0.5, 0.1)).both == 1
    assert attainment(replace(run, samples=run.samples[:1]), SLO).both == 0.5
    assert attainment(replace(run, samples=run.samples[1:]), SLO).both == 0


def test_requests_without_a_record_meet_nothing(write: Write) -> None:
    assert shares(write([record(0.1, 0.05)] * 3)) == (0.75, 0.75, 0.75)


def test_missing_tokens_are_a_failed_request(write: Write) -> None:
    cut = record(0.1, 0.05, tokens=5)
    cut["token_timestamps"] = cut["token_timestamps"][:3]
    none = record(0.1, 0.05) | {"token_timestamps": [], "ftl": None, "tpot": None}
    path = write([record(0.1, 0.05), record(0.1, 0.05), cut, none])
    assert shares(path) == (0.5, 0.5, 0.5)
    run = read_run(path)
    assert run.cut_off == 1
    told = "1 records have times of fewer tokens than they say"
    assert [line for line in warnings(Question([run], SLO, [1.0])) if told in line]


def test_a_single_token_has_a_tpot_of_nothing_and_meets_it(write: Write) -> None:
    assert shares(write([record(0.1, 9.0, tokens=1)] * 4)) == (1, 1, 1)


def test_what_a_file_leaves_out_is_worked_out(write: Write) -> None:
    bare = record(0.5, 0.25)
    del bare["ftl"], bare["tpot"]
    (sample,) = read_run(write([bare])).samples
    assert (sample.ttft, sample.tpot) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("points", "level", "expected"),
    [
        ([(1, 1.0), (2, 0.8)], 0.9, Crossing(1.5, "exact")),
        ([(1, 1.0), (2, 0.9), (3, 0.5)], 0.9, Crossing(2.0, "exact")),  # at the level: holds
        ([(1, 1.0), (2, 0.95)], 0.9, Crossing(2, "bound")),
        ([(1, 0.5), (2, 0.95)], 0.9, Crossing(None, "none")),
        ([(1, 1.0), (2, 0.8), (3, 1.0), (4, 0.0)], 0.9, Crossing(1.5, "exact")),  # the first fall
        ([(1, 0.96), (3, 0.86)], 0.9, Crossing(2.2, "exact")),
        ([], 0.9, Crossing(None, "none")),
        ([(2, 1.0), (INFINITE, 0.5)], 0.9, Crossing(2, "bound")),  # no line leads there
        ([(INFINITE, 1.0), (INFINITE, 0.5)], 0.9, Crossing(INFINITE, "bound")),
    ],
)
def test_crossings(points: list[tuple[float, float]], level: float, expected: Crossing) -> None:
    found = crossing(points, level)
    assert found.kind == expected.kind
    assert found.at == pytest.approx(expected.at)


def good_of_ten(good: int) -> list[dict[str, Any]]:
    return [record(0.1, 0.05)] * good + [record(0.5, 0.05)] * (10 - good)


def test_a_rate_per_gpu_from_files(write: Write, tmp_path: Path) -> None:
    for rate, good in (("1.5", 10), ("3", 10), ("6", 8), ("9", 2)):
        write(good_of_ten(good), f"ours-10-{rate}.exp")
    runs = read_folder(tmp_path, {"ours": 3})
    # 100 % at 3 and 80 % at 6 requests per second: 90 % at 4.5, on three GPUs 1.5 each.
    assert rate_crossing(runs, SLO, 0.9).at == pytest.approx(1.5)
    assert rate_crossing(runs, SLO, 0.9, per_gpu=False).at == pytest.approx(4.5)
    assert rate_crossing(runs, SLO, 0.99).at == pytest.approx(3.15 / 3)


@pytest.mark.parametrize(
    ("found", "rates"),
    [
        (Crossing(1.5, "exact"), [3, 6]),  # between 1 and 2 per GPU
        (Crossing(2, "exact"), [3, 6, 9]),  # at the level, and fallen after it
        (Crossing(3, "bound"), [3, 6, 9]),
        (Crossing(None, "none"), [3]),
    ],
)
def test_the_runs_behind_a_crossing(
    write: Write, tmp_path: Path, found: Crossing, rates: list[float]
) -> None:
    for rate in (9, 6, 3):
        write(good_of_ten(10), f"ours-10-{rate}.exp")
    assert [run.rate for run in rests_on(read_folder(tmp_path, {"ours": 3}), found)] == rates


def test_the_tightest_scale(write: Write) -> None:
    path = write([record(0.1, 0.05)] * 9 + [record(0.15, 0.05)], "s-10-1.exp")
    run = read_run(path)
    # All meet 0.6 of (250, 100) ms by a TTFT of 150 ms; TPOT of 50 ms fails below 0.5.
    assert [attainment(run, SLO.scaled(s)).both for s in (0.6, 0.5, 0.4)] == [1, 0.9, 0]
    assert scale_crossing(run, SLO, (0.4, 0.6, 0.5), 0.9).at == pytest.approx(0.5)
    assert scale_crossing(run, SLO, (0.4, 0.6, 0.5), 0.95).at == pytest.approx(0.55)
    assert str(Crossing(0.4, "bound", falling=True)) == "≤ 0.4"


def test_rates_and_latencies_per_token(write: Write) -> None:
    rows = [record(0.5, 0.25, tokens=3, start=0.0), record(1.0, 0.5, tokens=3, start=1.0)]
    run = read_run(write(rows, "s-2-1.exp"))
    speed = throughput(run, Slo(0.5, 0.25))
    assert run.seconds == 3.0  # from 0 to 1 + 1 + 2 * 0.5
    assert speed.requests == pytest.approx(2 / 3)
    assert speed.goodput == pytest.approx(1 / 3)
    assert speed.goodput_tokens == pytest.approx(1), "three tokens of the first, in three seconds"
    assert (speed.output_tokens, speed.total_tokens) == (2, pytest.approx(26 / 3))
    per_token = normalised(run)
    assert per_token.total == pytest.approx((1.0 / 13 + 2.0 / 13) / 2)
    assert per_token.input == pytest.approx(0.075)
    assert per_token.output == pytest.approx(0.375)


def test_latencies_per_token_of_a_file_without_prompts(write: Write) -> None:
    rows = [record(0.5, 0.25), record(0.5, 0.25) | {"prompt_len": 0}]
    found = normalised(read_run(write(rows, "s-2-1.exp")))
    assert found.total == pytest.approx((1.0 / 13 + 1.0 / 3) / 2)
    assert (found.input, found.output) == (0.05, 0.25), "the one that has input"


def own(tpot: float | None, found: float) -> dict[str, Any]:
    return record(0.1, found) | ({} if tpot is None else {"slo_tpot": tpot})


def asked(path: Path, *owns: float | None) -> None:
    lines = ["index,slo_ttft,slo_tpot", *(f"0,,{'' if o is None else o}" for o in owns)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def test_classes_count_their_own_failures(write: Write) -> None:
    path = write([own(0.05, 0.04), own(0.15, 0.04), own(0.15, 0.2), own(None, 0.2)], "s-6-1.exp")
    asked(path, 0.05, 0.15, 0.15, 0.05, None, 0.05)  # two failed
    found = classes(read_run(path))
    assert {o: (r.requests, attainment(r, SLO).both) for o, r in found.items()} == {
        Own(tpot=0.05): (3, pytest.approx(1 / 3)),
        Own(tpot=0.15): (2, 0.5),
        NOT_ITS_OWN: (1, 0),
    }
    half = classes(read_run(path))[Own(tpot=0.05)]
    assert attainment(half, SLO.scaled(0.5)).both == 0, "their own are scaled too"
    whole = throughput(read_run(path), SLO)
    parts = [throughput(part, SLO) for part in found.values()]
    assert sum(part.goodput_tokens for part in parts) == pytest.approx(whole.goodput_tokens)


def test_nobody_knows_whose_the_failures_were(write: Write) -> None:
    rows = [own(0.05, 0.04), own(0.15, 0.04)]
    assert len(classes(read_run(write(rows, "s-2-1.exp")))) == 2, "none failed"
    path = write(rows, "s-3-1.exp")
    assert classes(read_run(path)) == {}, "no .csv"
    asked(path, 0.05, 0.05, 0.05)
    assert classes(read_run(path)) == {}, "the .csv of another run"
    path.with_suffix(".csv").write_text("mine\n1\n")
    assert classes(read_run(path)) == {}, "somebody else's"
    asked(path, 0.05, 0.05, 0.15)
    assert len(classes(read_run(path))) == 2


def test_interrupted_runs_are_left_out(write: Write, tmp_path: Path) -> None:
    """Whatever lies beside: it is of an earlier run that somebody wanted to measure anew."""
    for name, complete in (("a/s-1-1", True), ("a/s-1-2", False)):
        path = write([record(0.1, 0.05)], f"{name}.exp")
        path.with_suffix(".run.json").write_text(json.dumps({"complete": complete}))
    (tmp_path / "t-1-3.run.json").write_text(json.dumps({"complete": False}))
    assert [run.rate for run in read_folder(tmp_path)] == [1]
    assert interrupted(tmp_path) == ["a/s-1-2", "t-1-3"]
    (tmp_path / "a" / "s-1-1.exp").unlink()
    with pytest.raises(BenchError, match="interrupted runs only"):
        read_folder(tmp_path)
    for damaged in ("[", "[]"):
        (tmp_path / "t-1-3.run.json").write_text(damaged)
        with pytest.raises(BenchError, match=r"t-1-3\.run\.json is damaged"):
            read_folder(tmp_path)


def test_loongserve_s_throughput(write: Write, tmp_path: Path) -> None:
    for rate, tpot in (("1", 0.125), ("3", 0.375)):
        write([record(0.5, tpot)], f"s-1-{rate}.exp")
    runs = read_folder(tmp_path)
    assert normalised_crossing(runs, "output", 0.25).at == pytest.approx(2.0)
    assert normalised_crossing(runs, "output", 0.375) == Crossing(3, "bound")
    assert normalised_crossing(runs, "output", 0.1) == Crossing(None, "none")


def test_five_stages(write: Write) -> None:
    at = {
        "issued": 0.0, "context_begin": 1.0, "context_end": 3.0, "migration_begin": 4.0,
        "migration_end": 4.5, "decoding_begin": 5.0, "decoding_end": 10.0,
    }  # fmt: skip
    events = [{"event_type": name, "timestamp": time} for name, time in at.items()]
    told = record(0.1, 0.05) | {"lifecycle_events": events}
    run = read_run(write([told, record(0.1, 0.05)]))
    assert breakdown(run) == {
        "prefill queueing": 0.1, "prefill": 0.2, "transmission": 0.05,
        "decode queueing": 0.15, "decode": 0.5,
    }  # fmt: skip
    told["lifecycle_events"] = events[:-1]
    assert breakdown(read_run(write([told]))) is None


def test_loongserve_s_file_with_its_metrics_behind(tmp_path: Path) -> None:
    rows = [
        {
            "prompt_len": 10, "output_len": 3, "issue_time": 1.0, "first_token_time": 1.25,
            "complete_time": 1.5, "ttft": 0.25, "tpot": 0.125, "latency": 0.5,
        }
    ]  # fmt: skip
    path = tmp_path / "loong-1-2.exp"
    path.write_text(f"{rows!r}\nthroughput: 3\n")
    run = read_run(path)
    assert (run.system, run.requests, run.rate) == ("loong", 1, 2.0)
    assert shares(path) == (0, 1, 0)


def test_loongserve_s_equal_gaps_are_left_out(write: Write, tmp_path: Path) -> None:
    """A curve of one point would say at which rate everybody's objectives are scaled."""
    names = ["a/x-1-0.5-uniform.exp", "x-1-2-uniform.exp"]
    for name in names:
        write([record(0.1, 0.05)], name)
    with pytest.raises(BenchError, match="equal gaps only; drop -uniform"):
        read_folder(tmp_path)
    for name in ("x-1-1.exp", "x-1-2.exp"):
        write([record(0.1, 0.05)], name)
    runs = read_folder(tmp_path, {"x": 8})
    assert [(run.system, run.rate, run.gpus) for run in runs] == [("x", 1, 8), ("x", 2, 8)]
    assert equal_gaps(tmp_path) == [name.removesuffix(".exp") for name in names]


def test_systems_in_subfolders(write: Write, tmp_path: Path) -> None:
    write([record(0.1, 0.05)], "a/x-1-1.exp")
    write([record(0.1, 0.05)], "b/x-1-0.25.exp")
    assert [(run.system, run.rate) for run in read_folder(tmp_path)] == [("a/x", 1), ("b/x", 0.25)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s-1-1.exp", "{}", "no list"),
        ("s-1-1.exp", "[{}]", "missing required field `prompt_len`"),
        ("s-1-1.exp", json.dumps([record(1, 1) | {"start_time": "noon"}]), "Expected `float`"),
        ("s-1-1.exp", json.dumps([record(1, 1) | {"lifecycle_events": [3]}]), "no result file"),
        ("s-1-1.exp", "__import__('os')", "no result file"),
        ("s-1-1.exp", "[1", "no result file"),
        ("s-1-1.exp", json.dumps([record(1, 1)] * 2), "has 2 records"),
        ("s.exp", "[]", "PREFIX-COUNT-RATE"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BenchError, match=said):
        read_run(tmp_path / name)


def test_folders_without_results(tmp_path: Path, write: Write) -> None:
    with pytest.raises(BenchError, match=r"no \.exp files"):
        read_folder(tmp_path)
    with pytest.raises(BenchError, match="no folder"):
        read_folder(tmp_path / "x")
    write([record(0.1, 0.05)], "s-1-1.exp")
    with pytest.raises(BenchError, match="no system t; there are s"):
        read_folder(tmp_path, {"t": 3})


def test_the_papers_objectives() -> None:
    opt = named_slo("sharegpt-opt-13b")
    assert (opt.ttft, opt.tpot, opt.scale_rate) == (0.25, 0.1, 1.5)
    assert named_slo("longbench-opt-66b").scales[0] == 10
    assert named_slo("adaserve-chat").ttft == NONE
    assert named_slo("tropical").ttft == Multiple(5)
    with pytest.raises(BenchError, match="choose one of sharegpt-opt-13b"):
        named_slo("sharegpt")


def test_quantiles_are_numpy_s() -> None:
    import numpy as np

    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for percent in (0, 50, 90, 99, 100):
        assert quantile(values, percent) == pytest.approx(float(np.percentile(values, percent)))
