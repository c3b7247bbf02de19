"""What may be drawn, how often, and that the noise belongs to the draw alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from distserve.engine import sampler
from distserve.engine.batch import Draw
from distserve.engine.noise import uniform
from distserve.engine.sampler import Sampler, _filtered, token_logprobs
from distserve.wire.dialect import SamplingParams

EOS = 2
SAMPLER = Sampler(frozenset({EOS}))


def draw(seed=0, choice=0, prompt=(), output=(), **params) -> Draw:
    return Draw(SamplingParams(seed=seed, max_tokens=9, **params), choice, prompt, list(output))


def frequencies(logits: torch.Tensor, draws: int = 4000, **params) -> np.ndarray:
    rows = logits.expand(draws, -1)
    sampled = SAMPLER.sample(rows, [draw(seed=seed, **params) for seed in range(draws)])
    return np.bincount([s.token for s in sampled], minlength=logits.shape[-1]) / draws


def assert_distributed(found: np.ndarray, expected: np.ndarray, draws: int = 4000) -> None:
    """Five standard deviations; the seeds are fixed, so this never flickers."""
    spread = 5 * np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= spread + 1e-12).all(), (found, expected)


def softmax(values) -> np.ndarray:
    weights = np.exp(np.array(values) - max(values))
    return weights / weights.sum()


LOGITS = torch.tensor([1.0, 0.5, -1.0, 2.0, 0.0])


def test_draws_follow_the_softmax() -> None:
    assert_distributed(frequencies(LOGITS), softmax(LOGITS.tolist()))
    assert_distributed(frequencies(LOGITS, temperature=0.5), softmax((2 * LOGITS).tolist()))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {0, 3}),
        ({"top_p": 0.5}, {3}),  # weighs 0.56 alone
        ({"top_p": 0.6}, {0, 3}),
        ({"min_p": 0.2}, {0, 1, 3}),  # e^-1, e^-1.5 against 1
        ({"top_k": 3, "top_p": 0.9}, {0, 1, 3}),
        ({"top_k": 3, "top_p": 0.6}, {3}),  # of the three, 3 weighs 0.63
        ({"top_k": 99, "top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-9}, {3}),
    ],
)
def test_filters_keep_and_renormalise(params, kept) -> None:
    masked = [v if i in kept else -math.inf for i, v in enumerate(LOGITS.tolist())]
    assert_distributed(frequencies(LOGITS, **params), softmax(masked))


def test_rows_of_a_batch_do_not_share_their_settings() -> None:
    settings = [{}, {"temperature": 0.0}, {"top_k": 1}, {"min_p": 0.9}, {"logit_bias": {4: 100.0}}]
    draws = [draw(seed=i, **s) for i, s in enumerate(settings)]
    rows = LOGITS.expand(len(draws), -1)
    together = SAMPLER.sample(rows, draws)
    assert together == [SAMPLER.sample(LOGITS[None], [d])[0] for d in draws]
    assert [s.token for s in together[1:]] == [3, 3, 3, 4]


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made meanwhile."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.numel() * one.itemsize)
        return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_requests_ask_for_takes_memory_for_a_few_rows_at_a_time(
    monkeypatch, temperature
) -> None:
    """Copies of all rows can be hundreds of megabytes, which no warm-up has had."""
    vocabulary, rows = 1000, 40
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)).bfloat16()
    asked = {"presence_penalty": 1.0, "logprobs": 5, "temperature": temperature}
    draws = [draw(seed=row, output=[row], **asked) for row in range(rows)]
    alone = [SAMPLER.sample(logits[row, None], [draws[row]])[0] for row in range(rows)]
    monkeypatch.setattr(sampler, "_BATCH_VALUES", 3 * vocabulary)
    with Largest() as largest:
        found = SAMPLER.sample(logits, draws)
    assert [one.token for one in found] == [one.token for one in alone]
    assert [one.logprobs.rank for one in found] == [one.logprobs.rank for one in alone]
    assert largest.bytes <= 3 * vocabulary * 8


def test_greedy_takes_the_first_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    found = SAMPLER.sample(logits, [draw(temperature=0.0)] * 2)
    assert [s.token for s in found] == [1, 0]
    assert found[0].logprobs is None


def penalised(**kwargs) -> int:
    return SAMPLER.sample(LOGITS[None], [draw(temperature=0.0, **kwargs)])[0].token


def test_penalties() -> None:
    assert penalised() == 3
    # Repetition looks at the prompt, too: 2.0 / 2.1 < 1.0; a negative logit is multiplied.
    assert penalised(prompt=[3], repetition_penalty=2.1) == 0
    assert penalised(output=[3], repetition_penalty=2.1) == 0
    # The others look at the output alone.
    assert penalised(prompt=[3], presence_penalty=2.0, frequency_penalty=2.0) == 3
    assert penalised(output=[3], presence_penalty=1.1) == 0
    assert penalised(output=[3], frequency_penalty=0.6) == 3
    assert penalised(output=[3, 3], frequency_penalty=0.6) == 0
    negative = torch.tensor([[-1.0, -1.5]])
    params = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert SAMPLER.sample(negative, [draw(prompt=[0], **params)])[0].token == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "asked",
    [
        {"presence_penalty": 0.005},
        {"frequency_penalty": 0.005},
        {"repetition_penalty": 1.0002},
        {"logit_bias": {1: 0.005}},
    ],
    ids=str,
)
def test_small_changes_are_not_rounded_away(dtype, asked) -> None:
    """Around 20 bfloat16 has steps of an eighth, float16 of a 64th."""
    logits = torch.tensor([[20.0, 20.0, 1.0]], dtype=dtype)
    (found,) = SAMPLER.sample(logits, [draw(output=[0], temperature=0.0, **asked)])
    assert found.token == 1


def test_end_tokens_are_banned_before_min_tokens() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0, 8.0]])
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [3]}
    tokens = [SAMPLER.sample(logits, [draw(output=[1] * n, **params)])[0].token for n in range(4)]
    assert tokens == [1, 1, 2, 2]


def test_logprobs_are_the_models_own() -> None:
    asked = draw(temperature=0.0, logprobs=2, logit_bias={4: 100.0}, presence_penalty=1.0)
    plain = draw(temperature=0.0, logprobs=0)
    biased, bare, none = SAMPLER.sample(LOGITS.expand(3, -1), [asked, plain, draw()])
    expected = LOGITS.log_softmax(-1).tolist()
    assert biased.token == 4
    assert biased.logprobs.logprob == pytest.approx(expected[4])
    assert [token for token, _ in biased.logprobs.top] == [3, 0]
    assert biased.logprobs.top[0][1] == pytest.approx(expected[3])
    assert bare.logprobs.top == []
    assert none.logprobs is None


def test_ranks_count_the_vocabulary() -> None:
    """Whatever of it is asked for; a tie is behind those that it may not displace."""
    logits = torch.tensor([[0.0, 3.0, -1.0, 3.0, 3.0]] * 5)
    for alternatives in range(6):
        found = token_logprobs(logits, range(5), alternatives)
        assert [scored.rank for scored in found] == [4, 3, 5, 3, 3]
        for token, scored in enumerate(found):
            if token not in dict(scored.top):
                assert scored.rank > alternatives
    drawn = draw(temperature=0.0, logprobs=1, logit_bias={2: 100.0})
    (biased,) = SAMPLER.sample(LOGITS[None], [drawn])
    assert (biased.token, biased.logprobs.rank) == (2, 5)


def test_logits_are_left_alone() -> None:
    logits = LOGITS.clone()[None]
    SAMPLER.sample(logits, [draw(logit_bias={0: 5.0}, top_p=0.5, temperature=0.3)])
    assert torch.equal(logits[0], LOGITS)


@given(st.integers(), st.integers(0, 2**31), st.integers(0, 2**31))
def test_noise_is_a_pure_function_in_the_unit_interval(seed, choice, position) -> None:
    value = uniform(seed, choice, position)
    assert 0.0 <= value < 1.0
    assert value == uniform(seed, choice, position)
    assert value != uniform(seed, choice + 1, position)
    assert value != uniform(seed, choice, position + 1)


def test_noise_stays_what_it_is() -> None:
    """A changed function would break replays across versions of a rollout."""
    assert [uniform(1, 0, 0), uniform(1, 0, 1), uniform(-1, 2, 3)] == GOLDEN


GOLDEN = [0.19556659671890386, 0.3225055575444745, 0.4836847993801928]


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=40),
    st.integers(0, 2**63),
    st.integers(0, 50),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_what_is_drawn_is_always_possible(logits, seed, top_k, top_p, min_p) -> None:
    row = torch.tensor([logits])
    params = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    token = SAMPLER.sample(row, [draw(seed=seed, **params)])[0].token
    rank = int((row[0] > row[0, token]).sum())
    assert 0 <= token < len(logits)
    assert top_k == 0 or rank < top_k


@given(st.integers(0, 1000))
def test_a_draw_survives_rounding_of_the_logits(seed) -> None:
    """Chunked and whole prefills differ in the last bits."""
    logits = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noisy = logits + 1e-13 * torch.randn(64, dtype=torch.float64)
    params = {"temperature": 1.0, "top_p": 0.9, "top_k": 20}
    first, second = (
        SAMPLER.sample(row[None], [draw(seed=seed, **params)])[0] for row in (logits, noisy)
    )
    assert first.token == second.token


@given(st.integers(0, 500), st.sampled_from([0, 3, 400, 1000]), st.floats(0.05, 0.999))
def test_few_candidates_cut_where_a_whole_sort_cuts(seed, top_k, top_p) -> None:
    """Peaked rows are settled by the heaviest tokens, flat ones are sorted whole."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1000, generator=generator) * torch.tensor([[8.0], [0.1]])
    draws = [draw(top_k=top_k, top_p=top_p)] * 2
    kept = _filtered(logits.double(), draws) > 0
    for row in range(2):
        weights = logits[row].double().softmax(-1).numpy()
        order = np.argsort(-weights, kind="stable")[: top_k or None]
        shares = weights[order] / weights[order].sum()
        count = int(np.searchsorted(np.cumsum(shares), top_p)) + 1
        assert set(kept[row].nonzero().flatten().tolist()) == set(order[:count].tolist())


