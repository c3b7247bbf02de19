"""What a load was simulated with is what the fit finds in it."""

import random
from dataclasses import replace
from statistics import fmean, median

import pytest

from distserve.planner.errors import InvalidProfile
from distserve.planner.least_squares import scattered
from distserve.planner.load_fit import _news_ms, fit_loads
from distserve.planner.load_pace import pace_of
from distserve.planner.loads import Cover, LoadRecord, LoadRequest, decoded, encoded
from distserve.planner.pace import Pace
from distserve.planner.serving import Serving
from distserve.planner.simulator import InstanceSpec, Simulation
from distserve.planner.spread import Spread
from distserve.planner.strategies import Fleet, strategy_class
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.workload import ArrivalProcess, Trace

TIMES = TimeModel(
    Coefficients(10, 0.5, 1e-4), Coefficients(7, 0.003, 2.0), Coefficients(9, 0.004, 0.8), 4
)
LIMITS = {"max_batched_tokens": 1024, "max_requests": 32}
TOGETHER = Serving(
    request_ms=5.0,
    prompt_ms=2.0,
    prefill_step_longer=0.1,
    prefill_longer=0.1,
    step_ms=1.0,
    stream_ms=0.3,
    padding_ms=0.003,
    coming_ms=2.0,
    joining_ms=4.0,
)
APART = replace(
    TOGETHER,
    busy_request_ms=3.0,
    handover_ms=7.0,
    busy_handover_ms=5.0,
    decode_slowed=0.15,
    prefill_slowed=0.1,
)


def simulated(strategy: str, serving: Serving, rate: float) -> LoadRecord:
    """A load as clients of the simulator see it: Poisson arrivals of many lengths."""
    draw = random.Random(round(100 * rate))
    count = max(25, round(20 * rate))
    prompts = [round(2 ** draw.uniform(5, 9)) for _ in range(count)]
    outputs = [round(2 ** draw.uniform(4, 7)) for _ in range(count)]
    arrivals = ArrivalProcess("poisson", seed=count).times_ms(count, rate)
    spec = InstanceSpec(serving.applied(TIMES), serving=serving, **LIMITS)
    fleet = Fleet(spec, spec, shared_machines=True) if strategy == "Disaggregated" else Fleet(spec)
    trace = Trace(prompts, outputs, list(arrivals))
    simulation = Simulation(trace, step_by_step=True, log=[])
    simulation.run(strategy_class(strategy)(simulation, fleet))
    assert simulation.log is not None
    life = simulation.life
    steps = [(s.start_ms, s.end_ms) for s in simulation.log if s.decode_requests]
    return LoadRecord(
        1, 0,
        [
            LoadRequest(
                prompts[i], trace.arrival_ms[i], life.prefill_ms[i], life.first_token_ms[i],
                # An engine hears between two steps that the KV has come.
                decoded[0][0] if strategy == "Disaggregated" else None,
                (life.first_token_ms[i], *(end for _, end in decoded)),
            )
            for i in range(count)
            if (decoded := [s for s in steps if life.decode_ms[i] <= s[0] < life.finish_ms[i]])
        ],
    )  # fmt: skip


def ttft_ms(load: LoadRecord) -> float:
    return fmean(request.token_ms[0] - request.sent_ms for request in load.requests)


def loads_of(strategy: str, serving: Serving) -> list[LoadRecord]:
    return [simulated(strategy, serving, rate) for rate in (0.3, 2.0, 4.0, 6.0)]


