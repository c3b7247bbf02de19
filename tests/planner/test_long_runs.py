"""Plans are settled by a longer run than the one that searches: what the short one did not see."""

import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planner.questions import question

from distserve.planner.fleets import instance_spec
from distserve.planner.goodput import STEPS_PER_DOUBLING, Evaluator, Goodput, Probe
from distserve.planner.machine import Machine
from distserve.planner.models import find_model
from distserve.planner.plan import make_plan
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.planner.strategies import Fleet
from distserve.workload import ArrivalProcess, RequestSet


@pytest.fixture
def flattered(monkeypatch, quick):
    """The short run sees the set's first requests only."""
    monkeypatch.setattr(RequestSet, "sample", lambda self, count, seed: self.first(count))


def test_a_short_run_that_promised_far_too_much_costs_no_plan(flattered):
    load = RequestSet([100] * 80 + [1500] * 920, [2] * 1000)
    asked = question(load, Machine([2]), slo=Slo(300, 200))
    plan = make_plan(asked)
    assert plan.feasible
    judge = Evaluator(asked.strategy, load, load, asked.arrivals, asked.slo)
    assert plan.unit is not None
    promised = replace(judge, requests=load.first(80)).goodput(plan.unit.fleet)
    assert plan.total_goodput < promised.rate / 2
    longer = replace(judge, requests=load.resample(150, asked.arrivals.seed))
    assert longer.probe(plan.unit.fleet, plan.total_goodput).passes
    higher = plan.total_goodput * 2 ** (1 / STEPS_PER_DOUBLING)
    assert not longer.probe(plan.unit.fleet, higher).passes
    assert plan.binds == "TTFT", "it bound the long run alone"


def test_what_a_short_run_alone_meets_is_the_nearest_miss_of_the_long_run(flattered):
    """Even idle: one in five prompts takes longer than the target, and none of the first."""
    load = RequestSet([100] * 80 + [2000] * 20, [2] * 100)
    plan = make_plan(question(load, Machine([2]), slo=Slo(150, 200)))
    assert not plan.feasible and plan.binds == "TTFT"
    assert "when idle over 150 requests, though a short run meets it" in plan.reason
    assert plan.prediction is not None
    assert plan.prediction.rate < 0.1, "not at a rate at which requests wait for each other"
    assert plan.prediction.attainment_percent < 90
    assert f"reaches {int(plan.prediction.attainment_percent)}" in plan.reason


def test_a_request_too_large_for_one_candidate_costs_no_plan(flattered):
    """The short run does not see it; of two accelerators an instance holds it."""
    load = RequestSet([100] * 80 + [1900] * 20, [20] * 100)
    small = replace(load_profile(), max_tokens={("facebook/opt-13b", 1, 1): 1500})
    asked = question(load, Machine([4]), slo=Slo(2000, 200), profile=small)
    plan = make_plan(asked)
    assert plan.feasible
    assert all(role.tensor * role.pipeline > 1 for role in plan.roles.values())
    # No instance holds it: said so, also where the SLO is out of reach even without it.
    for slo in (asked.slo, Slo(1, 1)):
        nothing = make_plan(replace(asked, slo=slo, max_ranks=1))
        assert not nothing.feasible
        assert "exceeds the 1500 tokens of KV cache of TP 1 x PP 1" in nothing.reason


@given(share=st.floats(0, 1), limit=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_long_run_is_searched_only_as_far_down_as_it_matters(lengths, share, limit, seed):
    """And what it finds is the same as without, though higher rates may pass where lower fail."""
    probed = []

    class Drawn(Evaluator):
        def probe(self, fleet, rate):
            probed.append(rate)
            drawn = zlib.crc32(repr((seed, rate)).encode()) / 2**32
            return Probe(rate, rate < limit and drawn > 0.2, 1, 0, 80.0)

    judge = Drawn("Disaggregated", lengths, lengths, ArrivalProcess(), Slo(250, 100))
    spec = instance_spec(find_model("13b"), load_profile(), 1, 1)
    pair = Fleet(spec, spec)
    held = judge.settled(pair, Goodput(1.0), 150)
    everything = len(probed)
    probed.clear()

    def matters(rate):
        return rate > share or rate == 1.0

    found = judge.settled(pair, Goodput(1.0), 150, matters)
    if matters(held.rate):
        assert found == held
    else:
        assert held.rate <= found.rate <= share
    assert len(probed) <= everything
    if share > 0.5:
        assert all(map(matters, probed))
