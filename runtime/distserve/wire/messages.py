"""Messages of engines and migrators (docs/protocol/migration.md).

Every message names its transfer, so both sides can ignore what belongs to a finished one. Nothing
here is a clock: durations travel, deadlines are made where they are kept.
"""

from msgspec import Struct

from distserve.wire.pool import BlockSpan, PoolLayout, TokenRange

PROTOCOL = 1
MAX_FRAME_BYTES = 8 << 20
"""Bound of one control frame, checked before anything is allocated. A commit of a million
prompt tokens is 5 MB. KV bytes travel outside of frames."""


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log-probability of a token and of the most likely ones at its place, best first."""

    logprob: float
    top: list[tuple[int, float]] = []
    rank: int | None = None
    """Tokens of the vocabulary that are as likely or likelier, itself among them: 1 is the most
    likely. None from an engine of an earlier release."""

    def cut(self, top: int) -> "TokenLogprobs":
        """With so many of the most likely ones."""
        return TokenLogprobs(self.logprob, self.top[:top], self.rank)


class ChoiceProgress(Struct, frozen=True):
    """What one choice of a request has produced so far."""

    choice: int
    tokens: list[int]
    logprobs: list[TokenLogprobs] = []
    finished: bool = False
    """Ended on the prefill side (an end token came first): nothing to decode."""


class CommitRecord(Struct, frozen=True):
    """What the tokens are whose KV is transferred. KV covers the prompt and all but the last
    token of each choice."""

    prompt: list[int]
    choices: list[ChoiceProgress]


class Timings(Struct, frozen=True):
    """How a fetch went, as measured by the fetching migrator."""

    transport: str
    bytes: int
    wait_ms: float
    """From FETCH to the last chunk being ready at the source."""
    copy_ms: float
    """Bytes in motion."""


# ---- engine -> migrator (Unix socket) -----------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello", kw_only=True):
    """First frame of an engine's rank; carries one file descriptor per pool (SCM_RIGHTS)."""

    instance: str
    epoch: int
    fingerprint: str
    rank: int = 0
    tensor: int = 1
    pipeline: int = 1
    pools: list[PoolLayout]


class Offer(Struct, frozen=True, tag="offer", kw_only=True):
    """These blocks will hold the request's KV; nobody else writes them until RELEASED."""

    transfer: str
    spans: list[BlockSpan]
    timeout_ms: float
    """What is left of the request's time: the lease begins with COMMIT, or when this is over."""
    lease_ms: float
    request_id: str = ""
    """Of the client's request: joins the migrator's logs to the others'."""


class ChunkReady(Struct, frozen=True, tag="chunk_ready"):
    """KV of these tokens is written."""

    transfer: str
    tokens: TokenRange


class Commit(Struct, frozen=True, tag="commit"):
    """The prefill is complete: no chunk follows."""

    transfer: str
    record: CommitRecord


class Expect(Struct, frozen=True, tag="expect", kw_only=True):
    """The request reached this decode instance: keep the lease at `peer` alive from now on."""

    transfer: str
    peer: str
    """host:port of the migrator that holds the offer."""
    timeout_ms: float
    request_id: str = ""


class Fetch(Struct, frozen=True, tag="fetch", kw_only=True):
    """Blocks exist here now: fill them with these token ranges. No spans: all is cached here,
    only the commit is wanted."""

    transfer: str
    spans: list[BlockSpan]


class Abort(Struct, frozen=True, tag="abort"):
    """Let go. Answered by RELEASED for an offer, by FAILED for an expected transfer."""

    transfer: str


class Drain(Struct, frozen=True, tag="drain"):
    """No new transfers; DRAINED when the last one is gone."""


EngineMessage = Hello | Offer | ChunkReady | Commit | Expect | Fetch | Abort | Drain


# ---- migrator -> engine -------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome", kw_only=True):
    """Answer to HELLO."""

    address: str
    """host:port where other migrators reach this one; goes into the hand-off."""
    epoch: int


class Offered(Struct, frozen=True, tag="offered"):
    """The offer is known here: from now on a peer may be told of it."""

    transfer: str


class Fetched(Struct, frozen=True, tag="fetched", kw_only=True):
    """The blocks hold the KV, and the source confirmed that its lease was whole until the end."""

    transfer: str
    record: CommitRecord
    timings: Timings


class Failed(Struct, frozen=True, tag="failed", kw_only=True):
    """The transfer is over and no byte will be written into its blocks any more."""

    transfer: str
    reason: str
    retryable: bool


class Released(Struct, frozen=True, tag="released", kw_only=True):
    """Nobody reads the offered blocks any more: the references are the engine's again."""

    transfer: str
    fetched: bool
    """A peer took the KV over; otherwise the lease ran out or the transfer was aborted."""


class Drained(Struct, frozen=True, tag="drained"):
    pass


MigratorMessage = Welcome | Offered | Fetched | Failed | Released | Drained
