"""Whether a leg can run on this instance at all: bounds, checked before anything is held."""

import math
import re
from collections.abc import Iterable

from distserve.wire.dialect import InstanceInfo, Leg, Phases, SamplingParams
from distserve.wire.ids import is_request_id

MAX_TIMEOUT_MS = 24 * 3600 * 1000.0
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")


def problem_of(leg: Leg, instance: InstanceInfo) -> str | None:
    """One line that says what is wrong with the leg, or None."""
    checks = (_ids(leg), _phases(leg), _tokens(leg, instance), _sampling(leg.sampling, instance))
    return next((text for check in checks for ok, text in check if not ok), None)


Check = Iterable[tuple[bool, str]]


def _ids(leg: Leg) -> Check:
    transfer = leg.source.transfer if leg.source else leg.transfer
    names = [leg.id, leg.request_id, *([transfer] if transfer is not None else [])]
    yield all(map(is_request_id, names)), "ids have 1 to 128 characters of A-Z a-z 0-9 . _ : -"
    yield 0 < leg.timeout_ms <= MAX_TIMEOUT_MS, "timeout_ms must be above 0 and at most a day"
    yield len(leg.salt) <= 1024, "salt has at most 1024 characters"


def _phases(leg: Leg) -> Check:
    decode, left = leg.phases is Phases.DECODE, leg.sampling.max_tokens - len(leg.prior)
    yield decode == (leg.source is not None), "source is for decode legs, which need it"
    yield leg.transfer is None or leg.phases is Phases.PREFILL, "transfer is for prefill legs"
    if leg.source is not None:
        yield (
            _ADDRESS.fullmatch(leg.source.migrator) is not None,
            "source.migrator must be host:port",
        )
        yield left > 1, "a decode leg needs max_tokens for a token after the first one"
        yield leg.sampling.prompt_logprobs is None, "prompt_logprobs come from the prefill leg"
    if leg.phases is Phases.PREFILL:
        yield left <= 1 or leg.transfer is not None, "a prefill leg needs a transfer"
    yield left > 0 or (left == 0 and not leg.prior), "prior has all of max_tokens already"


def _tokens(leg: Leg, instance: InstanceInfo) -> Check:
    choices = leg.choices
    yield bool(choices) and len(set(choices)) == len(choices), "choices must be distinct indices"
    yield all(0 <= choice < 1 << 31 for choice in choices), "choices must be distinct indices"
    yield (
        len(choices) <= instance.max_num_seqs,
        f"{len(choices)} choices are over the instance's {instance.max_num_seqs} sequences",
    )
    yield not leg.prior or len(choices) == 1, "prior is for one choice"
    yield bool(leg.prompt), "the prompt is empty"
    vocabulary = instance.vocab_size
    yield (
        all(0 <= token < vocabulary for token in (*leg.prompt, *leg.prior)),
        f"token ids must be from 0 to {vocabulary - 1}",
    )
    length = len(leg.prompt) + len(leg.prior) + min(1, leg.sampling.max_tokens)
    yield (
        length <= instance.max_model_len,
        f"{length} tokens are over this instance's {instance.max_model_len}: shorten the prompt",
    )
    blocks = -(-length // instance.block_tokens) + len(choices)
    yield (
        len(choices) == 1 or blocks <= instance.total_blocks,
        f"{len(choices)} choices of {length} tokens do not fit into the KV cache",
    )


def _sampling(params: SamplingParams, instance: InstanceInfo) -> Check:
    vocabulary = instance.vocab_size
    yield params.min_tokens >= 0, "min_tokens must not be negative"
    yield 0 <= params.temperature < math.inf, "temperature must not be negative"
    yield params.top_k >= 0, "top_k must not be negative; 0 keeps all"
    yield 0 < params.top_p <= 1, "top_p must be above 0 and at most 1"
    yield 0 <= params.min_p <= 1, "min_p must be from 0 to 1"
    penalties = (params.presence_penalty, params.frequency_penalty)
    yield all(map(math.isfinite, penalties)), "penalties must be finite"
    yield 0 < params.repetition_penalty < math.inf, "repetition_penalty must be above 0"
    yield (
        all(0 <= t < vocabulary and math.isfinite(b) for t, b in params.logit_bias.items()),
        f"logit_bias is finite, for token ids from 0 to {vocabulary - 1}",
    )
    yield (
        len(params.stop) <= MAX_STOPS
        and all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in params.stop),
        f"stop holds at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters",
    )
    for name, asked in (
        ("logprobs", params.logprobs),
        ("prompt_logprobs", params.prompt_logprobs),
    ):
        yield asked is None or 0 <= asked <= vocabulary, f"{name} must be from 0 to {vocabulary}"
