"""The truth run's own arithmetic, on figures made by hand, and its simulated side."""

import argparse
import contextlib
import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from benchmarks.planner_truth import __main__ as truth
from benchmarks.planner_truth import deployment, measured, offering, simulating, telling
from benchmarks.planner_truth.__main__ import order_of
from benchmarks.planner_truth.figures import STAGES, Compared, Errors, Request, Seen

from distserve.bench.openloop import Lag, Observed
from distserve.bench.outcome import Outcome, Planned
from distserve.planner.loads import LoadRecord, LoadRequest
from distserve.planner.pace import Pace
from distserve.planner.result import Slo
from distserve.planner.serving import Serving
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet
from distserve.strategies.time_model import Coefficients, TimeModel

TIMES = TimeModel(Coefficients(20, 0.5, 0), Coefficients(10, 0, 1), Coefficients(10, 0, 1))


def requests(*times: tuple[float, float]) -> list[Request]:
    return [Request(ttft, tpot, dict.fromkeys(STAGES, ttft)) for ttft, tpot in times]


def compared(
    real: list[Request], simulated: list[Request], share: float = 0.3,
    paced: list[Request] | None = None, beside: list[Request] | None = None,
    rate: float = 2.0, measurement: int = 1,
) -> Compared:  # fmt: skip
    slo = Slo(100, 10)
    sides = real, simulated, beside or simulated, paced or simulated
    seen = [Seen.of(side, slo) for side in sides]
    return Compared(
        "m", "s", measurement, share, rate, 1, len(real), *seen, Pace(), 0.0, 0.0, real, simulated
    )


def test_errors_are_of_the_same_requests() -> None:
    real = requests((50, 5), (90, 9), (150, 5), (90, 15))
    simulated = requests((50, 5), (90, 9), (99, 5), (90, 15))
    row = compared(real, simulated)
    assert row.real.attainment == {0.5: 25, 0.75: 25, 1.0: 50, 1.5: 100, 2.0: 100}
    errors = Errors.of([(row.simulated, row.real)])
    assert errors.attainment == [25]
    assert errors.attainment_over_scales == [pytest.approx((0 + 0 + 25 + 0 + 0) / 5)]
    assert errors.ttft_p90 == [pytest.approx(100 * (96.3 / 132 - 1))]
    assert errors.tpot_p90 == [0]


def test_rates_beyond_the_knee_are_not_judged() -> None:
    exact, wrong = requests((50, 5)), requests((500, 50))
    rows = [compared(exact, exact, 0.9), compared(exact, wrong, 1.0)]
    *_, beyond, signed, mean, beside, paced = telling.summary(rows)
    assert "100%, 2.0/s (not judged)" in beyond and "-100.0" in beyond
    assert signed.count("| **+0.0** ± nan (aim 2) |") == 1
    for line in (mean, beside, paced):
        assert line.count("| **0.0**") == 1 and line.count("| **0.0 %**") == 2


def test_what_the_machine_became_meanwhile_is_told_apart() -> None:
    exact, wrong = requests((50, 5)), requests((500, 50))
    slow = requests((100, 10))
    rows = [compared(exact, exact, paced=wrong, beside=slow)]
    *_, mean, beside, paced = telling.summary(rows)
    assert "of absolute errors" in mean and "**0.0 %** (aim 10 %), single runs 0.0 %" in mean
    assert "the loads beside each" in beside and "**100.0 %** (aim 10 %)" in beside
    assert "at its own steps' pace" in paced and "**900.0 %** (aim 10 %)" in paced


def test_a_rate_is_off_by_what_its_repeats_are_off_in_the_mean() -> None:
    """Of its repeats one falls out too well, another too badly; rates do not cancel each other."""
    exact, wrong = requests((50, 5)), requests((500, 50))
    rows = [compared(exact, wrong), compared(wrong, exact), compared(exact, wrong, 0.6)]
    *_, first, second, signed, mean, _, _, apart = telling.summary(rows)
    assert "| 2 | +0.0 (-100.0 to +100.0), absolute 100.0 |" in first
    assert "| -100.0 (-100.0 to -100.0), absolute 100.0 |" in second
    assert "| 3 | **-50.0** ± nan (aim 2) |" in signed  # one run has no standard error
    assert "| 3 | **50.0** (aim 2), single runs 100.0" in mean
    assert "| 1 pairs | 100.0 apart |" in apart and apart.count("| 163.6 % |") == 1


