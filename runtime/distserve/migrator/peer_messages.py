"""Messages between migrators (docs/protocol/migration.md). The reader dials, the source listens.

Every message about a pull names transfer and generation: one attempt of one reader. What names
another one belongs to the past and is ignored. KV bytes travel on the transport, not here.
"""

from msgspec import Struct

from distserve.migrator.pieces import Box, RankPool
from distserve.wire.messages import CommitRecord
from distserve.wire.pool import BlockSpan, TokenRange

PEER_PROTOCOL = 1
CONTROL, DATA, SHARE = "control", "data", "share"
"""What a connection is for; named while the key is proved."""
PURPOSES = frozenset({CONTROL, DATA})
SESSION_BYTES = 16
"""Links a data connection to its control connection."""


class InstanceView(Struct, frozen=True, kw_only=True):
    """An instance as its migrator shows it: what must agree, and where its KV is."""

    epoch: int
    fingerprint: str
    tensor: int
    pipeline: int
    pools: list[RankPool]


class PeerHello(Struct, frozen=True, tag="hello", kw_only=True):
    """First message of both sides, and again whenever an engine comes, goes or restarts."""

    protocol: int
    instance: str
    view: InstanceView | None
    """None while the engine is not there."""
    session: bytes = b""
    """From the source: what data connections present after their key."""
    share: str = ""
    """From the source: path of the Unix socket where its memory is handed out."""
    nonces: list[bytes] = []
    """From the source: what the nonce page of each of `view.pools` holds."""
    probe_bytes: int = 4 << 20
    """From the source: most that it sends for one PROBE; a former one does not say it, and answers
    nothing to more."""


class Refused(Struct, frozen=True, tag="refused"):
    """No KV is exchanged with this reader; the connection ends."""

    reason: str


class Heartbeat(Struct, frozen=True, tag="heartbeat", kw_only=True):
    """The reader still wants these transfers: their leases start anew."""

    sequence: int
    epoch: int
    live: list[str]


class HeartbeatAnswer(Struct, frozen=True, tag="heartbeat_answer", kw_only=True):
    """Which of them the source still holds. The next heartbeat is due in `interval_ms`."""

    sequence: int
    epoch: int
    live: list[str]
    interval_ms: float


class Pull(Struct, frozen=True, tag="pull", kw_only=True):
    """Say what is ready and what becomes ready. `epoch`: of the source's engine."""

    transfer: str
    generation: int
    epoch: int


class Pulling(Struct, frozen=True, tag="pulling", kw_only=True):
    """Where the KV is or will be."""

    transfer: str
    generation: int
    spans: list[BlockSpan]


class Ready(Struct, frozen=True, tag="ready", kw_only=True):
    transfer: str
    generation: int
    tokens: list[TokenRange]


class Committed(Struct, frozen=True, tag="committed", kw_only=True):
    """The prefill is complete; nothing becomes ready after this."""

    transfer: str
    generation: int
    record: CommitRecord


class ReadRequest(Struct, frozen=True, tag="read", kw_only=True):
    """Send this part on the data connection (transports on which the source moves the bytes)."""

    transfer: str
    generation: int
    read: int
    box: Box
    tokens: TokenRange


class ProbeRequest(Struct, frozen=True, tag="probe", kw_only=True):
    """Send so many bytes that mean nothing on the data connection."""

    read: int
    bytes: int


class Done(Struct, frozen=True, tag="done"):
    """All bytes are here. Answered by LEASE_END."""

    transfer: str
    generation: int


class LeaseEnd(Struct, frozen=True, tag="lease_end", kw_only=True):
    """RELEASED(ok | expired) of the design: ok says that the lease held without a gap until DONE,
    so the bytes are the request's. Otherwise they are to be thrown away."""

    transfer: str
    generation: int
    ok: bool


class PullAbort(Struct, frozen=True, tag="abort"):
    """Either side: this pull is over. Answered by ABORTED."""

    transfer: str
    generation: int
    reason: str = "aborted"


class PullAborted(Struct, frozen=True, tag="aborted"):
    """The sender moves no byte of that pull any more."""

    transfer: str
    generation: int


class PullFailed(Struct, frozen=True, tag="failed"):
    """The source cannot serve that pull."""

    transfer: str
    generation: int
    reason: str


ReaderMessage = (
    PeerHello | Heartbeat | Pull | ReadRequest | ProbeRequest | Done | PullAbort | PullAborted
)
SourceMessage = (
    PeerHello
    | Refused
    | HeartbeatAnswer
    | Pulling
    | Ready
    | Committed
    | LeaseEnd
    | PullAbort
    | PullAborted
    | PullFailed
)
