"""The default mode's simulator: laws that hold for every strategy, and queueing theory."""

import itertools
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.planner.errors import OversizedRequest
from distserve.planner.links import Link
from distserve.planner.models import find_model
from distserve.planner.pace import Pace
from distserve.planner.profiles import load_profile
from distserve.planner.serving import Serving
from distserve.planner.simulator import InstanceSpec, Simulation
from distserve.planner.spread import Spread
from distserve.planner.strategies import REGISTRY, Fleet, strategy_class
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.workload import ArrivalProcess, RequestSet, Trace

LINK = Link("test", [1.0, 2.0], [1.0, 2.0])  # 1 ms per byte

STAGES = ("prefill_ms", "first_token_ms", "migration_ms", "migrated_ms", "decode_ms", "finish_ms")


def fleet_for(name: str, tp=1, pp=(1, 1), instances=(1, 1), tokens=1 << 20, **budgets) -> Fleet:
    times = load_profile().times(find_model("13b"), tp)
    prefill = InstanceSpec(times, tp, pp[0], tokens, **budgets)
    if not strategy_class(name).disaggregated:
        return Fleet(prefill, None, instances[0], 0)
    decode = InstanceSpec(times, tp, pp[1], tokens, **budgets)
    return Fleet(
        prefill, decode, *instances, link=LINK, kv_bytes_per_token=0.05, shared_machines=True
    )


def simulate(name: str, fleet: Fleet, trace: Trace, **options):
    simulation = Simulation(trace, **options)
    strategy = strategy_class(name)(simulation, fleet)
    return simulation, strategy, simulation.run(strategy)


TRACES = st.lists(
    st.tuples(
        st.integers(1, 1500), st.integers(1, 120), st.one_of(st.just(0.0), st.floats(0.01, 900))
    ),
    min_size=1,
    max_size=30,
).map(
    lambda rows: Trace(
        [prompt for prompt, _, _ in rows],
        [output for _, output, _ in rows],
        list(itertools.accumulate(gap for _, _, gap in rows)),
    )
)
SERVINGS = st.builds(
    Serving,
    prompt_ms=st.sampled_from([0.0, 2.5]),
    busy_request_ms=st.sampled_from([0.0, 4.0]),
    stream_request_ms=st.sampled_from([0.0, 0.5]),
    handover_ms=st.sampled_from([0.0, 6.0]),
    busy_handover_ms=st.sampled_from([0.0, 5.0]),
    request_ms=st.sampled_from([0.0, 3.0]),
    way_spread=st.sampled_from([Spread(), Spread((0.0, 0.5, 2.5))]),
    prefill_spread=st.sampled_from([Spread(), Spread((0.7, 1.3))]),
    decode_longer=st.sampled_from([-0.1, 0.0]),
    padding_ms=st.sampled_from([0.0, 0.01]),
    joining_ms=st.sampled_from([0.0, 3.5]),
    coming_ms=st.sampled_from([0.0, 2.0]),
    crowding=st.sampled_from([0.0, 0.25]),
    decode_slowed=st.sampled_from([0.0, 0.25, 1.0]),
    prefill_slowed=st.sampled_from([0.0, 0.4]),
    pace=st.sampled_from([Pace(), Pace((1.0, 1.3, 0.7), (0.8, 1.0, 1.5))]),
)
FLEETS = st.fixed_dictionaries(
    {
        "pp": st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
        "instances": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "tokens": st.sampled_from([1648, 3200, 1 << 20]),
        "max_requests": st.sampled_from([1, 3, 256]),
        "max_batched_tokens": st.sampled_from([16, 2048]),
        "serving": st.one_of(st.just(Serving()), SERVINGS),
    }
)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(REGISTRY)), fleet=FLEETS, trace=TRACES)
def test_laws_of_every_run(name, fleet, trace):
    built = fleet_for(name, **fleet)
    simulation, strategy, result = simulate(name, built, trace)
    life = simulation.life
    for request in range(len(trace)):
        times = [trace.arrival_ms[request], *(getattr(life, stage)[request] for stage in STAGES)]
        passed = [time for time in times if not math.isnan(time)]
        assert passed == sorted(passed), "time runs backwards"
        assert not math.isnan(life.finish_ms[request]), "a request did not end"
    for instance in strategy.instances:
        assert instance.memory.reserved == instance.decoding == instance.prefilling == 0
        assert not instance.waiting and not instance.ready.size
    one_by_one, _, stepped = simulate(name, built, trace, step_by_step=True)
    assert result.first_token_ms == pytest.approx(stepped.first_token_ms, rel=1e-9)
    assert result.finish_ms == pytest.approx(stepped.finish_ms, rel=1e-9)
    migrated_ms = pytest.approx(life.migrated_ms, rel=1e-9, nan_ok=True)
    assert one_by_one.life.migrated_ms == migrated_ms
    _, _, again = simulate(name, built, trace)
    assert (again.first_token_ms, again.finish_ms) == (result.first_token_ms, result.finish_ms)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_memory_is_never_exceeded(name, monkeypatch):
    from distserve.planner.simulator import KvBlocks

    held = []
    reserve = KvBlocks.reserve

    def watched(self, request, tokens):
        reserve(self, request, tokens)
        held.append(self.reserved / self.total)

    monkeypatch.setattr(KvBlocks, "reserve", watched)
    trace = ArrivalProcess().trace(RequestSet([500] * 200, [100] * 200), 20.0)
    simulate(name, fleet_for(name, tokens=6400), trace)
    assert 0.8 < max(held) <= 1