def test_a_rate_counts_once_however_often_it_was_run() -> None:
    exact, wrong = requests((50, 5)), requests((500, 50))
    rows = [compared(exact, wrong), *[compared(exact, exact, 0.6)] * 3]
    *_, mean, _, _, apart = telling.summary(rows)
    assert "| 4 | **50.0** (aim 2), single runs 50.0 | 50.0 |" in mean
    assert "| 1 pairs | 0.0 apart |" in apart


def test_measurements_of_one_setup_are_judged_as_one() -> None:
    """What one is off is made up for by the other; only within one are arrivals the same."""
    exact, wrong = requests((50, 5)), requests((500, 50))
    rows = [
        compared(exact, wrong, rate=2.0, measurement=1),
        compared(wrong, exact, rate=2.5, measurement=2),
    ]
    *_, rate, _, mean, _, _, _, _ = telling.summary(rows)
    assert "| 30%, 2.0 to 2.5/s | 2 |" in rate
    assert "| 2 | **0.0** (aim 2), single runs 100.0" in mean


def test_repeats_of_each_share_are_spread_over_the_measurement() -> None:
    order = order_of([1, 4])
    assert order == [(1, 0), (1, 1), (0, 0), (1, 2), (1, 3)]


@pytest.mark.parametrize("strategy", ["Colocated", "Disaggregated"])
def test_at_another_pace_a_request_alone_takes_as_much_longer(strategy: str) -> None:
    serving = Serving(
        prompt_ms=2, prefill_longer=0.1, step_ms=0.5, stream_ms=0.2, joining_ms=3, decode_slowed=0.2
    )
    spec = InstanceSpec(serving.applied(TIMES), serving=serving)
    fleet = Fleet(spec) if strategy == "Colocated" else Fleet(spec, spec, shared_machines=True)
    slow = simulating.at_pace(fleet, Pace((1.5,), (0.8,)))
    alone = offering.plan_of(1, float("inf"), 1)
    (now,), (then,) = (simulating.simulate(strategy, f, alone) for f in (fleet, slow))
    assert then.ttft_ms == pytest.approx(1.5 * now.ttft_ms, rel=1e-4)
    assert then.tpot_ms == pytest.approx(0.8 * now.tpot_ms, rel=1e-4)


def test_each_draw_is_slow_at_other_times() -> None:
    fleet = Fleet(InstanceSpec(TIMES, serving=Serving(pace=Pace((1, 2, 3, 4, 5), (1,) * 5))))
    draws = simulating.draws_of(fleet)
    assert [drawn.prefill.serving.pace.prefill[0] for drawn in draws] == [
        1 + nth // 4 for nth in range(20)
    ]


def test_a_rate_s_error_is_that_of_its_means() -> None:
    """One repeat has half of what is simulated, the other twice as much: 80 against 100."""
    rows = [compared(requests((real, 5)), requests((80, 5))) for real in (40, 160)]
    *_, rate, _, mean, chance, without, _, _, _ = telling.summary(rows)
    assert "-20.0 % (-50.0 to +100.0), absolute 75.0 %" in rate
    assert "**20.0 %** (aim 10 %), single runs 75.0 %" in mean
    # Off by +40 and -80 of 100 ms: a deviation of 84.9, of their mean 60, of which 0.798.
    assert "what chance leaves" in chance and "| 47.9 % | 0.0 % |" in chance
    assert "without what chance leaves" in without and "| **0.0 %** | **0.0 %** |" in without


def test_plans_are_off_as_a_whole_by_the_mean_over_rates() -> None:
    """At one rate by +60 and +40 % of the mean, at another by -20 and -40: 10 % as a whole."""
    low = [compared(requests((real, 5)), requests((150, 5))) for real in (90, 110)]
    high = [compared(requests((real, 5)), requests((70, 5)), 0.6) for real in (90, 110)]
    _, _, _, _, _, signed, mean, *_ = telling.summary([*low, *high])
    assert "| mean up to 90% | 4 |" in signed and "| **+10.0 %** ± 7.1 (aim 10 %) |" in signed
    assert "**40.0 %** (aim 10 %)" in mean