@pytest.mark.parametrize(("strategy", "true"), [("Colocated", TOGETHER), ("Disaggregated", APART)])
def test_what_a_load_was_simulated_with_is_found(strategy: str, true: Serving) -> None:
    loads = loads_of(strategy, true)
    found = fit_loads(loads, TIMES)
    # One comes about when another joins: of what both cost together most is told, which is it less.
    assert found.coming_ms + found.joining_ms == pytest.approx(6.0, rel=0.2)
    # Most prefills have one prompt: what they take more is its own, or that of each.
    each_ms, true_ms = (
        s.prompt_ms + s.prefill_step_longer * TIMES.prefill.a for s in (found, true)
    )
    assert each_ms == pytest.approx(true_ms, rel=0.1)
    # A way is known but for the part of a step for which it waits: together they are.
    if strategy == "Disaggregated":
        assert found.busy_request_ms == pytest.approx(true.busy_request_ms, abs=0.2)
        assert found.stream_request_ms == pytest.approx(true.stream_request_ms, abs=0.02)
    again = loads_of(strategy, found)
    assert list(map(ttft_ms, again)) == pytest.approx(list(map(ttft_ms, loads)), rel=0.05)
    near = pytest.approx(1.0, abs=0.12)
    assert all(value == near for value in (*found.pace.prefill, *found.pace.decode))
    for spread in (found.way_spread, found.prefill_spread):
        assert all(part == near for part in spread.parts)
    found = replace(
        found, prompt_ms=true.prompt_ms, prefill_step_longer=true.prefill_step_longer,
        busy_request_ms=true.busy_request_ms, stream_request_ms=true.stream_request_ms,
        coming_ms=true.coming_ms, joining_ms=true.joining_ms, pace=true.pace,
        way_spread=true.way_spread, prefill_spread=true.prefill_spread,
    )  # fmt: skip
    assert found.as_entry() == pytest.approx(true.as_entry(), rel=0.15, abs=0.02)
    assert found.padding_ms == pytest.approx(true.padding_ms, rel=0.2)


@pytest.mark.parametrize(("strategy", "base"), [("Colocated", TOGETHER), ("Disaggregated", APART)])
def test_first_tokens_come_when_they_came_with_ways_that_grow(strategy: str, base: Serving) -> None:
    """Together the wait for a step is in the same time as the way: what both take is found."""
    true = replace(base, busy_request_ms=1.0, stream_request_ms=0.5)
    loads = loads_of(strategy, true)
    found = fit_loads(loads, TIMES)
    again = loads_of(strategy, found)
    assert list(map(ttft_ms, again)) == pytest.approx(list(map(ttft_ms, loads)), rel=0.05)
    if strategy == "Disaggregated":
        mean = found.busy_request_ms + 4 * found.stream_request_ms
        assert mean == pytest.approx(3.0, abs=0.3) and found.stream_request_ms > 0.25


def test_ways_of_a_burst_are_not_those_of_single_requests() -> None:
    """All at once, and prefilled together when the last of them has come."""
    burst = [LoadRequest(9, 0.1 * n, 30.0, 40.0, None, (40.0,)) for n in range(20)]
    alone = [
        LoadRequest(9, begin, begin + 8.0, begin + 20.0, None, (begin + 20.0,))
        for begin in (500.0 * n for n in range(1, 30))
    ]
    found = fit_loads([LoadRecord(1, 5, [*burst, *alone])], TIMES)
    assert found.request_ms == pytest.approx((29 * 8.0 + 30.0) / 30), "but for the first of it"
    assert len(found.way_spread.parts) == 20 and found.way_spread.parts[9] < 1


@pytest.mark.parametrize(("strategy", "base"), [("Colocated", TOGETHER), ("Disaggregated", APART)])
def test_what_a_request_costs_among_many_is_told_apart(strategy: str, base: Serving) -> None:
    true = replace(base, coming_ms=8.0, joining_ms=8.0, crowding=0.125)
    found = fit_loads(loads_of(strategy, true), TIMES)
    assert found.coming_ms + found.joining_ms == pytest.approx(16.0, rel=0.1)
    assert 0.125 <= found.crowding <= 0.25, "it, or the next of those that are tried"


@pytest.mark.parametrize("strategy", ["Colocated", "Disaggregated"])
def test_steps_that_were_measured_on_a_slower_machine_are_taken_back(strategy: str) -> None:
    """Which of its terms a step is longer by is not told apart well; what it takes is."""
    true = replace(TOGETHER, prefill_step_longer=-0.2, prefill_longer=-0.2, decode_longer=-0.2)
    found = fit_loads(loads_of(strategy, true), TIMES)
    assert found.prefill_longer == pytest.approx(-0.2, abs=0.03) and found.decode_longer < -0.05
    mine, theirs = found.applied(TIMES), true.applied(TIMES)
    for batch in (1, 6, 12):
        ms = theirs.decode_ms(batch, 150 * batch)
        assert mine.decode_ms(batch, 150 * batch) == pytest.approx(ms, rel=0.04)