def test_migration_takes_its_time_and_one_connection_serves_one_at_a_time():
    trace = Trace([100, 100], [5, 5], [0.0, 0.0])
    simulation, _, _ = simulate("Disaggregated", fleet_for("Disaggregated"), trace)
    life = simulation.life
    assert life.migrated_ms[0] - life.migration_ms[0] == pytest.approx(5.0)  # 100 * 0.05 bytes
    assert life.first_token_ms[0] == life.first_token_ms[1]
    assert life.migration_ms[1] == pytest.approx(life.migrated_ms[0])


TIMES = TimeModel(Coefficients(80, 0, 0), Coefficients(10, 0, 0), Coefficients(10, 0, 0))


@pytest.mark.parametrize("step_by_step", [False, True])
def test_neighbours_slow_each_other_while_both_compute(step_by_step):
    """The first decodes from 80 ms on, the second prefills from 100 ms on:

    0        80  100                  180 + 24              and then each has the machine alone
    prefill  |   prefill, 80 * 1.3 ---|
             decode 20 | 104 ms, 1.25 times as long | decode
    """
    spec = InstanceSpec(TIMES, serving=Serving(prefill_slowed=0.3, decode_slowed=0.25))
    fleet = Fleet(spec, spec, shared_machines=True)
    trace = Trace([10, 10], [21, 1], [0.0, 100.0])
    simulation, _, result = simulate("Disaggregated", fleet, trace, step_by_step=step_by_step)
    assert result.ttft_ms == pytest.approx([80, 104])
    assert result.finish_ms[0] == pytest.approx(80 + 200 + (104 - 104 / 1.25))
    assert simulation.life.decode_ms[0] == pytest.approx(80)


@pytest.mark.parametrize("step_by_step", [False, True])
def test_those_that_decode_wait_for_one_that_joins(step_by_step):
    fleet = Fleet(InstanceSpec(TIMES), InstanceSpec(TIMES, serving=Serving(joining_ms=3)))
    trace = Trace([10, 10], [21, 2], [0.0, 5.0])
    _, _, result = simulate("Disaggregated", fleet, trace, step_by_step=step_by_step)
    # The second is prefilled at 160 and joins the step after the one that is under way then.
    assert result.finish_ms == pytest.approx([80 + 200 + 2 * 3, 173 + 3])


@pytest.mark.parametrize("step_by_step", [False, True])
def test_contexts_of_one_batch_cost_what_the_longest_does(step_by_step):
    """Equal outputs, prompts of 10 and 30: 20 tokens of padding while both decode."""
    fleet = Fleet(InstanceSpec(TIMES, serving=Serving(padding_ms=0.1, prompt_ms=5)))
    trace = Trace([10, 30], [11, 11], [0.0, 0.0])
    _, _, result = simulate("Colocated", fleet, trace, step_by_step=step_by_step)
    assert result.ttft_ms == pytest.approx([80 + 2 * 5] * 2)
    assert result.tpot_ms == pytest.approx([10 + 20 * 0.1] * 2)


