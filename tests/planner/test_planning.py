"""Goodput, placement search and plans: what a user may rely on."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.planner.errors import InvalidRequest, NoProfile
from distserve.planner.fleets import instance_spec
from distserve.planner.goodput import Evaluator, JointObserver
from distserve.planner.machine import Machine
from distserve.planner.models import find_model
from distserve.planner.plan import PlanRequest, make_plan
from distserve.planner.profiles import load_profile
from distserve.planner.result import RunResult, Slo
from distserve.planner.simulator import Simulation
from distserve.planner.strategies import REGISTRY, Fleet, strategy_class
from distserve.workload import ArrivalProcess, RequestSet


@pytest.fixture(scope="module")
def lengths(readme_requests) -> RequestSet:
    """Short enough for quick plans, varied enough to be a workload."""
    drawn = readme_requests.sample(150, 1)
    return RequestSet(drawn.prompt_tokens, [min(n, 120) for n in drawn.output_tokens])


@pytest.fixture
def quick(monkeypatch):
    """Plans from shorter simulations."""
    monkeypatch.setattr("distserve.planner.plan.SEARCH_REQUESTS", 80)
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 150)


def question(lengths, machine, **changes) -> PlanRequest:
    return replace(
        PlanRequest(find_model("13b"), load_profile(), Slo(250, 100), lengths, machine), **changes
    )


def evaluator(lengths, slo=None, strategy="Disaggregated") -> Evaluator:
    return Evaluator(strategy, lengths, lengths, ArrivalProcess(), slo or Slo(250, 100))


def fleet(tp_prefill=1, tp_decode=1, decode=True) -> Fleet:
    model, profile = find_model("13b"), load_profile()
    decoding = instance_spec(model, profile, tp_decode, 1) if decode else None
    return Fleet(instance_spec(model, profile, tp_prefill, 1), decoding)


@settings(max_examples=15, deadline=None)
@given(
    ttft=st.floats(20, 1000),
    tpot=st.floats(15, 200),
    percent=st.floats(50, 99),
    looser=st.tuples(st.floats(1, 3), st.floats(1, 3), st.floats(0.5, 1)),
    name=st.sampled_from(sorted(REGISTRY)),
)
def test_a_looser_slo_never_lowers_goodput(lengths, ttft, tpot, percent, looser, name):
    built = fleet(decode=strategy_class(name).disaggregated)
    tight = evaluator(lengths, Slo(ttft, tpot, percent), name).goodput(built)
    slo = Slo(ttft * looser[0], tpot * looser[1], percent * looser[2])
    assert evaluator(lengths, slo, name).goodput(built).rate >= tight.rate


@pytest.mark.parametrize("name", ["Disaggregated", "Colocated"])
def test_the_best_total_rate_never_falls_when_accelerators_are_added(lengths, quick, name):
    rates = []
    for accelerators in range(2, 7):
        plan = make_plan(question(lengths, Machine([accelerators]), strategy=name))
        rates.append(plan.total_goodput)
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


@pytest.mark.parametrize("rate", [0.5, 3.0, 8.0, 40.0])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_stopped_probe_has_the_outcome_of_the_whole_run(lengths, rate, name):
    judge = evaluator(lengths, Slo(180, 40), name)
    built = fleet(decode=strategy_class(name).disaggregated)
    trace = judge.arrivals.trace(lengths, rate)
    simulation = Simulation(trace)
    result: RunResult = simulation.run(strategy_class(name)(simulation, built))
    assert judge.probe(built, rate).passes == (result.attainment_percent(judge.slo) >= 90)


def test_joint_attainment_counts_a_request_once(lengths):
    judge = evaluator(lengths, Slo(100, 20))
    trace = judge.arrivals.trace(lengths, 2.0)
    observer = JointObserver(trace, Slo(100, 20, 0.001))
    simulation = Simulation(trace, observer=observer)
    simulation.run(strategy_class("Disaggregated")(simulation, fleet()))
    assert observer.good + observer.late_first + observer.slow_rest <= len(trace)


def test_a_plan_holds_what_it_promises(lengths, quick):
    plan = make_plan(question(lengths, Machine([4, 4]), rate=6.0))
    assert plan.feasible
    assert plan.total_goodput >= 6.0
    assert plan.accelerators == plan.units * sum(
        part.instances * part.tensor * part.pipeline for part in plan.roles.values()
    )
    assert plan.accelerators <= 8
    assert plan.prediction is not None and plan.prediction.attainment_percent >= 90
    assert plan.prediction.ttft_ms[90] <= 250
    assert plan.runner_up is not None
    assert plan.binds in ("TTFT", "TPOT", "memory", "link", "throughput")


def test_a_plan_for_less_takes_fewer_accelerators(lengths, quick):
    little = make_plan(question(lengths, Machine([8]), rate=0.5))
    much = make_plan(question(lengths, Machine([8]), rate=12.0))
    assert little.accelerators < much.accelerators


def test_equal_questions_have_equal_plans(lengths, quick):
    first, second = (make_plan(question(lengths, Machine([4]))) for _ in range(2))
    assert first == second
    other = question(lengths, Machine([4]), slo=Slo(251, 100))
    assert other.inputs_hash != first.inputs_hash


def test_an_slo_that_nothing_meets_names_the_nearest_miss(lengths, quick):
    plan = make_plan(question(lengths, Machine([4]), slo=Slo(10, 100)))
    assert not plan.feasible
    assert (plan.units, plan.goodput) == (0, 0)
    assert "nearest" in plan.reason and "of 10 ms" in plan.reason
    assert plan.binds == "TTFT"


def test_a_rate_beyond_the_machine_says_what_fits(lengths, quick):
    plan = make_plan(question(lengths, Machine([4]), rate=500.0))
    assert not plan.feasible
    assert "give more accelerators" in plan.reason
    assert 0 < plan.total_goodput < 500


def test_a_role_s_tensor_degree_can_be_fixed(lengths, quick):
    plan = make_plan(question(lengths, Machine([4]), fixed_tp={"prefill": 1, "decode": 2}))
    assert (plan.roles["prefill"].tensor, plan.roles["decode"].tensor) == (1, 2)


def test_units_lie_within_nodes_of_different_sizes(lengths, quick):
    plan = make_plan(question(lengths, Machine([3, 2, 2]), fixed_tp={"prefill": 2, "decode": 1}))
    assert plan.units == 1, "three accelerators in one node are there once"
    within = Machine([4, 4], span_nodes=False)
    assert within.copies(3) == 2
    assert Machine([4, 4], max_accelerators=5).copies(3) == 1


def test_a_model_too_large_for_a_node_spans_nodes_by_segments(lengths, quick):
    asked = question(lengths, Machine([4, 4]), model=find_model("66b"), slo=Slo(5000, 300))
    plan = make_plan(replace(asked, fixed_tp={"prefill": 2, "decode": 2}))
    assert plan.feasible
    large = replace(asked, fixed_tp={"prefill": 3, "decode": 3}, machine=Machine([6, 6]))
    assert make_plan(large).segments in (1, 2)
    # Two instances of TP 3 fit no node of 4, nor do their segments.
    with pytest.raises(NoProfile, match="does not fit"):
        make_plan(replace(large, machine=Machine([4, 4])))


def test_high_affinity_judges_roles_apart_and_pays_for_the_link(lengths, quick):
    """Algorithm 1: instances of both roles in the proportion of their goodputs."""
    near = make_plan(question(lengths, Machine([2, 2, 2], high_affinity=True)))
    assert near.feasible
    assert set(near.roles) == {"prefill", "decode"}
    assert near.accelerators <= 6


def test_memory_binds_where_it_is_short(lengths):
    judge = evaluator(lengths, Slo(250, 100))
    base = fleet()
    assert base.decode is not None
    small = replace(base, decode=replace(base.decode, kv_tokens=4096))
    goodput = judge.goodput(small)
    assert goodput.rate < judge.goodput(base).rate
    assert judge.binding(small, goodput.next) == "memory"


def test_questions_without_an_answer(lengths):
    with pytest.raises(NoProfile, match="give --hardware-profile or --estimate"):
        make_plan(question(lengths, Machine([8]), model=find_model("175b")))
    with pytest.raises(NoProfile, match="does not fit"):
        make_plan(question(lengths, Machine([1]), model=find_model("66b")))
    with pytest.raises(InvalidRequest, match="no accelerators"):
        Machine([])
    with pytest.raises(InvalidRequest, match="cannot simulate the strategy"):
        make_plan(question(lengths, Machine([4]), strategy="Magic"))


def test_requests_that_no_instance_can_hold(quick):
    plan = make_plan(question(RequestSet([300_000] * 5, [5] * 5), Machine([4])))
    assert not plan.feasible
    assert "give the role more accelerators" in plan.reason