def test_pieces_of_prompts_in_decode_steps_are_no_prefills_of_their_own() -> None:
    found = fit_loads(loads_of("ChunkedPrefill", TOGETHER), TIMES)
    assert found.prompt_ms == 0 and found.prefill_slowed == 0 == found.decode_slowed
    assert found.pace == Pace(), "it is not known which half of a step was slow"
    ms = TOGETHER.applied(TIMES).decode_ms(8, 1200)
    assert found.applied(TIMES).decode_ms(8, 1200) == pytest.approx(ms, rel=0.08)
    assert found.prefill_longer == pytest.approx(TOGETHER.prefill_longer, abs=0.1)


def test_padding_is_told_from_the_contexts_themselves() -> None:
    """Two streams of unequal length: what their steps take beyond the engine's is the shorter's
    padding."""
    streams = [request(400, steps=40, step_ms=20.0), request(100, steps=40, step_ms=20.0)]
    alone = [request(n, steps=40, step_ms=TIMES.decode_ms(1, n + 20)) for n in (100, 400)]
    loads = [LoadRecord(1, 1, [one]) for one in alone] + [LoadRecord(1, 2, streams)]
    found = fit_loads(loads, TIMES)
    left_ms = 20.0 - found.applied(TIMES).decode_ms(2, 540)
    assert found.padding_ms == pytest.approx(left_ms / 300, rel=0.2) and found.padding_ms > 0.01


def request(prompt: int, steps: int, step_ms: float) -> LoadRequest:
    begin = 10.0 + TIMES.prefill_ms(prompt, prompt**2)
    tokens = tuple(begin + step_ms * n for n in range(steps + 1))
    return LoadRequest(prompt, 0.0, 10.0, begin, None, tokens)


STEEP = Spread(tuple(0.7 + 0.6 * (0.5 + part) / 20 for part in range(20)))
UNEVEN = Spread(tuple((0.5 + part) / 10 for part in range(20)))


@pytest.mark.parametrize(("strategy", "true"), [("Colocated", TOGETHER), ("Disaggregated", APART)])
def test_what_lies_about_a_mean_is_found(strategy: str, true: Serving) -> None:
    """Ways, of which a little is seen as something else: in the tails a part is not a point."""
    found = fit_loads(loads_of(strategy, replace(true, way_spread=UNEVEN)), TIMES).way_spread
    assert found.parts == pytest.approx(UNEVEN.parts, abs=0.25)
    found = fit_loads(loads_of(strategy, replace(true, prefill_spread=STEEP)), TIMES)
    assert found.prefill_spread.parts == pytest.approx(STEEP.parts, abs=0.12)
    assert all(part == pytest.approx(1.0, abs=0.15) for part in found.way_spread.parts)


def test_news_is_told_from_others_tokens() -> None:
    """At once: the second token is with the third of another's that follow the first."""
    other = LoadRequest(9, 0.0, 1.0, 2.0, 3.0, tuple(10.0 * n for n in range(40)))

    def late(second: float) -> float:
        one = LoadRequest(9, 80.0, 90.0, 101.0, 110.0, (103.0, second, second + 10))
        added = Serving(handover_ms=2.0, joining_ms=1.0)
        return _news_ms([LoadRecord(1, 2, [other, one])], added)

    assert late(130.0) == 0 and late(131.0) == 1.0
    assert late(141.0) == 10.0  # a step later, which it made longer
    assert late(190.0) == 0  # for room, not for the news


SLOW_AT_TIMES = Pace((1.0, 1.2, 1.0, 1.5), (1.0, 1.4, 1.0, 0.8))


@pytest.mark.parametrize(("strategy", "true"), [("Colocated", TOGETHER), ("Disaggregated", APART)])
def test_a_machine_that_is_slow_at_times_is_seen_to_be(strategy: str, true: Serving) -> None:
    load = simulated(strategy, replace(true, pace=SLOW_AT_TIMES), 3.0)
    found = pace_of([load], TIMES, true)
    for phase in ("prefill", "decode"):
        true_series, series = getattr(SLOW_AT_TIMES, phase), getattr(found, phase)
        off = [series[second] - true_series[second % 4] for second in range(1, 16)]
        # What lasts into the next second is in the one where its middle is, and a second without
        # prefills is taken to be as the one before.
        assert median(map(abs, off)) < 0.04 and sum(abs(value) < 0.12 for value in off) > 10
    assert pace_of([], TIMES, true) == Pace()