@pytest.mark.parametrize("step_by_step", [False, True])
def test_a_slow_second_lengthens_what_begins_in_it(step_by_step):
    """Prefill until 80 ms, then 92 steps of 10 ms: the next begins with the slow second, at 1,000
    ms; 50 of 20 ms pass in it, and prefills take 1.5 times as long."""
    spec = InstanceSpec(TIMES, serving=Serving(pace=Pace((1.0, 1.5), (1.0, 2.0))))
    trace = Trace([10, 10], [1 + 92 + 50 + 7, 1], [0.0, 1010.0])
    fleet = Fleet(spec, spec)
    _, _, result = simulate("Disaggregated", fleet, trace, step_by_step=step_by_step)
    assert result.ttft_ms == pytest.approx([80, 120])
    assert result.finish_ms[0] == pytest.approx(2000 + 7 * 10)


def test_a_neighbour_does_not_change_the_second_in_which_a_step_began():
    """A prefill from 970 to 1,050 ms; at 1,010 ms, in a slow second, its neighbour begins to decode
    and takes nothing from it."""
    pace = Pace((1.0, 3.0), (1.0, 1.0))
    spec = InstanceSpec(TIMES, serving=Serving(pace=pace, decode_slowed=0.25, handover_ms=40))
    trace = Trace([10, 10], [9, 1], [890.0, 970.0])
    fleet = Fleet(spec, spec, shared_machines=True)
    simulation, _, result = simulate("Disaggregated", fleet, trace)
    assert simulation.life.decode_ms[0] == pytest.approx(1010)
    assert result.ttft_ms == pytest.approx([80, 80])


def test_instances_are_slow_at_other_times():
    spec = InstanceSpec(TIMES, serving=Serving(pace=Pace((1.0, 2.0, 3.0), (1.0,) * 3)))
    trace = Trace([10, 10], [1, 1], [0.0, 0.0])
    _, _, result = simulate("Colocated", Fleet(spec, None, 2, 0), trace)
    assert result.ttft_ms == pytest.approx([80, 160])


def test_ways_are_longer_while_others_decode():
    serving = Serving(request_ms=1, busy_request_ms=7, handover_ms=2)
    spec = InstanceSpec(TIMES, serving=serving)
    fleet = Fleet(spec, spec)
    trace = Trace([10, 10], [31, 2], [0.0, 100.0])
    simulation, _, result = simulate("Disaggregated", fleet, trace)
    assert result.ttft_ms == pytest.approx([80 + 1, 80 + 1 + 7])
    # At 188 the first one's step is under way until 193: then the engine hears of the second.
    assert simulation.life.migrated_ms == pytest.approx([81 + 2, 193 + 2])


@pytest.mark.parametrize(("news_ms", "heard"), [(0, 193), (4, 193), (6, 203)])
def test_an_engine_that_decodes_hears_later_of_a_hand_over(news_ms: float, heard: float):
    """The first one's steps end each 10 ms; the second's prefill at 188."""
    serving = Serving(request_ms=1, busy_request_ms=7, handover_ms=2, busy_handover_ms=news_ms)
    spec = InstanceSpec(TIMES, serving=serving)
    trace = Trace([10, 10], [31, 2], [0.0, 100.0])
    simulation, _, _ = simulate("Disaggregated", Fleet(spec, spec), trace)
    assert simulation.life.migrated_ms == pytest.approx([81 + 2, heard + 2])


def test_prefills_and_ways_are_as_uneven_as_they_were_measured():
    serving = Serving(
        request_ms=10, way_spread=Spread((0.5, 1.5)), prefill_spread=Spread((0.75, 1.25))
    )
    spec = InstanceSpec(TIMES, serving=serving)
    trace = Trace([10] * 12, [1] * 12, [1000.0 * n for n in range(12)])
    for fleet in (Fleet(spec, None, 1, 0), Fleet(spec, spec)):
        name = "Disaggregated" if fleet.decode else "Colocated"
        _, _, result = simulate(name, fleet, trace)
        assert {round(ms) for ms in result.ttft_ms} == {5 + 60, 5 + 100, 15 + 60, 15 + 100}


