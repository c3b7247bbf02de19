"""The nouns of one step: what the scheduler hands to the model runner and what it gets back.

The scheduler decides (pure Python), the runner computes (torch); neither knows the other's types.
A step is a list of spans, one for each sequence in it::

    sequence positions   0 ........ start ........ start+len(tokens) .........
                         |  KV is in the pool  |  computed in this step  |  not known yet

Prefill, a chunk of one, decode (one token) and verification of drafted tokens (several) are the
same thing with other lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from distserve.wire.dialect import SamplingParams
from distserve.wire.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Draw:
    """Ask for one token after a span's last position."""

    params: SamplingParams
    choice: int
    prompt: Sequence[int]
    output: Sequence[int]
    """Output tokens so far: penalties count them, and their number is the noise's position."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step."""

    tokens: Sequence[int]
    """New token ids, at least one."""
    start: int
    """Position of the first of them."""
    block_table: Sequence[int]
    """Blocks that hold positions 0 .. start+len(tokens), in order."""
    draws: Sequence[Draw] = ()
    """More than one only for the first token of several choices. Empty: KV is all that is wanted
    (a chunk that is not the last)."""
    score_prompt: int | None = None
    """Not None: also log-probabilities of `tokens[1:]` and of the token after the span, given what
    stands before them, with this many alternatives."""
    next_token: int | None = None
    """The prompt's token after this span, when `score_prompt` is asked and one exists."""

    @property
    def stop(self) -> int:
        """Tokens of context after the step."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answer to one Draw."""

    token: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SpanResult:
    draws: list[Sampled] = field(default_factory=list)
    """In the order of `Span.draws`."""
    prompt_scores: list[TokenLogprobs] = field(default_factory=list)
    """For `tokens[1:]` and, if given, `next_token`."""