def test_what_chance_leaves_is_taken_off_the_squares() -> None:
    """Off by 60 and by 40 of 100 ms: 50 in the mean, whose standard error is 10."""
    rows = [compared(requests((real, 5)), requests((150, 5))) for real in (90, 110)]
    *_, without, _, _, _ = telling.summary(rows)
    assert "| 2 | **0.0** | | **49.0 %** | **0.0 %** |" in without


def test_a_load_s_rate_is_that_of_its_middle() -> None:
    """Ten seconds of nothing at either end, and ten a second between."""
    middle = [10 + n / 10 for n in range(81)]
    assert offering.steady_rate([*range(10), *middle, *range(30, 40)]) == pytest.approx(10, rel=0.1)


def test_a_capacity_is_counted_while_requests_come() -> None:
    """Nothing ends for four seconds, then five a second; half of them after the last arrival."""
    ends = [4 + n / 5 for n in range(1, 61)]
    assert offering.rate_meanwhile(ends, 10.0) == pytest.approx(5)


def played(monkeypatch: pytest.MonkeyPatch, capacity: float) -> None:
    """A deployment that serves so much, and showed two thirds of it in its slow seconds."""
    load = [LoadRequest(9, 0.0, 0.0, 0.0, None, (1500 * n / capacity,)) for n in range(1, 101)]
    monkeypatch.setattr(offering, "load_of", lambda *_: [LoadRecord(1, 32, load)])

    def served(url: str, model: str, plan: list[Planned]) -> float:
        assert [one.at_seconds for one in plan[:32]] == [0.0] * 32 < [plan[32].at_seconds]
        return min(capacity, len(plan) / plan[-1].at_seconds)

    monkeypatch.setattr(offering, "_served", served)


def test_what_keeps_up_with_all_that_comes_is_sent_more(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, 30.0)
    plans, capacity = offering.overloaded("url", "m", 20.0)
    assert capacity == pytest.approx(30.0)
    assert all(30 < len(plan) / plan[-1].at_seconds < 45 for plan in plans)


def test_a_capacity_that_no_overload_shows_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, 30.0)
    monkeypatch.setattr(offering, "_OVERLOAD", 1.0)
    with pytest.raises(deployment.Failed, match=r"it keeps up with 20\.0 requests/s"):
        offering.overloaded("url", "m", 20.0)


def test_no_two_runs_have_a_prompt_in_common() -> None:
    plans = [
        offering.plan_of(20, 5.0, 1),
        offering.plan_of(20, 9.0, 2),
        offering.plan_of(20, 9.0, 3),
    ]
    prompts = [str(planned.prompt) for plan in plans for planned in plan]
    assert len(set(prompts)) == len(prompts)


def test_the_gateway_s_stages_are_the_simulator_s() -> None:
    """A request that is alone, on one instance and on two."""
    spec = InstanceSpec(TIMES, serving=Serving(handover_ms=7))
    plan = offering.plan_of(1, 1.0, 3)
    prefill_ms = 20 + 0.5 * plan[0].prompt_tokens
    decode_ms = 11.0 * (plan[0].output_tokens - 1)
    for strategy, fleet, gap_ms in (
        ("Colocated", Fleet(spec), 0.0),
        ("Disaggregated", Fleet(spec, spec), 7.0),
    ):
        (simulated,) = simulating.simulate(strategy, fleet, plan)
        instants = [0.0, 0.0, prefill_ms, gap_ms + prefill_ms, gap_ms + prefill_ms + decode_ms]
        told = {
            "context_begin": instants[1] / 1000, "context_end": instants[2] / 1000,
            "migration_end": instants[3] / 1000, "decoding_end": instants[4] / 1000,
        }  # fmt: skip
        outcome = Outcome(0, 8, 2, 0.0, 0.0, 1.0, (0.5, 1.0), 2, lifecycle=told)
        expected = dict(zip(STAGES, (b - a for a, b in pairwise(instants)), strict=True))
        assert offering.stages(outcome) == pytest.approx(expected)
        assert simulated.stages_ms == pytest.approx(expected, abs=0.01)


