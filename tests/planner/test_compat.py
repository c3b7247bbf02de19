"""Equal answers to the reference simulator's on equal inputs."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.planner.compat.chain import (
    colocated_chain,
    decode_chain,
    prefill_chain,
)
from distserve.planner.compat.parallel import WORTH_PROCESSES, judge_all
from distserve.planner.compat.rules import Chain
from distserve.planner.compat.search import (
    Configuration,
    Search,
    colocated_configurations,
    disaggregated_configurations,
    winner,
)
from distserve.planner.compat.steps import StepSimulation
from distserve.planner.errors import NoProfile, OversizedRequest
from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile
from distserve.planner.result import RunResult, Slo
from distserve.planner.series import series_ms, steps_until
from distserve.planner.serving import Serving
from distserve.workload import ArrivalProcess, RequestSet, Trace, read_requests

DATA = Path(__file__).parent / "data"
RUNS = [
    "run_13b_2_1_1_1_rate4.6875.csv",
    "run_13b_1_2_1_2_rate3.csv",
    "run_13b_vllm_2_1_rate2.csv",
    "run_13b_2_1_1_1_short_custom.csv",
]


def search_for(requests, model="13b", backend="distserve", slo=None, **arrival):
    return Search(
        find_model(model),
        load_profile("a100-80g", backend),
        requests,
        ArrivalProcess(**arrival),
        slo or Slo(200, 100),
    )


def configurations_of(model, backend, nodes, per_node, high_affinity):
    if backend == "vllm":
        return list(colocated_configurations(find_model(model), nodes * per_node))
    return list(
        disaggregated_configurations(find_model(model), nodes, per_node, bool(high_affinity))
    )


@pytest.mark.parametrize("file", RUNS)
def test_every_request_of_a_reference_run(file, reference, reference_rows, readme_requests):
    run = next(run for run in reference("runs.json")["runs"] if run["file"] == file)
    rows = reference_rows(file)
    recorded = run["arrival"] == "custom"
    requests = read_requests(DATA / file) if recorded else readme_requests.sample(300, 0)
    search = search_for(
        requests, backend=run["backend"], kind="recorded" if recorded else "poisson"
    )
    configuration = Configuration(
        1,
        run["tp_prefill"],
        run["pp_prefill"],
        run.get("tp_decode", 0),
        run.get("pp_decode", 0),
    )
    fast = search.run(configuration, run["rate_total_per_s"] or 1.0)
    stepped = StepSimulation(fast.trace, *search.chains(configuration)).run()
    for result in (fast, stepped):
        assert list(result.trace.arrival_ms) == [row["arrival_ms"] for row in rows]
        assert result.ttft_ms == pytest.approx([row["ttft_ms"] for row in rows], rel=1e-9)
        assert result.tpot_ms == pytest.approx([row["tpot_ms"] for row in rows], rel=1e-9)
        assert result.finish_ms == pytest.approx([row["finish_ms"] for row in rows], rel=1e-9)


@pytest.mark.parametrize("backend", ["distserve", "vllm"])
def test_best_rate_of_every_configuration(backend, reference, readme_requests):
    case = reference("search_readme_command.json")["cases"][backend]
    search = search_for(readme_requests.sample(300, 0), backend=backend)
    verdicts = [
        search.best_rate(configuration, 5, 0.25)
        for configuration in configurations_of("13b", backend, 1, 4, False)
    ]
    names = ("tp", "pp") if backend == "vllm" else Configuration._fields
    width = len(names)
    found = {
        (v.configuration[1:3] if backend == "vllm" else v.configuration)[:width]: v.per_gpu_rate
        for v in verdicts
    }
    expected = {
        tuple(entry[name] for name in names): entry["best_per_gpu_rate"]
        for entry in case["configurations"]
    }
    assert found == expected
    best = winner(verdicts)
    assert best is not None
    assert best.per_gpu_rate == case["winner"]["best_per_gpu_rate"]
    assert best.configuration.accelerators == case["winner"]["gpus"]


def test_processes_find_what_one_finds(readme_requests, monkeypatch):
    search = search_for(readme_requests.sample(40, 0), "66b", slo=Slo(500, 120))
    tried = configurations_of("66b", "distserve", 2, 8, False)
    assert len(tried) >= WORTH_PROCESSES
    counted = itertools.count()
    apart = judge_all(search, tried, 5, 0.25, lambda: next(counted))
    assert next(counted) == len(tried)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert apart == judge_all(search, tried, 5, 0.25, lambda: None)


def test_enumeration_counts(reference, readme_requests):
    for case in reference("enumeration_counts.json")["counts"]:
        model, backend = case["model"], case["backend"]
        tried = configurations_of(
            model, backend, case["num_node"], case["ngpu_per_node"], case["high_affinity"]
        )
        search = search_for(readme_requests.sample(10, 0), model, backend)

        def timed(c, search=search):
            known = search.profile.knows(search.model, c.tp_prefill)
            return known and (c.colocated or search.profile.knows(search.model, c.tp_decode))

        def runs(c, search=search):
            try:
                search.chains(c)
            except NoProfile:
                return False
            return True

        counts = (len(tried), sum(map(timed, tried)), sum(map(runs, tried)))
        assert counts == (case["enumerated"], case["with_time_profile"], case["runnable"]), case


def test_further_runs_of_the_reference(reference, readme_requests):
    """Other seeds, gamma and fixed gaps, all at once, deeper pipelines, OPT-66B, vLLM."""
    cases = reference("battery.json")["runs"]
    assert len(cases) > 10
    for case in cases:
        requests = readme_requests.sample(case["N"], case["seed"])
        search = search_for(
            requests,
            case["model"],
            case["backend"],
            kind=case["arrival"],
            cv=case["cv"],
            seed=case["seed"],
        )
        result = search.run(Configuration(1, *case["config"]), float(case["rate"]))
        assert result.ttft_ms[::25] == pytest.approx(case["ttft_ms"], rel=1e-9), case["config"]
        assert result.tpot_ms[::25] == pytest.approx(case["tpot_ms"], rel=1e-9), case["config"]


def test_further_searches_of_the_reference(reference, readme_requests):
    cases = reference("battery.json")["searches"]
    assert cases
    for case in cases:
        search = search_for(
            readme_requests.sample(case["N"], 0), case["model"], case["backend"], Slo(*case["slo"])
        )
        for parts, rate in case["rates"]:
            configuration = Configuration(*(parts if len(parts) == 5 else (1, *parts, 0, 0)))
            verdict = search.best_rate(configuration, case.get("max", 5), case.get("esp", 0.25))
            assert verdict.per_gpu_rate == rate, (case["model"], parts)


LENGTHS = st.tuples(st.integers(1, 3000), st.integers(1, 400))
GAPS = st.one_of(st.just(0.0), st.floats(0.001, 3000))


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(LENGTHS, GAPS), min_size=1, max_size=40),
    degrees=st.tuples(*[st.sampled_from([1, 2, 4])] * 4),
    colocated=st.booleans(),
)
def test_closed_form_equals_stepping(requests, degrees, colocated):
    trace = Trace(
        [prompt for (prompt, _), _ in requests],
        [output for (_, output), _ in requests],
        list(itertools.accumulate(gap for _, gap in requests)),
    )
    assert_same(trace, degrees, colocated)


@pytest.mark.parametrize("degrees", [(1, 1, 1, 1), (1, 1, 1, 4), (2, 4, 1, 2)])
@pytest.mark.parametrize("colocated", [False, True])
def test_closed_form_equals_stepping_at_the_decode_limit(degrees, colocated):
    """More context than one decode step holds, and batches beyond the large-batch threshold."""
    draw = random.Random(4)
    count = 150
    trace = Trace(
        [draw.randint(300, 900) for _ in range(count)],
        [draw.randint(20, 120) for _ in range(count)],
        sorted(draw.uniform(0, 4000) for _ in range(count)),
    )
    assert_same(trace, degrees, colocated)


def assert_same(trace: Trace, degrees, colocated: bool) -> None:
    model, profile = find_model("13b"), load_profile()
    tp_prefill, pp_prefill, tp_decode, pp_decode = degrees
    prefill = Chain(profile.times(model, tp_prefill), pp_prefill, 20_000)
    if colocated:
        first, finish = colocated_chain(trace, prefill)
        stepped = StepSimulation(trace, prefill).run()
    else:
        decode = Chain(profile.times(model, tp_decode), pp_decode, 20_000)
        first = prefill_chain(trace, prefill)
        finish = decode_chain(trace, first, decode)
        stepped = StepSimulation(trace, prefill, decode).run()
    result = RunResult(trace, first, finish)
    assert result.first_token_ms == pytest.approx(stepped.first_token_ms, rel=1e-9)
    assert result.finish_ms == pytest.approx(stepped.finish_ms, rel=1e-9)


@given(span=st.floats(0.01, 1e6), first=st.floats(0.1, 500), growth=st.floats(0, 2))
def test_steps_until_is_the_first_step_that_reaches_the_span(span, first, growth):
    growth = min(growth, first)
    steps = steps_until(span, first, growth)
    assert steps == 1 or series_ms(steps - 1, first, growth) < span
    assert series_ms(steps, first, growth) >= span


@pytest.mark.parametrize("backend", ["distserve", "vllm"])
def test_a_stopped_probe_has_the_outcome_of_the_whole_simulation(backend, readme_requests):
    slo = Slo(400, 45, 90, 95)
    search = search_for(readme_requests.sample(120, 3), backend=backend, slo=slo)
    for configuration in configurations_of("13b", backend, 1, 4, False):
        for rate in (0.5, 1.5, 4.0, 9.0):
            result = search.run(configuration, rate)
            passes = (
                result.ttft_quantile_ms(90) < slo.ttft_ms
                and result.tpot_quantile_ms(95) < slo.tpot_ms
            )
            missed = search._probe(search.chains(configuration), rate)
            assert (missed is None) == passes


@pytest.mark.parametrize("tp_decode", [0, 1])
def test_a_prompt_beyond_the_step_limit_is_refused_and_does_not_hang(tp_decode):
    search = search_for(
        RequestSet([70_000], [5]), backend="vllm" if tp_decode == 0 else "distserve"
    )
    configuration = Configuration(1, 1, 1, tp_decode, tp_decode)
    with pytest.raises(OversizedRequest, match="70000 tokens exceeds the 66144"):
        search.run(configuration, 1.0)
    verdict = search.best_rate(configuration, 5, 0.25)
    assert verdict.per_gpu_rate is None
    assert "leave it out" in (verdict.reason or "")


def test_a_context_beyond_the_decode_limit_is_refused_and_does_not_hang():
    search = search_for(RequestSet([60_000], [5]))
    with pytest.raises(OversizedRequest, match="one decode step"):
        search.run(Configuration(1, 2, 1, 1, 1), 1.0)


def test_prefill_is_remembered_by_its_times(readme_requests, monkeypatch):
    """Those of a measured deployment are made anew for each configuration, and where the last ones
    lay others may lie."""
    measured = {("facebook/opt-13b", tp): Serving(step_ms=1.0) for tp in (1, 2)}
    profile = replace(load_profile(), serving_by_model=measured)

    def search():
        requests = readme_requests.sample(100, 0)
        return Search(find_model("13b"), profile, requests, ArrivalProcess(), Slo(200, 100))

    tried = [Configuration(1, 1, 1, 2, 1), Configuration(1, 2, 1, 1, 1)]
    apart = [search().best_rate(one, 5, 0.25) for one in tried]
    assert apart[0] != apart[1]
    together = search()
    assert [together.best_rate(one, 5, 0.25) for one in tried] == apart
    monkeypatch.delattr("distserve.planner.compat.search.prefill_chain")
    assert [together.best_rate(one, 5, 0.25) for one in tried] == apart


def test_unfinished_requests_of_a_stopped_probe_are_not_numbers(readme_requests):
    search = search_for(readme_requests.sample(50, 0))
    _, decode = search.chains(Configuration(1, 2, 1, 1, 1))

    class Enough:
        def first_token(self, requests: range, now_ms: float) -> None: ...
        def finished(self, request: int, now_ms: float) -> None: ...
        def decided(self, now_ms: float) -> bool:
            return now_ms > 2000

    finish = decode_chain(search.trace(5.0), search.trace(5.0).arrival_ms, decode, Enough())
    assert any(map(math.isnan, finish))