huge = st.one_of(st.sampled_from([0.0, 1e-300, 1e300, -1e300]), st.floats(-10, 10))


@given(
    st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1e300])},
        optional={
            "top_p": st.floats(1e-300, 1.0),
            "min_p": st.floats(0.0, 1.0),
            "min_tokens": st.integers(0, 6),
            "presence_penalty": huge,
            "frequency_penalty": huge,
            "repetition_penalty": st.sampled_from([5e-324, 0.5, 1e300]),
            "logit_bias": st.dictionaries(st.integers(0, 11), huge, max_size=4),
            "stop_token_ids": st.lists(st.sampled_from([0, 4, -1, 12, 10**9]), max_size=3),
        },
    )
)
def test_no_settings_of_one_request_fail_a_step(params) -> None:
    """A step is everybody's: extremes may give odd text, but no error and no other's token."""
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    extreme, plain = draw(seed=1, prompt=[1, 3], output=[4, 4], **params), draw(seed=3)
    together = SAMPLER.sample(logits, [extreme, plain])
    assert together[1] == SAMPLER.sample(logits[1:], [plain])[0]
    assert 0 <= together[0].token < 12
    if extreme.params.min_tokens > 2:
        assert together[0].token not in {EOS, *extreme.params.stop_token_ids}
    if params["temperature"]:
        adjusted = SAMPLER._adjusted(logits, [extreme, plain])
        assert not _filtered(adjusted.double(), [extreme, plain]).isnan().any()
