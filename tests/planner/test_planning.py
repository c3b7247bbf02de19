"""Goodput, placement search and plans: what a user may rely on."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.questions import question

from distserve.planner.errors import InvalidRequest, NoProfile
from distserve.planner.fleets import instance_spec
from distserve.planner.goodput import Evaluator, JointObserver
from distserve.planner.machine import Machine
from distserve.planner.models import find_model
from distserve.planner.pace import Pace
from distserve.planner.plan import make_plan
from distserve.planner.profiles import load_profile
from distserve.planner.result import RunResult, Slo
from distserve.planner.serving import Serving
from distserve.planner.simulator import Simulation
from distserve.planner.strategies import REGISTRY, Fleet, strategy_class
from distserve.workload import ArrivalProcess, RequestSet


def evaluator(lengths, slo=None, strategy="Disaggregated") -> Evaluator:
    return Evaluator(strategy, lengths, lengths, ArrivalProcess(), slo or Slo(250, 100))


def fleet(tp_prefill=1, tp_decode=1, decode=True) -> Fleet:
    model, profile = find_model("13b"), load_profile()
    decoding = instance_spec(model, profile, tp_decode, 1) if decode else None
    return Fleet(instance_spec(model, profile, tp_prefill, 1), decoding)


def test_a_machine_with_slow_seconds_holds_less(lengths):
    """Though it is as fast as the other in the mean."""
    uneven = Serving(pace=Pace((0.8, 0.8, 0.8, 1.6), (0.8, 0.8, 0.8, 1.6)))
    rates = []
    for serving in (Serving(), uneven):
        spec = replace(fleet(decode=False).prefill, serving=serving)
        rates.append(evaluator(lengths, strategy="Colocated").goodput(Fleet(spec)).rate)
    assert 0 < rates[1] < 0.95 * rates[0]


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


@pytest.mark.parametrize("high_affinity", [False, True])
def test_an_accelerator_more_can_be_worth_something(lengths, quick, high_affinity):
    rates = [
        make_plan(question(lengths, Machine([n], high_affinity=high_affinity))).total_goodput
        for n in (2, 4)
    ]
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    ("nodes", "low", "high"), [([4], True, True), ([1] * 4, False, True), ([1], False, False)]
)
def test_high_affinity_needs_no_node_for_both_roles(lengths, quick, nodes, low, high):
    for high_affinity, expected in ((False, low), (True, high)):
        plan = make_plan(question(lengths, Machine(nodes, high_affinity=high_affinity)))
        assert plan.feasible == expected


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
    # All are late, waiting and with their first token, and all are slow after it.
    observer = JointObserver(trace, Slo(0.001, 0.001, 0.001))
    simulation = Simulation(trace, observer=observer)
    simulation.run(strategy_class("Disaggregated")(simulation, fleet()))
    assert (observer.good, observer.late_first, observer.slow_rest) == (0, len(trace), 0)


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
    assert plan.reason.endswith("the fewest accelerators for 6 requests/s")
    assert plan.runner_up is not None
    assert f" instead of {plan.accelerators} accelerators, " in plan.runner_up.reason
    assert plan.binds in ("TTFT", "TPOT", "memory", "link", "throughput")


def test_a_plan_without_a_rate_is_the_most_and_says_by_how_much(lengths, quick):
    plan = make_plan(question(lengths, Machine([4])))
    assert plan.reason.endswith("requests/s per unit, the most in all")
    assert plan.runner_up is not None
    assert f" instead of {plan.total_goodput:.3g} requests/s in all" in plan.runner_up.reason


def test_a_runner_up_of_which_no_long_run_was_made_is_told_at_its_best(lengths, quick):
    plan = make_plan(question(lengths, Machine([4]), rate=2.0))
    assert plan.accelerators == 2 and plan.runner_up is not None
    assert plan.runner_up.reason.startswith("at least 3 instead of 2 accelerators, at most ")


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
    pairs = replace(asked, fixed_tp={"prefill": 2, "decode": 2})
    within = Machine([4, 4], span_nodes=False)
    assert make_plan(replace(pairs, machine=within)).feasible
    # With 40 GiB an instance takes two stages of TP 2, and half of each role lies on either node.
    halves = replace(
        pairs, profile=replace(load_profile(), kv_budget_bytes=40 * 2**30, max_tokens={})
    )
    plan = make_plan(halves)
    assert plan.feasible and (plan.segments, plan.units, plan.accelerators) == (2, 1, 8)
    assert all((part.tensor, part.pipeline) == (2, 2) for part in plan.roles.values())
    assert not make_plan(replace(halves, machine=within)).feasible
    # Two instances of TP 3 fit no node of 4, nor do their segments.
    fixed = {"prefill": 3, "decode": 3}
    small = make_plan(replace(asked, fixed_tp=fixed))
    assert not small.feasible
    assert "takes 6 accelerators of one node" in small.reason
    assert "the machine has 8 with 595.2 GiB, at most 4 in a node" in small.reason


def test_a_unit_across_nodes_pays_for_the_link(lengths, quick, tmp_path):
    table = tmp_path / "slow.csv"
    table.write_text("size_bytes,intra_node_ms,inter_node_ms\n1000,0.01,0.1\n1000000000,5,2000\n")
    near, far = (
        make_plan(question(lengths, Machine(nodes, high_affinity=True, network=str(table))))
        for nodes in ([2], [1, 1])
    )
    assert near.roles == far.roles and (near.segments, far.segments) == (1, 0)
    assert 0 < far.total_goodput < near.total_goodput
    assert far.binds == "link" != near.binds


PROMPTS = RequestSet([1000] * 300, [4] * 300)
OUTPUTS = RequestSet([20] * 300, [150] * 300)


@pytest.mark.parametrize("high_affinity", [False, True])
@pytest.mark.parametrize(
    ("load", "slo", "larger", "smaller"),
    [
        (PROMPTS, Slo(300, 200), "prefill", "decode"),
        (OUTPUTS, Slo(300, 22), "decode", "prefill"),
    ],
    ids=["prompts", "outputs"],
)
def test_a_role_that_needs_more_has_more_instances(
    quick, load, slo, larger, smaller, high_affinity
):
    """And no instance of the other is there for nothing, as in pairs."""
    pair = make_plan(question(load, Machine([2]), slo=slo, max_ranks=1))
    assert pair.feasible
    machine = Machine([8], high_affinity=high_affinity)
    asked = question(load, machine, slo=slo, max_ranks=1, rate=3.5 * pair.total_goodput)
    plan = make_plan(asked)
    assert plan.feasible and plan.accelerators <= 5, "four pairs would be eight"
    assert plan.roles[larger].instances > plan.roles[smaller].instances


def test_a_network_table_is_parsed_once_for_all_candidates(tmp_path):
    path = tmp_path / "probe.csv"
    path.write_text("size_bytes,intra_node_ms,inter_node_ms\n1000,1,2\n2000,2,4\n")
    machine = Machine([4], network=str(path))
    assert machine.link(True) is machine.link(True)
    path.write_text("size_bytes,intra_node_ms,inter_node_ms\n1000,3,2\n2000,5,4\n")
    assert machine.link(True).transfer_ms(1500) == 4


def test_memory_binds_where_it_is_short(lengths):
    judge = evaluator(lengths, Slo(250, 100))
    base = fleet()
    assert base.decode is not None
    small = replace(base, decode=replace(base.decode, kv_tokens=4096))
    goodput = judge.goodput(small)
    assert goodput.rate < judge.goodput(base).rate
    assert judge.binding(small, goodput.next) == "memory"


@pytest.mark.parametrize(
    ("changes", "roles", "numbers"),
    [
        (
            {"model": find_model("66b"), "machine": Machine([1])},
            {"prefill": (1, 2, 1), "decode": (1, 2, 1)},
            "takes 4 accelerators of one node and 246.6 GiB of memory for weights; "
            "the machine has 1 with 74.4 GiB, at most 1 in a node; give at least 4",
        ),
        (
            {"machine": Machine([1], high_affinity=True)},
            {"prefill": (1, 1, 1), "decode": (1, 1, 1)},
            "takes 2 accelerators",
        ),
        (
            {"model": find_model("66b")}
            | {"machine": Machine([2, 1], high_affinity=True, span_nodes=False)},
            {"prefill": (1, 2, 1), "decode": (1, 2, 1)},
            "takes 4 accelerators (each instance's in one node) and 246.6 GiB of memory for "
            "weights; the machine has 3 with 223.2 GiB, at most 2 in a node; give room for 2 and 2 "
            "in nodes, or mode: Manual, whose units and instances may span nodes",
        ),
        (
            {"machine": Machine([1]), "strategy": "Colocated", "model": find_model("66b")},
            {"hybrid": (1, 2, 1)},
            "takes 2 accelerators",
        ),
        (
            {"machine": Machine([4]), "fixed_tp": {"prefill": 4, "decode": 2}},
            {"prefill": (1, 4, 1), "decode": (1, 2, 1)},
            "takes 6 accelerators",
        ),
        (
            {"profile": replace(load_profile(), kv_budget_bytes=10 * 2**30, max_tokens={})}
            | {"machine": Machine([8]), "max_ranks": 1},
            {"prefill": (1, 1, 1), "decode": (1, 1, 1)},
            "prefill at TP 1 x PP 1 (this engine runs at most 1 rank an instance) needs 23.95 GiB "
            "of each accelerator and 10 GiB are there; use accelerators with more memory",
        ),
    ],
)
def test_a_machine_too_small_is_a_nearest_miss_with_its_numbers(
    lengths, quick, changes, roles, numbers
):
    plan = make_plan(replace(question(lengths, Machine([8])), **changes))
    assert not plan.feasible
    assert plan.binds == "memory"
    assert {
        role: (part.instances, part.tensor, part.pipeline) for role, part in plan.roles.items()
    } == roles
    assert numbers in plan.reason and "\n" not in plan.reason


def test_high_affinity_misses_the_slo_with_the_nearest_miss(lengths, quick):
    machine = Machine([4], high_affinity=True)
    plan = make_plan(question(lengths, machine, slo=Slo(10, 100)))
    assert not plan.feasible
    assert "nearest: prefill" in plan.reason and "of 10 ms" in plan.reason


@pytest.mark.parametrize("high_affinity", [False, True])
def test_an_engine_s_limit_of_ranks_holds_for_every_instance(lengths, quick, high_affinity):
    machine = Machine([8], high_affinity=high_affinity)
    for most in (1, 2):
        plan = make_plan(question(lengths, machine, max_ranks=most))
        assert plan.feasible
        assert all(part.tensor * part.pipeline <= most for part in plan.roles.values())


def test_questions_without_an_answer(lengths):
    with pytest.raises(NoProfile, match="give --hardware-profile or --estimate"):
        make_plan(question(lengths, Machine([8]), model=find_model("175b")))
    with pytest.raises(NoProfile, match="at the fixed prefill TP 5"):
        make_plan(question(lengths, Machine([8]), fixed_tp={"prefill": 5}))
    with pytest.raises(NoProfile, match="measure TP 1, or plan with --any-ranks"):
        make_plan(question(lengths, Machine([8]), model=find_model("66b"), max_ranks=1))
    with pytest.raises(NoProfile, match="leave --decode-tp out, or plan with --any-ranks"):
        make_plan(question(lengths, Machine([8]), fixed_tp={"decode": 2}, max_ranks=1))
    with pytest.raises(InvalidRequest, match="no accelerators"):
        Machine([])
    with pytest.raises(InvalidRequest, match="cannot simulate the strategy"):
        make_plan(question(lengths, Machine([4]), strategy="Magic"))


def test_requests_that_no_instance_can_hold(quick):
    plan = make_plan(question(RequestSet([300_000] * 5, [5] * 5), Machine([4])))
    assert not plan.feasible
    assert "give the role more accelerators" in plan.reason
