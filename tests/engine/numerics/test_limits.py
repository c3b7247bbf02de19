"""Requests that would break a step are named, all others can be sampled."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distserve.engine.batch import Draw
from distserve.engine.limits import problem_with
from distserve.engine.sampler import Sampler, _filtered
from distserve.wire.dialect import SamplingParams

VOCABULARY = 12


def problem(prompt=(1,), **params) -> str | None:
    asked = SamplingParams(**{"seed": 0, "max_tokens": 5} | params)
    return problem_with(asked, prompt, VOCABULARY, max_model_len=8)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [12]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1] * 8}, "prompt"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 6}, "min_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logprobs": 13}, "logprobs"),
        ({"logit_bias": {12: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"stop_token_ids": [99]}, "stop_token_ids"),
    ],
)
def test_what_is_wrong_is_named(wrong, named) -> None:
    assert problem(**wrong).startswith(f"{named}:")


numbers = st.one_of(st.sampled_from([0.0, 1.0, 5e-324, 1e-300, 1e300]), st.floats(-10, 10))


def _weights(logits: torch.Tensor, asked: SamplingParams) -> torch.Tensor:
    drawn = Draw(asked, 0, [1, 3], [4, 4])
    if not asked.temperature:
        return logits
    adjusted = Sampler(frozenset({2}))._adjusted(logits, [drawn])
    return _filtered(adjusted.double(), [drawn])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": numbers,
            "top_p": numbers,
            "min_p": numbers,
            "top_k": st.integers(-1, 20),
            "min_tokens": st.integers(-1, 6),
            "presence_penalty": numbers,
            "frequency_penalty": numbers,
            "repetition_penalty": numbers,
            "logprobs": st.integers(-1, 14),
            "logit_bias": st.dictionaries(st.integers(-1, 13), numbers, max_size=4),
            "stop_token_ids": st.lists(st.integers(-1, 13), max_size=3),
        },
    )
)
def test_what_passes_can_be_sampled(params) -> None:
    if problem(**params) is not None:
        return
    asked = SamplingParams(seed=1, max_tokens=5, **params)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    assert _weights(logits, asked).isfinite().all()
    sampled = Sampler(frozenset({2})).sample(logits, [Draw(asked, 0, [1, 3], [4, 4])])[0]
    assert 0 <= sampled.token < VOCABULARY
    if asked.min_tokens > 2:
        assert sampled.token not in {2, *asked.stop_token_ids}
