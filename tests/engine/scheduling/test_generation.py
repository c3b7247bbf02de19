"""Both phases on one instance: whatever the scheduler does, the tokens are the model's."""

import random
from typing import Any

import pytest

from distserve.engine.commands import StartDrain, StopLeg
from distserve.wire.dialect import Condition, Declined, End, LegError, PromptScores, Slo

STRATEGIES = ["Colocated", "ChunkedPrefill", "Disaggregated"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_are_the_models(
    make_bench: Any, make_leg: Any, reference: Any, strategy: str
) -> None:
    bench = make_bench(strategy=strategy)
    draw = random.Random(3)
    prompts = [[draw.randrange(1, 90) for _ in range(draw.randint(1, 30))] for _ in range(20)]
    legs = [bench.start(make_leg(p, draw.randint(1, 12))) for p in prompts]
    bench.run()
    for leg in legs:
        expected = reference.continuation(leg.prompt, leg.sampling.max_tokens)
        assert bench.tokens(leg.id) == expected
        assert [type(e) for e in bench.ends(leg.id)] == [End]
        assert [f.reason for f in reference.finishes(bench, leg.id)] == ["length"]
    assert bench.is_quiet()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_long_prompts_are_computed_in_chunks(
    make_bench: Any, make_leg: Any, reference: Any, strategy: str
) -> None:
    bench = make_bench(strategy=strategy, tokens=8)
    leg = bench.start(make_leg(range(1, 30), 4))
    bench.run()
    assert bench.tokens(leg.id) == reference.continuation(leg.prompt, 4)
    assert [len(step[0].tokens) for step in bench.runner.steps[:4]] == [8, 8, 8, 5]


def test_a_prompt_that_fits_is_not_cut(make_bench: Any, make_leg: Any) -> None:
    """DistServe and vLLM batch whole prompts; the head is not overtaken by a shorter one."""
    bench = make_bench(tokens=16, caching=False)
    for length in (6, 12, 3):
        bench.start(make_leg(range(1, length + 1), 1))
    bench.run()
    assert [[len(s.tokens) for s in step] for step in bench.runner.steps] == [[6], [12, 3]]


def test_chunks_share_steps_with_decodes(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench(strategy="ChunkedPrefill", options={"chunkTokens": 16})
    bench.start(make_leg([1, 2, 3], 10))
    bench.run(steps=2)
    bench.start(make_leg(range(1, 41), 2))
    bench.run()
    lengths = [sorted(len(s.tokens) for s in step) for step in bench.runner.steps[2:5]]
    assert lengths == [[1, 15], [1, 15], [1, 10]]


def test_a_prompt_that_was_begun_goes_on_while_no_block_is_free(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    """It holds its blocks. Those that decode take the last free ones meanwhile."""
    bench = make_bench(
        strategy="ChunkedPrefill", options={"chunkTokens": 16}, blocks=30, caching=False
    )
    decoding = [bench.start(make_leg([i, i, i], 9)) for i in (1, 2)]
    bench.run(steps=2)
    long = bench.start(make_leg(range(1, 97), 1))
    bench.run(steps=5)
    assert bench.blocks.available == 0
    bench.run()
    lengths = [sorted(len(s.tokens) for s in step) for step in bench.runner.steps[2:]]
    assert lengths == [[1, 1, 14]] * 6 + [[1, 1, 12]]
    for leg in (*decoding, long):
        assert bench.tokens(leg.id) == reference.continuation(leg.prompt, leg.sampling.max_tokens)


def test_a_cached_prefix_is_not_computed_again(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    bench = make_bench()
    first = bench.start(make_leg(range(1, 17), 3))
    bench.run()
    second = bench.start(make_leg(range(1, 17), 3))
    bench.run()
    assert bench.tokens(second.id) == bench.tokens(first.id)
    (end,) = bench.ends(second.id)
    assert isinstance(end, End)
    # The last block is computed although it is cached: its last token gives the first output.
    assert end.cached_tokens == 12
    other = bench.start(make_leg(range(1, 17), 3, salt="another tenant"))
    bench.run()
    assert bench.ends(other.id)[0].cached_tokens == 0


def test_caching_can_be_off(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench(caching=False)
    for _ in range(2):
        leg = bench.start(make_leg(range(1, 17), 3))
        bench.run()
    assert bench.ends(leg.id)[0].cached_tokens == 0
    assert not bench.stored


def test_choices_fork_after_the_first_token(make_bench: Any, make_leg: Any, reference: Any) -> None:
    bench = make_bench()
    leg = bench.start(make_leg(range(1, 7), 9, choices=[0, 1, 2, 3]))
    bench.run()
    for choice in range(4):
        assert bench.tokens(leg.id, choice) == reference.continuation(leg.prompt, 9, choice)
    prefills = [s for step in bench.runner.steps for s in step if len(s.tokens) > 1]
    assert len(prefills) == 1, "the prompt is computed once"
    assert len(reference.finishes(bench, leg.id)) == 4
    assert bench.is_quiet()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_preempted_sequences_continue_with_the_same_tokens(
    make_bench: Any, make_leg: Any, reference: Any, strategy: str
) -> None:
    bench = make_bench(strategy=strategy, blocks=12)
    legs = [bench.start(make_leg([i, i + 1, i + 2], 30, choices=[0, 1])) for i in range(1, 7)]
    bench.run()
    preempted = 0
    for leg in legs:
        for choice in (0, 1):
            assert bench.tokens(leg.id, choice) == reference.continuation(leg.prompt, 30, choice)
        (end,) = bench.ends(leg.id)
        preempted += end.preemptions
    assert preempted > 0
    assert f"num_preemptions_total {float(preempted)}" in bench.metrics.render().decode()
    assert bench.is_quiet()


def test_a_replay_continues_where_the_client_is(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    bench = make_bench()
    whole = reference.continuation(range(1, 10), 12)
    leg = bench.start(make_leg(range(1, 10), 12, prior=whole[:5]))
    bench.run()
    assert bench.tokens(leg.id) == whole[5:]
    assert bench.events[leg.id][0].index == 5


def test_prompt_scores_come_whole_also_from_chunks(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench(tokens=8)
    asked = {"prompt_logprobs": 0}
    for tokens in (2, 0):
        bench.start(make_leg(range(1, 21), 2))
        leg = bench.start(make_leg(range(1, 21), tokens, sampling=asked))
        bench.run()
        scores = bench.events[leg.id][0]
        assert isinstance(scores, PromptScores)
        found = [s and s.logprob for s in scores.logprobs]
        assert found == [None, *(-float(t) for t in range(2, 21))]
        assert len(bench.tokens(leg.id)) == tokens
        assert isinstance(bench.ends(leg.id)[0], End)


def test_prompt_scores_that_were_sent_are_not_computed_again(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    """A preempted sequence takes what the prefix cache still has, and computes the rest without."""
    bench = make_bench(blocks=16)
    asked = {"prompt_logprobs": 0}
    legs = [bench.start(make_leg([i] * 9, 30, sampling=asked)) for i in range(1, 7)]
    bench.run()
    assert sum(bench.ends(leg.id)[0].preemptions for leg in legs) > 0
    for leg in legs:
        assert bench.tokens(leg.id) == reference.continuation(leg.prompt, 30)
        assert len([e for e in bench.events[leg.id] if isinstance(e, PromptScores)]) == 1
    scored = [span for step in bench.runner.steps for span in step if span.score_prompt is not None]
    assert len(scored) == len(legs)
    again = [
        span
        for step in bench.runner.steps
        for span in step
        if len(span.tokens) > 1 and span.score_prompt is None
    ]
    assert any(span.start > 0 for span in again), "from what is cached"


@pytest.mark.parametrize("after", range(6))
def test_an_abort_at_any_state_lets_go(make_bench: Any, make_leg: Any, after: int) -> None:
    bench = make_bench(tokens=8)
    leg = bench.start(make_leg(range(1, 21), 8, choices=[0, 1]))
    bench.run(steps=after)
    bench.engine.handle(StopLeg(leg.id))
    bench.run()
    (end,) = bench.ends(leg.id)
    assert isinstance(end, LegError)
    assert not end.retryable
    assert bench.is_quiet()


def test_an_abort_that_overtakes_its_leg_wins(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench()
    leg = make_leg([1, 2])
    bench.engine.handle(StopLeg(leg.id))
    bench.start(leg)
    bench.run()
    assert isinstance(bench.ends(leg.id)[0], LegError)
    assert not bench.runner.steps


def test_a_leg_whose_time_is_over_is_told(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench()
    leg = bench.start(make_leg([1, 2], 50, timeout_ms=2000.0))
    bench.run(steps=3)
    bench.clock.now += 3
    bench.run()
    (end,) = bench.ends(leg.id)
    assert isinstance(end, LegError)
    assert end.status == 504
    assert bench.is_quiet()


def test_a_step_that_fails_is_told_to_its_legs_only(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    bench = make_bench()
    leg = bench.start(make_leg([1, 2], 5))
    bench.run(steps=2)
    bench.runner.fails = True
    bench.run(steps=1)
    bench.runner.fails = False
    (end,) = bench.ends(leg.id)
    assert isinstance(end, LegError)
    assert end.retryable
    later = bench.start(make_leg([1, 2], 5))
    bench.run()
    assert bench.tokens(later.id) == reference.continuation([1, 2], 5)
    assert bench.is_quiet()


@pytest.mark.parametrize("by", ["a step that fails", "its deadline"])
def test_a_leg_that_failed_leaves_the_state(make_bench: Any, make_leg: Any, by: str) -> None:
    """An idle engine says so without being asked: its last line would count as load elsewhere."""
    bench = make_bench()
    bench.start(make_leg([1, 2], 50, timeout_ms=2000.0))
    bench.run(steps=1)
    bench.clock.now += 1
    bench.engine.flush()
    assert len(bench.states[-1].requests) == 1
    bench.runner.fails = by == "a step that fails"
    bench.clock.now += 0.5 if bench.runner.fails else 1.5
    bench.run()
    bench.clock.now += 0.5
    bench.engine.flush()
    assert bench.states[-1].requests == []


def test_a_draining_instance_takes_nothing_new(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench()
    old = bench.start(make_leg([1, 2], 5))
    bench.engine.handle(StartDrain())
    new = bench.start(make_leg([1, 2], 5))
    bench.run()
    assert isinstance(bench.ends(old.id)[0], End)
    refused = bench.ends(new.id)[0]
    assert isinstance(refused, LegError)
    assert refused.retryable
    assert bench.states[-1].draining


def test_conditions_are_tested_against_the_instances_own_state(
    make_bench: Any, make_leg: Any
) -> None:
    bench = make_bench()
    first = bench.start(make_leg([1, 2], 5, only_if=Condition.IDLE))
    declined = bench.start(make_leg([1, 2], 5, only_if=Condition.IDLE))
    bench.run(steps=3)
    stalling = bench.start(make_leg([1, 2], 5, only_if=Condition.STALL_FREE))
    bench.run()
    relaxed = bench.start(make_leg([1, 2], 9, slo=Slo(tpot_ms=10_000.0)))
    bench.run(steps=2)
    fits = bench.start(make_leg([1, 2], 5, only_if=Condition.STALL_FREE))
    bench.run()
    assert isinstance(bench.ends(first.id)[0], End)
    assert isinstance(bench.ends(declined.id)[0], Declined)
    assert isinstance(bench.ends(stalling.id)[0], Declined)
    assert isinstance(bench.ends(relaxed.id)[0], End)
    assert isinstance(bench.ends(fits.id)[0], End)


def test_state_says_what_all_choices_have_left_and_where_they_sit(
    make_bench: Any, make_leg: Any
) -> None:
    bench = make_bench()
    bench.start(make_leg([1, 2, 3], 10, choices=[0, 1, 2, 3]))

    def told() -> tuple[str, int, int]:
        (request,) = bench.state().requests
        return request.phase, request.tokens_left, request.seats

    assert told() == ("waiting", 4 * 10, 4)
    bench.run(steps=1)
    assert told() == ("decode", 4 * 9, 4)
    bench.run(steps=2)
    assert told() == ("decode", 4 * 7, 4)


def test_state_says_what_each_request_has_left(make_bench: Any, make_leg: Any) -> None:
    bench = make_bench(tokens=8)
    bench.start(make_leg([1, 2, 3], 10))
    bench.run(steps=4)
    bench.clock.now += 1
    bench.start(make_leg(range(1, 40), 10))
    bench.run(steps=1)
    state = bench.state()
    decoding, prefilling = state.requests
    assert (decoding.phase, decoding.tokens_out, decoding.tokens_left) == ("decode", 4, 6)
    assert (prefilling.phase, prefilling.tokens_out) == ("prefill", 0)
    assert (state.running, state.waiting) == (2, 0)
    assert decoding.age_ms > prefilling.age_ms > 0
    assert [s.sequence for s in bench.states] == sorted({s.sequence for s in bench.states})
