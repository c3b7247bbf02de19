"""More accelerators never make a plan worse: machines that grow step by step."""

import zlib
from dataclasses import replace
from itertools import islice, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.planner.questions import question

from distserve.planner.capacity import capacity
from distserve.planner.goodput import Evaluator, Goodput, Probe
from distserve.planner.machine import Machine
from distserve.planner.plan import Plan, PlanRequest, make_plan
from distserve.planner.role_rates import INSTANT
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import REGISTRY, Fleet
from distserve.planner.units import Unit


class Luck:
    """Goodputs that nothing explains: any share of a fleet's capacity, for one seed the same."""

    seed = 0

    def share(self, *what) -> float:
        """From 0 to 1, 0 in one of four cases."""
        drawn = zlib.crc32(repr((self.seed, what)).encode()) / 2**32
        return max(0.0, drawn - 0.25) / 0.75

    def goodput(self, evaluator, fleet) -> Goodput:
        top = capacity(fleet, evaluator.mean)
        rate = top * self.share(shape(fleet))
        return Goodput(rate, Probe(max(rate, 1e-3 * top) * 1.04, False, 1, 0, 80.0))

    def settled(self, evaluator, fleet, goodput, count, matters) -> Goodput:
        return replace(goodput, rate=goodput.rate * self.share(shape(fleet), count))


def shape(fleet: Fleet) -> tuple:
    """What tells apart the fleets of one model; a role that is free has no stages' times."""
    specs = [
        spec and (spec.tp, spec.pp, spec.times.prefill) for spec in (fleet.prefill, fleet.decode)
    ]
    return *specs, fleet.prefill_instances, fleet.decode_instances, fleet.link and fleet.link.name


@pytest.fixture
def luck(monkeypatch) -> Luck:
    """In place of simulations: the law is the search's, whatever they say."""
    luck = Luck()
    monkeypatch.setattr(Evaluator, "goodput", lambda self, fleet: luck.goodput(self, fleet))
    monkeypatch.setattr(Evaluator, "settled", lambda self, *rest: luck.settled(self, *rest))
    monkeypatch.setattr(Evaluator, "binding", lambda self, fleet, failed: "TTFT")
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 10)
    monkeypatch.setattr("distserve.planner.plan.IDLE_REQUESTS", 10)
    return luck


def grown(machine: Machine, steps: list[int]) -> Machine:
    """Each step adds an accelerator to the node of that number, or a node of one: to the last
    domain, or where the number is the highest as a domain of its own."""
    nodes, sizes = list(machine.nodes), [len(domain) for domain in machine.domains]
    for step in steps:
        if step < len(nodes):
            nodes[step] += 1
            continue
        nodes.append(1)
        if sizes and step < HIGHEST_STEP:
            sizes[-1] += 1
        elif sizes:
            sizes.append(1)
    limit = machine.max_accelerators
    return replace(
        machine,
        nodes=nodes,
        max_accelerators=limit and limit + len(steps),
        domains=in_domains(nodes, sizes),
    )


def in_domains(nodes: list[int], sizes: list[int]) -> list[list[int]]:
    """Domains of so many nodes each."""
    rest = iter(nodes)
    return [list(islice(rest, size)) for size in sizes]


@st.composite
def any_machine(draw) -> Machine:
    """With domains in half of the cases, where nodes are joined at all: as `plan` counts them."""
    nodes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    high_affinity = draw(st.booleans())
    first = draw(st.none() | st.integers(1, len(nodes))) if high_affinity else None
    sizes = [] if first is None else [first, len(nodes) - first]
    return Machine(
        nodes,
        max_accelerators=draw(st.none() | st.integers(1, 8)),
        high_affinity=high_affinity,
        span_nodes=draw(st.booleans()),
        domains=in_domains(nodes, sizes),
    )


HIGHEST_STEP = 3
machines = any_machine()
growth = st.lists(st.integers(0, HIGHEST_STEP), min_size=1, max_size=2)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("rate", [None, 5.0])
def test_more_accelerators_never_make_a_plan_worse(lengths, luck, name, rate):
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(machine=machines, steps=growth, seed=st.integers(0, 1000))
    def law(machine, steps, seed):
        luck.seed = seed
        asked = question(lengths, machine, strategy=name, rate=rate)
        no_worse(asked, make_plan(asked), make_plan(replace(asked, machine=grown(machine, steps))))

    law()


def no_worse(asked: PlanRequest, less: Plan, more: Plan) -> None:
    if asked.rate is None or not less.feasible:
        assert more.total_goodput >= less.total_goodput
    assert more.feasible >= less.feasible
    if asked.rate is not None and less.feasible:
        assert more.accelerators <= less.accelerators


@pytest.mark.parametrize("rate", [None, 3.5])
@pytest.mark.parametrize("high_affinity", [False, True])
def test_more_accelerators_never_make_a_simulated_plan_worse(
    lengths, monkeypatch, high_affinity, rate
):
    monkeypatch.setattr("distserve.planner.plan.SEARCH_REQUESTS", 40)
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 80)
    plans = []
    for nodes in ([1], [2], [2, 1], [3, 1], [4, 1]):
        machine = Machine(nodes, high_affinity=high_affinity)
        asked = question(lengths, machine, rate=rate, max_ranks=1)
        plans.append(make_plan(asked))
    for less, more in pairwise(plans):
        no_worse(asked, less, more)
    assert not plans[0].feasible
    assert plans[-1].feasible


@settings(max_examples=300, deadline=None)
@given(
    machine=machines,
    steps=growth,
    parts=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
)
def test_more_accelerators_never_hold_fewer_units(machine, steps, parts):
    fleet = Fleet(*(InstanceSpec(INSTANT, tp, pp) for tp, pp in parts))
    for segments in (0, 1):
        unit = Unit(fleet, segments)
        held = unit.copies(machine)
        assert held <= unit.copies(grown(machine, steps))
        assert held * unit.accelerators <= machine.accelerators
        if held and segments == 0 and machine.span_nodes:
            assert max(tp for tp, _ in parts) <= max(machine.nodes)
        if segments == 0 and machine.domains:
            apart = [replace(machine, nodes=d, domains=()) for d in machine.domains if d]
            assert held <= sum(unit.copies(one) for one in apart), "each lies in one domain"