@pytest.mark.parametrize("pp", [1, 2])
def test_one_that_comes_costs_one_of_those_who_decode(pp: int):
    """Two streams on an instance each; a third request, of one token, comes while both decode."""
    spec = InstanceSpec(TIMES, serving=Serving(coming_ms=7))
    fleet = Fleet(spec, replace(spec, pp=pp), prefill_instances=3, decode_instances=2)
    ends = [
        simulate("Disaggregated", fleet, Trace([10] * n, [31, 31, 1][:n], [0.0, 0.0, 203.0][:n]))
        for n in (2, 3)
    ]
    (_, _, without), (_, _, beside) = ends
    later = [b - a for a, b in zip(without.finish_ms, beside.finish_ms[:2], strict=True)]
    assert sorted(later) == pytest.approx([0, 7])


def test_one_that_comes_costs_less_among_many():
    """Two streams on one instance: of what it would cost one, half."""
    spec = InstanceSpec(TIMES, serving=Serving(coming_ms=7, crowding=1.0))
    fleet = Fleet(spec, spec, prefill_instances=3)
    ends = [
        simulate("Disaggregated", fleet, Trace([10] * n, [31, 31, 1][:n], [0.0, 0.0, 200.0][:n]))
        for n in (2, 3)
    ]
    (_, _, without), (_, _, beside) = ends
    later = [b - a for a, b in zip(without.finish_ms, beside.finish_ms[:2], strict=True)]
    assert later == pytest.approx([3.5, 3.5])


@pytest.mark.parametrize("sent_ms", [1.0, 150.0])
def test_none_overtakes_another_on_its_way(sent_ms: float):
    """The second's way alone would be shorter: they come together, and are prefilled together;
    even if it were sent when the first one comes, and had no way at all."""
    serving = Serving(request_ms=100, way_spread=Spread((0.0, 1.5, 1.5)))
    spec = InstanceSpec(TIMES, serving=serving)
    ways = [serving.way_ms(request, streams=0) for request in range(2)]
    trace = Trace([10, 10], [1, 1], [0.0, sent_ms])
    simulation, _, _ = simulate("Colocated", Fleet(spec, None, 1, 0), trace)
    assert ways == [150, 0]
    assert simulation.life.prefill_ms == pytest.approx([150, 150])


@pytest.mark.parametrize("step_by_step", [False, True])
@pytest.mark.parametrize(
    ("way_ms", "sent_ms", "ended_ms"), [(3, 104, 113 + 7), (0, 105, 110 + 7), (0, 100, 100 + 7)]
)
def test_who_comes_makes_the_step_under_way_longer(
    step_by_step: bool, way_ms: float, sent_ms: float, ended_ms: float
):
    """The first one's steps begin each 10 ms from its way and 80 on; also just when one ends."""
    spec = InstanceSpec(TIMES, serving=Serving(request_ms=way_ms, coming_ms=7))
    trace = Trace([10, 10], [31, 2], [0.0, sent_ms])
    simulation = Simulation(trace, step_by_step=step_by_step, log=[])
    simulation.run(REGISTRY["Colocated"](simulation, Fleet(spec, None, 1, 0)))
    assert simulation.life.prefill_ms[1] == pytest.approx(ended_ms)
    assert ended_ms in [pytest.approx(step.end_ms) for step in simulation.log or ()]


def test_who_comes_while_another_is_heard_is_prefilled_with_it():
    """The third comes while the second is prefilled, from 117 to 197. What it costs the first one
    passes before the next step is formed, until 204: so the fourth is in it."""
    spec = InstanceSpec(TIMES, serving=Serving(coming_ms=7))
    trace = Trace([10] * 4, [31, 1, 1, 1], [0.0, 105.0, 150.0, 200.0])
    simulation, _, _ = simulate("Colocated", Fleet(spec, None, 1, 0), trace)
    begun = simulation.life.prefill_ms
    assert begun[2] == begun[3] > 200


def test_a_burst_waits_in_prefill_memory_when_decode_is_full():
    """Decode holds one request at a time, prefill two: the third prompt waits for memory."""
    times = load_profile().times(find_model("13b"), 1)
    fleet = Fleet(
        InstanceSpec(times, kv_tokens=2 * 112, max_requests=1),
        InstanceSpec(times, kv_tokens=160),
    )
    trace = Trace([100] * 4, [50] * 4, [0.0] * 4)
    simulation, _, _ = simulate("Disaggregated", fleet, trace)
    life = simulation.life
    assert life.prefill_ms[2] == pytest.approx(life.first_token_ms[1])
    assert life.prefill_ms[3] == pytest.approx(life.migrated_ms[1])
    assert life.migration_ms[1] == pytest.approx(life.finish_ms[0])


