"""What no request may bring into a step, where it would fail all others; asked when a leg comes."""

import math
from collections.abc import Sequence

from distserve.wire.dialect import SamplingParams


def problem_with(
    params: SamplingParams, prompt: Sequence[int], vocab_size: int, max_model_len: int
) -> str | None:
    """One line that names what is wrong with a request, or None."""
    if not prompt:
        return "prompt: holds no token"
    if len(prompt) >= max_model_len:
        return f"prompt: {len(prompt)} tokens leave no room in a context of {max_model_len}"
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        return f"prompt: token ids are 0 to {vocab_size - 1}"
    bounds = (
        ("temperature", params.temperature, 0.0, math.inf),
        ("min_p", params.min_p, 0.0, 1.0),
        ("presence_penalty", params.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", params.frequency_penalty, -2.0, 2.0),
        ("repetition_penalty", params.repetition_penalty, 0.01, 100.0),
        ("top_k", params.top_k, 0, math.inf),
        ("max_tokens", params.max_tokens, 1, math.inf),
        ("min_tokens", params.min_tokens, 0, params.max_tokens),
        ("logprobs", params.logprobs or 0, 0, vocab_size),
        ("prompt_logprobs", params.prompt_logprobs or 0, 0, vocab_size),
    )
    for name, value, low, high in bounds:
        if not (math.isfinite(value) and low <= value <= high):
            return f"{name}: {value} is not between {low} and {high}"
    if not 0.0 < params.top_p <= 1.0:
        return f"top_p: {params.top_p} is not above 0 and at most 1"
    for token, bias in params.logit_bias.items():
        if not (0 <= token < vocab_size and -100.0 <= bias <= 100.0):
            return f"logit_bias: {token}: token ids are 0 to {vocab_size - 1}, biases -100 to 100"
    for token in params.stop_token_ids:
        if not 0 <= token < vocab_size:
            return f"stop_token_ids: {token}: token ids are 0 to {vocab_size - 1}"
    return None