def test_the_mean_is_in_the_terms_and_what_varies_around_it_in_the_pace() -> None:
    slow = replace(APART, pace=Pace((1.3,), (1.3, 1.6)))
    found = fit_loads(loads_of("Disaggregated", slow), TIMES)
    assert found.prefill_longer == pytest.approx(1.1 * 1.3 - 1, abs=0.05)
    ms = APART.applied(TIMES).decode_ms(6, 900)
    assert 1.3 * ms < found.applied(TIMES).decode_ms(6, 900) < 1.6 * ms
    assert fmean(found.pace.decode) == pytest.approx(1.0, abs=0.04)
    assert max(found.pace.prefill) < 1.1 < max(found.pace.decode)


def test_a_step_counts_once_however_many_streams_tell_of_it() -> None:
    """One stream whose steps take twice as long, then four of the machine's usual pace."""

    def streams(count: int, begin_ms: float, pace: float) -> list[LoadRequest]:
        step_ms = pace * TIMES.decode_ms(count, 105 * count)
        tokens = tuple(begin_ms + step_ms * n for n in range(11))
        return [LoadRequest(100, begin_ms - 20, begin_ms - 15, begin_ms, None, tokens)] * count

    load = LoadRecord(1, 4, [*streams(1, 20.0, pace=2.0), *streams(4, 400.0, pace=1.0)])
    one_ms, four_ms = TIMES.decode_ms(1, 105), TIMES.decode_ms(4, 420)
    seen = pace_of([load], TIMES, Serving()).decode[0]
    assert seen == pytest.approx((2 * one_ms + four_ms) / (one_ms + four_ms), rel=0.01)
    assert sorted(w.once for w in load.windows(TIMES)) == [*[0.25] * 4, 1.0]


def test_a_weight_is_a_number_of_rows() -> None:
    rows, times = [(1.0, 2.0), (1.0, 5.0), (1.0, 9.0)], [4.0, 6.0, 12.0]
    twice = scattered([*rows, rows[1]], [*times, times[1]])
    assert scattered(rows, times, [1.0, 2.0, 1.0]) == pytest.approx(twice)
    assert scattered(rows, times) != pytest.approx(twice)


def test_answers_that_are_too_short_to_tell_steps_add_nothing_to_them() -> None:
    found = fit_loads([LoadRecord(1, 1, [request(100, steps=3, step_ms=9.0)])], TIMES)
    assert found.pace == Pace(pytest.approx([1.0]), pytest.approx([1.0]))
    found = replace(found, pace=Pace())
    assert found.as_entry() == pytest.approx(Serving(request_ms=10.0).as_entry(), abs=1e-6)
    assert fit_loads([LoadRecord(1, 1, [])], TIMES) == Serving()


def test_a_cover_counts_each_moment_once() -> None:
    cover = Cover([(10, 20), (0, 5), (15, 30)])
    assert cover.within(0, 100) == 25 and cover.within(3, 12) == 4
    assert cover.share(6, 9) == 0 and cover.share(16, 18) == 1 and cover.share(5, 5) == 0


def test_steps_that_seem_to_overlap_are_one_after_another() -> None:
    """News of the first was late by 2 ms: it takes its time all the same, and ends earlier."""
    first = LoadRequest(9, 0.0, 0.0, 10.0, None, (13.0,))
    second = LoadRequest(9, 1.0, 10.0, 30.0, None, (31.0,))
    load = LoadRecord(1, 1, [first, second])
    assert load.prefilling.within(0, 100) == 30
    assert load.prefilling.share(1, 31) == 1 and load.prefilling.within(31, 99) == 0


def test_pieces_of_one_step_do_overlap() -> None:
    """A prompt of several steps, and one that shares the last of them."""
    long = LoadRequest(900, 0.0, 0.0, 30.0, None, (30.0,))
    short = LoadRequest(9, 1.0, 20.0, 30.0, None, (30.1,))
    assert LoadRecord(1, 1, [long, short]).prefilling.within(-99, 99) == pytest.approx(30.1)


def test_a_load_is_kept_as_it_was_seen() -> None:
    (load,) = loads_of("Disaggregated", APART)[:1]
    assert decoded(encoded(load.requests)) == tuple(load.requests)
    with pytest.raises(InvalidProfile, match="measure it again"):
        decoded('[{"input_tokens": "many"}]')
