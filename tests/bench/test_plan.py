"""The requests of a run: the same for every system, at the instants that were asked for."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest

from distserve.bench.errors import BenchError
from distserve.bench.outcome import Planned
from distserve.bench.plan import Recipe
from distserve.bench.question import Pair, parse_pairs
from distserve.workload import ArrivalProcess, RequestSet

REQUESTS = RequestSet(range(5, 405), [3] * 400)
TRACE = RequestSet([4, 5, 6, 7], [1, 2, 3, 4], [1000.0, 1500.0, 3000.0, 9000.0], "trace")


def recipe(kind: str = "poisson", requests: RequestSet = REQUESTS, **more: int) -> Recipe:
    return Recipe(requests, ArrivalProcess(kind, seed=more.get("seed", 0)), **more)


def lengths(plan: Sequence[Planned]) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.output_tokens) for request in plan]


def test_systems_see_the_same_requests_and_seeds_differ() -> None:
    pair = Pair(50, 4.0)
    assert recipe().plan(pair) == recipe().plan(pair)
    assert recipe().plan(pair) != recipe(seed=1).plan(pair)


def test_lengths_and_instants_are_the_same_at_every_rate() -> None:
    slow, fast = recipe().plan(Pair(50, 1.0)), recipe().plan(Pair(50, 4.0))
    assert lengths(slow) == lengths(fast)
    assert [r.at_seconds for r in slow] == pytest.approx([4 * r.at_seconds for r in fast])


@pytest.mark.parametrize("prompt_format", ["tokens", "text"])
def test_no_prompt_begins_as_another_at_any_rate(prompt_format: str) -> None:
    """A prefix cache keeps blocks, of 16 tokens by most defaults, from one rate to the next."""
    asked = replace(recipe(requests=RequestSet([20] * 60, [3] * 60)), prompt_format=prompt_format)
    pairs = [Pair(50, 1.0), Pair(50, 4.0), Pair(50, math.inf), Pair(60, 1.0)]
    plans = [*map(asked.plan, pairs), asked.warm_up(70, pairs[0])]
    every = [request.prompt for request in itertools.chain(*plans)]
    prompts = [prompt.split() if isinstance(prompt, str) else prompt for prompt in every]
    assert len(prompts) == 280
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 280


def test_poisson_has_the_asked_mean_and_prompts_their_lengths() -> None:
    planned = recipe().plan(Pair(400, 8.0))
    gaps = [b.at_seconds - a.at_seconds for a, b in itertools.pairwise(planned)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.15)
    assert all(len(r.prompt) == r.prompt_tokens for r in planned)
    starts = {tuple(r.prompt[:5]) for r in planned}
    assert len(starts) == 400, "no two prompts share a cached prefix"


def test_a_trace_keeps_its_times_or_is_scaled_to_a_rate() -> None:
    own = recipe("trace", TRACE).plan(Pair(4, None))
    assert [r.at_seconds for r in own] == [0, 0.5, 2, 8]
    assert [r.output_tokens for r in own] == [1, 2, 3, 4]
    scaled = recipe("recorded", TRACE).plan(Pair(3, 4.0))
    assert [r.at_seconds for r in scaled] == pytest.approx([0, 0.125, 0.5])
    with pytest.raises(BenchError, match="has 4 requests"):
        recipe("recorded", TRACE).plan(Pair(5, 1.0))


def test_all_at_once() -> None:
    (pair,) = parse_pairs("[(7,inf)]")
    assert {r.at_seconds for r in recipe().plan(pair)} == {0.0}
    assert pair.label == "7-inf"


def test_a_papers_counts_and_rates_are_per_gpu() -> None:
    """DistServe's artifact asks this of its three GPUs for OPT-13B, and of eight for HumanEval."""
    chat = parse_pairs("sharegpt-opt-13b", gpus=3)
    assert [pair.label for pair in chat] == [
        f"300-{rate}" for rate in ("0.75", "1.5", "3", "4.5", "6", "6.75", "7.5", "9")
    ]
    code = parse_pairs("humaneval-opt-66b", gpus=8)
    assert [pair.label for pair in code] == [f"400-{rate}" for rate in range(1, 18, 2)]
    with pytest.raises(BenchError, match="tropical has no published rates; choose one of sharegpt"):
        parse_pairs("tropical")
    with pytest.raises(BenchError, match=r"'sharegpt' is no list .* name: sharegpt-opt-13b"):
        parse_pairs("sharegpt")


def test_a_drawn_set_gives_its_first_requests() -> None:
    drawn = replace(recipe(), drawn=True)
    short, long = drawn.plan(Pair(50, 4.0)), drawn.plan(Pair(400, 4.0))
    assert lengths(short) == lengths(long[:50])
    assert [r.at_seconds for r in short] == [r.at_seconds for r in long[:50]]
    assert [r.prompt_tokens for r in long] == list(range(5, 405))
    assert [r.prompt_tokens for r in recipe().plan(Pair(400, 4.0))] != list(range(5, 405))


