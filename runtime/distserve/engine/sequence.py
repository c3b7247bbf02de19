"""The nouns of scheduling: a request is one leg, its sequences are the choices that it produces.

    both, prefill:   WAITING -> PREFILL (chunks) -+-> DECODE -> done
                        ^                         |     |
                        `------ preempted --------|-----'
                                                  `-> OFFERED (prefill leg: KV waits for its fetch)
    decode:          EXPECTED -> FETCHING -> DECODE -> done      (preempted: WAITING, as above)

A choice's tokens are prompt + output, and KV exists for the first `computed` of them. Everything a
step does is to compute some of the rest; when nothing is left, the next token is drawn. So a chunk,
a decode step, a recomputation after preemption and a replay are one thing.

    prompt ............... | output ..........
    computed .............................|  remaining (at least one: the last token's)
"""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import StrEnum

from distserve.engine.detokenizer import TextStream
from distserve.engine.lifecycle import Moments
from distserve.wire.dialect import Leg, Phases, RequestState
from distserve.wire.hashing import block_hash, root_hash
from distserve.wire.messages import TokenLogprobs


class Phase(StrEnum):
    WAITING = "waiting"
    PREFILL = "prefill"
    OFFERED = "offered"
    EXPECTED = "expected"
    FETCHING = "fetching"
    DECODE = "decode"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice while it grows. Before its first token a request has only one, which stands for
    all of its choices (`fork` makes the others)."""

    request: "Request"
    choice: int
    output: list[int]
    text: TextStream
    computed: int = 0
    hashes: list[bytes] = field(default_factory=list)
    """Of full blocks of prompt + output, as far as they were needed."""
    stored_blocks: int = 0
    """Full blocks that were given to the prefix cache."""

    @property
    def owner(self) -> str:
        """Its name among the block manager's owners."""
        return f"sequence:{self.request.leg.id}#{self.choice}"

    @property
    def order(self) -> tuple[int, int]:
        """First come, first served."""
        return (self.request.arrival, self.choice)

    @property
    def length(self) -> int:
        return len(self.request.leg.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        return self.length - self.computed

    def tokens(self, start: int, stop: int) -> Tokens[int]:
        prompt = self.request.leg.prompt
        inside = len(prompt)
        if start >= inside:
            return self.output[start - inside : stop - inside]
        if stop <= inside:
            return prompt[start:stop]
        return prompt[start:] + self.output[: stop - inside]

    def block_hashes(self, count: int, block_tokens: int) -> list[bytes]:
        """Hashes of the first `count` blocks, which must be full."""
        while len(self.hashes) < count:
            start = len(self.hashes) * block_tokens
            parent = self.hashes[-1] if self.hashes else root_hash(self.request.leg.salt)
            self.hashes.append(block_hash(parent, self.tokens(start, start + block_tokens)))
        return self.hashes[:count]


@dataclass(slots=True, eq=False)
class Request:
    """One leg on this instance."""

    leg: Leg
    arrival: int
    """Number in order of arrival."""
    deadline: float
    """Of the engine's clock."""
    moments: Moments
    phase: Phase = Phase.WAITING
    sequences: list[Sequence] = field(default_factory=list)
    """Choices that are not finished."""
    forked: bool = False
    """Every choice has its first token and a sequence of its own."""
    is_announced: bool = False
    """The hand-over was told to the client."""
    scores: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as computed."""
    cached_tokens: int = 0
    preemptions: int = 0
    transport: str = ""
    transfer_bytes: int = 0

    @property
    def transfer(self) -> str | None:
        """The transfer that this leg offers or fetches."""
        return self.leg.source.transfer if self.leg.source else self.leg.transfer

    @property
    def offers(self) -> bool:
        """Whether this leg hands its KV on: not when the first token is the last one anyway."""
        return may_continue(self.leg) and self.leg.transfer is not None

    @property
    def seats(self) -> int:
        """Places in the batch that it needs: one for each choice that is to come or unfinished."""
        return len(self.sequences) if self.forked else len(self.leg.choices)

    @property
    def tokens_left(self) -> int:
        """That may still come here, of all choices together: after a prefill leg they come
        elsewhere."""
        if self.leg.phases is Phases.PREFILL:
            return 0
        begun = [len(self.leg.prior)] * len(self.leg.choices)
        out = [len(s.output) for s in self.sequences] if self.forked else begun
        return sum(max(0, self.leg.sampling.max_tokens - tokens) for tokens in out)

    @property
    def context_tokens(self) -> int:
        """Tokens that a decode leg's KV covers: all but the last one of each choice."""
        return len(self.leg.prompt) + len(self.leg.prior)

    @property
    def wants_scores(self) -> bool:
        """Until they are sent, with the first tokens: what is preempted later does without."""
        is_asked = self.leg.sampling.prompt_logprobs is not None and not self.leg.prior
        return is_asked and not self.forked

    def state(self, now: float) -> RequestState:
        longest = max(self.sequences, key=lambda s: s.length, default=None)
        out = len(longest.output) if longest else len(self.leg.prior)
        return RequestState(
            leg=self.leg.id,
            phase="expected" if self.phase is Phase.FETCHING else str(self.phase),
            context_tokens=longest.length if longest else self.context_tokens,
            tokens_left=self.tokens_left,
            tokens_out=out,
            seats=0 if self.phase is Phase.OFFERED else self.seats,
            age_ms=(now - self.moments.issued) * 1000,
            slo=self.leg.slo,
        )


def may_continue(leg: Leg) -> bool:
    """Whether a prefill leg leaves something to decode elsewhere."""
    return leg.phases is Phases.PREFILL and leg.sampling.max_tokens > len(leg.prior) + 1