def test_what_was_measured_can_be_judged_again(tmp_path: Path) -> None:
    plan = offering.plan_of(2, 1.0, 3)
    told = {"context_begin": 0.1, "context_end": 0.2, "decoding_end": 0.5}
    outcome = Outcome(0, 8, 2, 0.0, 0.0, 1.0, (0.5, 1.0), 2, lifecycle=told)
    observed = Observed([outcome], Lag(0.1, 0.2, 0.3, 0.4), 0.0)
    load = LoadRecord(1, 8, [LoadRequest(8, 0.0, 1.0, 2.0, None, (2.5, 3.0))])
    found = measured.Measured(
        [plan], 2.5, [[load]], [measured.Run(0.3, 1.0, 1, plan, observed, 0.0)]
    )
    measured.keep(found, tmp_path, "tiny", "Colocated")
    again = measured.kept(tmp_path, "tiny", "Colocated")
    assert (again.capacity, again.runs[0].share, again.loads) == (2.5, 0.3, [[load]])
    assert offering.load_like(again.runs[0].observed) == offering.load_like(observed)
    assert simulating.simulate("Colocated", Fleet(InstanceSpec(TIMES)), again.runs[0].plan)
    with pytest.raises(deployment.Failed, match="measure without --again"):
        measured.kept(tmp_path, "small", "Colocated")


def test_what_fails_leaves_what_follows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One model has no profile; of the other the first strategy's runs all had work beside them."""
    output, judged = tmp_path / "truth.json", []

    def profiled(model: str, *_: Any) -> None:
        if model == "tiny":
            raise subprocess.CalledProcessError(2, "distserve profile")

    @contextlib.contextmanager
    def running(*_: Any) -> Iterator[str]:
        yield "url"

    def measure(options: Any, model: str, url: str, found: measured.Measured) -> None:
        found.runs.append(measured.Run(0.3, 1.0, 1, [], Observed([], Lag(0, 0, 0, 0), 0.0), 0.0))

    def judge(model: str, strategy: str, _: Path, __: Any, found: truth.Found) -> None:
        judged.append((model, strategy))
        if strategy == "Disaggregated":
            raise deployment.Failed("other work beside every run")
        found.rows.append(compared(requests((50, 5)), requests((50, 5))))

    for made in (running, measure, judge):
        monkeypatch.setattr(truth, made.__name__, made)
    monkeypatch.setattr(truth, "profile_engine", profiled)
    monkeypatch.setattr(truth, "model_folder", lambda *_: tmp_path)
    options = argparse.Namespace(
        models=["tiny", "small"], strategies=["Disaggregated", "Colocated"], short=True,
        output=output,
    )  # fmt: skip
    found = truth.Found()
    truth.compare(options, tmp_path, found)
    assert found.failed and judged == [("small", "Disaggregated"), ("small", "Colocated")]
    assert len(json.loads(output.read_text())["runs"]) == 1
    no_profile, no_rest = capsys.readouterr().err.splitlines()
    assert no_profile.startswith("tiny: ") and no_rest.startswith("small Disaggregated: other work")


def test_what_met_other_work_is_left_out(tmp_path: Path) -> None:
    """A run, and the loads right before and after it."""
    observed = Observed([], Lag(0.1, 0.2, 0.3, 0.4), 0.0)
    runs = [measured.Run(0.3, 1.0, 1, [], observed, others) for others in (0.0, 0.3, 0.02, 0.0)]
    loads = [[LoadRecord(1, clients, [])] for clients in range(5)]
    found = measured.Measured([], 2.5, loads, runs)
    assert [run.at_rest for run in runs] == [True, False, True, True]
    assert [load.clients for (load,) in found.loads_at_rest()] == [0, 3, 4]
    assert "not judged, others took 0.30 cores" in telling.disturbed_line(runs[1])


def test_a_pair_s_prompts_differ_and_nothing_else_does() -> None:
    plan = offering.plan_of(5, 9.0, 3)
    other = offering.with_other_prompts(plan)
    for one, two in zip(plan, other, strict=True):
        assert (one.at_seconds, one.prompt_tokens) == (two.at_seconds, len(two.prompt))
        assert one.prompt[:16] != two.prompt[:16]