def test_prompts_that_would_fill_the_memory_are_not_made() -> None:
    whole = recipe("fixed", RequestSet([10_000_000] * 11, [1] * 11))
    for ask in (whole.check, whole.plan):
        with pytest.raises(BenchError, match="do not fit the memory"):
            ask(Pair(11, 1.0))
    replace(whole, requests=replace(whole.requests, prompts=["x"] * 11)).check(Pair(11, 1.0))


def test_a_text_that_warms_up_is_no_longer_than_it_was() -> None:
    """A server that takes it with its answer, and not a token more, takes the warm-up too."""
    words = " ".join(f"word{place}" for place in range(40))
    asked = recipe("fixed", RequestSet([40, 1], [64, 3], prompts=[words, "ö"]))
    plan = asked.warm_up(20, Pair(2, 1.0))
    assert set(lengths(plan)) == {(40, 48), (1, 2)}  # it still answers
    every = {r.prompt for r in plan}
    long, short = sorted(every, key=len, reverse=True)
    assert isinstance(long, str) and len(long.split()) <= 40 and len(long) <= len(words)
    assert all(isinstance(text, str) and text.startswith("Warm-up.") for text in every)
    assert short not in words and long[:20] not in words


def test_texts_are_sent_as_they_are() -> None:
    texts = RequestSet([1, 2], [1, 1], prompts=["half a pair \ud800", "ö"])
    prompts = {r.prompt for r in recipe("fixed", texts).plan(Pair(2, 1.0))}
    assert prompts == {"half a pair ?", "ö"}


@pytest.mark.parametrize("prompt_format", ["tokens", "text"])
def test_another_attempt_has_other_prompts_alone(prompt_format: str) -> None:
    asked, pair = replace(recipe(), prompt_format=prompt_format), Pair(50, 4.0)
    plans = [asked.plan(pair, attempt) for attempt in (1, 2, 3)]
    assert plans[0] == asked.plan(pair)
    for plan in plans[1:]:
        assert lengths(plan) == lengths(plans[0])
        assert [r.at_seconds for r in plan] == [r.at_seconds for r in plans[0]]
    assert len({str(r.prompt) for plan in plans for r in plan}) == 150


@pytest.mark.parametrize("prompt_format", ["tokens", "text"])
def test_prompts_share_what_the_set_says_and_no_more(prompt_format: str) -> None:
    tokens = [700, 600, 513, 300, 300]
    shared = RequestSet(tokens, [1] * 5, [0.0] * 5, prefix_blocks=[[0, 1], [0, 1], [0, 2], [], [3]])
    asked = replace(recipe("recorded", shared), prompt_format=prompt_format)

    def made(plan: Sequence[Planned]) -> list[list[int] | list[str]]:
        return [r.prompt.split() if isinstance(r.prompt, str) else r.prompt for r in plan]

    pair = Pair(5, None)
    prompts = made(asked.plan(pair))
    assert prompts == made(asked.plan(pair)), "every system sees the same"
    assert [len(prompt) for prompt in prompts] == tokens
    assert prompts[1] == prompts[0][:600], "a shorter block is the beginning of the whole"
    assert prompts[2][:512] == prompts[0][:512]
    others = [made(asked.plan(pair, attempt=2)), made(asked.plan(Pair(4, None))[:1])]
    others += [made(replace(asked, seed=1).plan(pair)), made(asked.warm_up(40, pair))]
    begins = {tuple(prompt[:16]) for prompt in itertools.chain(prompts, *others)}
    assert len(begins) == 3 + 3 + 1 + 3 + 40, "another run's blocks are others, a warm-up has none"


def test_a_request_without_ids_is_what_it_was() -> None:
    bare = RequestSet([20] * 9, [1] * 9)
    none = replace(bare, prefix_blocks=[[]] * 9)
    assert recipe(requests=none).plan(Pair(9, 1.0)) == recipe(requests=bare).plan(Pair(9, 1.0))


@pytest.mark.parametrize("ids", [[0], [0, 1, 2]])
def test_ids_of_blocks_of_another_length_are_refused(ids: list[int]) -> None:
    asked = recipe("fixed", RequestSet([513], [1], name="x.jsonl", prefix_blocks=[ids]))
    said = rf"x.jsonl: a prompt of 513 tokens has {len(ids)} hash_ids, not 2, one for each 512"
    for ask in (asked.check, asked.plan):
        with pytest.raises(BenchError, match=said):
            ask(Pair(1, 1.0))