def test_kv_is_pulled_a_little_ahead_of_a_seat():
    """Decode has memory for many, and a seat for one."""
    times = load_profile().times(find_model("13b"), 1)
    fleet = Fleet(InstanceSpec(times), InstanceSpec(times, kv_tokens=20 * 160, max_requests=1))
    simulation, _, _ = simulate("Disaggregated", fleet, Trace([100] * 3, [50] * 3, [0.0] * 3))
    life = simulation.life
    assert life.migrated_ms[1] < life.finish_ms[0] == pytest.approx(life.decode_ms[1])
    # 5 % of its memory hold one context of 10 blocks, and not a second one.
    assert life.migration_ms[2] == pytest.approx(life.finish_ms[0])
    assert life.decode_ms[2] == pytest.approx(life.finish_ms[1])


def test_dispatch_goes_to_the_shortest_queue():
    trace = Trace([1000] * 4, [2] * 4, [0.0, 1.0, 2.0, 3.0])
    fleet = fleet_for("Disaggregated", instances=(4, 1))
    simulation, _, result = simulate("Disaggregated", fleet, trace)
    assert simulation.life.prefill_ms == pytest.approx(list(trace.arrival_ms))
    assert max(result.ttft_ms) == pytest.approx(min(result.ttft_ms))


def test_chunks_let_decode_go_on_during_a_long_prompt():
    trace = Trace([10, 2000], [200, 2], [0.0, 500.0])
    gaps = {}
    for name in ("Colocated", "ChunkedPrefill"):
        simulation, _, _ = simulate(name, fleet_for(name), trace, step_by_step=True, log=[])
        decodes = [record for record in simulation.log or [] if record.decode_requests]
        gaps[name] = max(record.end_ms - record.start_ms for record in decodes)
        stalls = itertools.pairwise(decodes)
        gaps[name] = max(
            gaps[name], max(later.end_ms - earlier.end_ms for earlier, later in stalls)
        )
    assert gaps["ChunkedPrefill"] < gaps["Colocated"] / 2


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_request_that_no_instance_can_hold_is_refused(name):
    with pytest.raises(OversizedRequest, match="give the role more accelerators"):
        simulate(name, fleet_for(name, tokens=160), Trace([150], [20], [0.0]))


def test_the_planner_simulates_every_strategy_that_the_api_names():
    from distserve.api.strategies import StrategyName, module_name

    assert REGISTRY.keys() == {name.value for name in StrategyName}
    for name, strategy in REGISTRY.items():
        assert strategy.__module__.rsplit(".", 1)[1] == module_name(StrategyName(name))


def test_a_prompt_longer_than_a_step_is_cut():
    fleet = fleet_for("Disaggregated", max_batched_tokens=400)
    simulation, _, _ = simulate(
        "Disaggregated", fleet, Trace([1000], [3], [0.0]), step_by_step=True, log=[]
    )
    prefills = [r.prefill_tokens for r in simulation.log or [] if r.prefill_tokens]
    assert prefills == [400, 400, 200]


@pytest.mark.parametrize("utilisation", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("stages", [1, 2])
def test_time_to_first_token_follows_the_queueing_formula(utilisation, stages):
    """M/D/1: uniform prompts, one instance, one prompt a batch; two stages as in the paper."""
    times = load_profile().times(find_model("13b"), 1)
    whole_ms = times.prefill_ms(512, 512**2)
    rate = utilisation / (whole_ms / stages)  # per ms
    count = 25_000
    trace = ArrivalProcess(seed=1).trace(RequestSet([512] * count, [1] * count), 1000 * rate)
    spec = InstanceSpec(times, pp=stages, max_requests=1)
    _, _, result = simulate("Disaggregated", Fleet(spec, InstanceSpec(times)), trace)
    if stages == 1:
        expected = whole_ms + rate * whole_ms**2 / (2 * (1 - rate * whole_ms))
    else:
        expected = whole_ms + rate * whole_ms**2 / (4 * (2 - rate * whole_ms))
    assert statistics.fmean(result.ttft_ms) == pytest.approx(expected, rel=0.02)
