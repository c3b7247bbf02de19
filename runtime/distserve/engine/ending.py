"""When a choice ends and why: pure, so that prefill side, decode side and a replay agree.

min_tokens not reached -> nothing ends it but its length
an end token, then a stop token id, then a stop string, then the length
"""

from collections.abc import Collection
from dataclasses import dataclass

from distserve.engine.detokenizer import TextStream
from distserve.wire.dialect import SamplingParams


@dataclass(frozen=True, slots=True)
class Ending:
    reason: str
    """stop | length"""
    stop: str | int | None = None
    """The stop string or token id; None for the model's own end token and for the length."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a client sees of one more token."""

    text: str
    """To be shown with the token."""
    ending: Ending | None = None
    rest: str = ""
    """Only with an ending: text that had been held back, for the finish event."""


def banned_tokens(params: SamplingParams, eos_token_ids: Collection[int], output: int) -> set[int]:
    """Tokens that may not be drawn while `output` tokens are out: those that would end the choice
    before `min_tokens`."""
    if output >= params.min_tokens:
        return set()
    return set(eos_token_ids) | set(params.stop_token_ids)


def ending_by_token(
    params: SamplingParams, eos_token_ids: Collection[int], token: int, output: int
) -> Ending | None:
    """Whether `token`, the last of `output` tokens, ends the choice by its id."""
    if output < params.min_tokens:
        return None
    if token in eos_token_ids and not params.ignore_eos:
        return Ending("stop")
    if token in params.stop_token_ids:
        return Ending("stop", token)
    return None


def judge(
    params: SamplingParams,
    eos_token_ids: Collection[int],
    token: int,
    output: int,
    text: TextStream,
    room: int | None = None,
) -> Judged:
    """Push `token`, the last of `output` tokens of a choice, to its text and say what comes of it.

    `room`: most output tokens that the model's length leaves, if that may be less than max_tokens.
    The text of a token that ends the choice by its id is shown only on
    `include_stop_str_in_output` (special tokens follow `skip_special_tokens` all the same).
    """
    by_token = ending_by_token(params, eos_token_ids, token, output)
    if by_token is not None and not params.include_stop_str_in_output:
        return Judged("", by_token, text.finish())
    shown = text.push(token)
    if by_token is not None:
        return Judged(shown.text, by_token, text.finish())
    if shown.stop is not None:
        return Judged(shown.text, Ending("stop", shown.stop))
    limit = params.max_tokens if room is None else min(params.max_tokens, room)
    if output >= limit:
        return Judged(shown.text, Ending("length"), text.finish())
    return Judged(shown.text)
