"""The two halves of a transfer as state machines. Pure: events and the time go in, actions come
out; `source` and `target` (the rooms that hold sockets and threads) carry them out.

Source half, owner of the lease::

    OFFERED <-- pull / the pull's end --> PULLING -- done in time --> over, fetched
       '------- abort, lease over, engine gone -------'--> ENDING --> over, not fetched
                                                (bytes in motion, reader's ack)

Target half::

    EXPECTED -- fetch and link --> PULLING -- all copied, committed --> DONE -- ok --> over, fetched
       '------- abort, timeout, peer lost, refused -------'--> ENDING --> over, failed
                                                         (copies in motion)

Events that do not fit the state (duplicates, latecomers, other generations) change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from distserve.migrator import peer_messages as peer
from distserve.migrator.pieces import intersect, subtract
from distserve.wire import messages
from distserve.wire.pool import BlockSpan, TokenRange

ACK_SECONDS = 1.0
"""How long an ending source waits for its reader's ABORTED. The reader's bytes are lost in any
case, since only LEASE_END(ok) makes them count; this keeps the source's blocks quiet as well."""


@dataclass(frozen=True, slots=True)
class ToEngine:
    message: messages.MigratorMessage


@dataclass(frozen=True, slots=True)
class ToReader:
    reader: int
    message: peer.SourceMessage


@dataclass(frozen=True, slots=True)
class ToSource:
    message: peer.ReaderMessage


@dataclass(frozen=True, slots=True)
class StartRead:
    """Copy this token range; report `read_ended`."""

    tokens: TokenRange


@dataclass(frozen=True, slots=True)
class CancelReads:
    """Stop the bytes in motion, or see them come; their `read_ended` is still reported."""


@dataclass(frozen=True, slots=True)
class CutReader:
    """Break the reader's data connection if it stands still, with bytes of an ending transfer in
    motion or waiting. While it moves, their turn comes."""

    reader: int


SourceAction = ToEngine | ToReader | CutReader
TargetAction = ToEngine | ToSource | StartRead | CancelReads


@dataclass(slots=True)
class SourceTransfer:
    """An offer. `reader` numbers a connection, so a number never returns.

    The lease runs from the commit on. Before, its engine computes, maybe in one step that is longer
    than the lease, and until that step's end no reader hears of the offer; that the engine is there
    its own connection says. Then `deadline` is for an engine that never commits.
    """

    transfer: str
    epoch: int
    spans: list[BlockSpan]
    lease_seconds: float
    deadline: float
    ready: list[TokenRange] = field(default_factory=list)
    record: messages.CommitRecord | None = None
    pull: tuple[int, int] | None = None
    """(reader, generation)"""
    reads: list[int] = field(default_factory=list)
    """Readers to which the source is sending bytes right now; one entry per read."""
    ending: bool = False
    expired: bool = False
    awaited: tuple[int, int] | None = None
    """Whose ABORTED an ending transfer still waits for, until `deadline`."""
    over: bool = False

    def chunk_ready(self, tokens: TokenRange) -> list[SourceAction]:
        if self.ending or self.over:
            return []
        self.ready.append(tokens)
        return self._to_pull(lambda t, g: peer.Ready(transfer=t, generation=g, tokens=[tokens]))

    def commit(self, record: messages.CommitRecord, now: float) -> list[SourceAction]:
        actions = self.tick(now)
        if self.ending or self.over or self.record is not None:
            return actions
        self.record = record
        self._hold(now)
        return self._to_pull(lambda t, g: peer.Committed(transfer=t, generation=g, record=record))

    def pulled(self, reader: int, generation: int, epoch: int, now: float) -> list[SourceAction]:
        """A reader wants it. The newest pull holds; an older one learns that it ended."""
        actions = self.tick(now)
        if self.pull == (reader, generation) and not self.ending:
            return actions
        if self.ending or self.over or epoch != self.epoch:
            return [*actions, ToReader(reader, unknown(self.transfer, generation))]
        actions += self._to_pull(
            lambda t, g: peer.PullFailed(t, g, "gone: another reader pulls it")
        )
        self.pull = (reader, generation)
        self._hold(now)
        answer = peer.Pulling(transfer=self.transfer, generation=generation, spans=self.spans)
        actions.append(ToReader(reader, answer))
        if self.ready:
            tokens = list(self.ready)
            actions += self._to_pull(
                lambda t, g: peer.Ready(transfer=t, generation=g, tokens=tokens)
            )
        if (record := self.record) is not None:
            actions += self._to_pull(
                lambda t, g: peer.Committed(transfer=t, generation=g, record=record)
            )
        return actions

    def renew(self, now: float) -> list[SourceAction]:
        """A heartbeat lists it. A lease that has run out cannot be renewed."""
        actions = self.tick(now)
        if not self.ending and not self.over:
            self._hold(now)
        return actions

    def may_read(self, reader: int, generation: int, now: float) -> bool:
        held = not self.ending and not self.over and now < self.deadline
        return held and self.pull == (reader, generation)

    def read_started(self, reader: int) -> None:
        self.reads.append(reader)

    def read_ended(self, reader: int) -> list[SourceAction]:
        self.reads.remove(reader)
        return self._settle()

    def done(self, reader: int, generation: int, now: float) -> list[SourceAction]:
        actions = self.tick(now)
        ok = self.may_read(reader, generation, now) and self.record is not None
        end = peer.LeaseEnd(transfer=self.transfer, generation=generation, ok=ok)
        actions.append(ToReader(reader, end))
        if ok:
            self.pull = None
            self.over = True
            actions.append(ToEngine(messages.Released(transfer=self.transfer, fetched=True)))
        return actions

    def abort(self, now: float, reason: str = "aborted") -> list[SourceAction]:
        """The engine wants its blocks back, or the engine is gone."""
        if self.ending or self.over:
            return []
        actions = self._to_pull(lambda t, g: peer.PullAbort(t, g, reason))
        self.ending, self.awaited, self.pull = True, self.pull, None
        self.deadline = now + ACK_SECONDS
        return actions + self._settle()

    def pull_aborted(self, reader: int, generation: int) -> list[SourceAction]:
        """The reader gave up. The offer stays for another one, until its lease runs out."""
        if self.pull == (reader, generation):
            self.pull = None
        return [ToReader(reader, peer.PullAborted(self.transfer, generation))]

    def acknowledged(self, reader: int, generation: int) -> list[SourceAction]:
        """ABORTED came."""
        if self.awaited == (reader, generation):
            self.awaited = None
        return self._settle()

    def reader_gone(self, reader: int) -> list[SourceAction]:
        if self.pull and self.pull[0] == reader:
            self.pull = None
        if self.awaited and self.awaited[0] == reader:
            self.awaited = None
        return self._settle()

    def tick(self, now: float) -> list[SourceAction]:
        if self.over or now < self.deadline:
            return []
        if self.ending:
            self.awaited = None
            self.deadline = now + ACK_SECONDS
            return [CutReader(reader) for reader in sorted(set(self.reads))] + self._settle()
        actions = self._to_pull(lambda t, g: peer.PullFailed(t, g, "expired"))
        self.ending, self.expired, self.pull = True, True, None
        self.deadline = now + ACK_SECONDS
        return actions + self._settle()

    def _hold(self, now: float) -> None:
        """The lease starts anew, if it runs."""
        if self.record is not None:
            self.deadline = now + self.lease_seconds

    def _to_pull(self, make: Callable[[str, int], peer.SourceMessage]) -> list[SourceAction]:
        if self.pull is None:
            return []
        reader, generation = self.pull
        return [ToReader(reader, make(self.transfer, generation))]

    def _settle(self) -> list[SourceAction]:
        if self.over or not self.ending or self.reads or self.awaited is not None:
            return []
        self.over = True
        return [ToEngine(messages.Released(transfer=self.transfer, fetched=False))]


def unknown(transfer: str, generation: int) -> peer.PullFailed:
    """What a pull of something that is not here is told."""
    return peer.PullFailed(transfer, generation, "gone")


class Target(Enum):
    EXPECTED = auto()
    PULLING = auto()
    DONE = auto()
    ENDING = auto()
    OVER = auto()


@dataclass(slots=True)
class TargetTransfer:
    """What this instance expects from a peer. `generation` is unique in this process."""

    transfer: str
    epoch: int
    peer: str
    generation: int
    deadline: float
    state: Target = Target.EXPECTED
    spans: list[BlockSpan] | None = None
    source_spans: list[BlockSpan] | None = None
    missing: list[TokenRange] = field(default_factory=list)
    """Wanted and not yet being read."""
    outstanding: int = 0
    record: messages.CommitRecord | None = None
    failure: messages.Failed | None = None
    acknowledge: bool = False
    """The source asked for ABORTED."""
    transport: str = ""
    bytes: int = 0
    fetched_at: float = 0.0
    ready_at: float = 0.0
    motion_since: float = 0.0
    motion_seconds: float = 0.0

    def fetch(
        self, spans: Sequence[BlockSpan], now: float, source_epoch: int | None
    ) -> list[TargetAction]:
        """Blocks exist. `source_epoch`: None while there is no link to the source."""
        if self.state is not Target.EXPECTED or self.spans is not None:
            return []
        self.spans = list(spans)
        self.missing = [span.tokens for span in spans]
        self.fetched_at = self.ready_at = now
        return [] if source_epoch is None else self.link_up(source_epoch)

    def link_up(self, source_epoch: int) -> list[TargetAction]:
        if self.state is not Target.EXPECTED or self.spans is None:
            return []
        self.state = Target.PULLING
        pull = peer.Pull(transfer=self.transfer, generation=self.generation, epoch=source_epoch)
        return [ToSource(pull)]

    def link_down(self, reason: str, now: float) -> list[TargetAction]:
        """The connection is lost. What only waits survives it: the link is made anew."""
        return [] if self.state is Target.EXPECTED else self.fail(reason, now, tell=False)

    def pulling(self, generation: int, spans: list[BlockSpan]) -> list[TargetAction]:
        if self._current(generation):
            self.source_spans = spans
        return []

    def ready(
        self, generation: int, tokens: Sequence[TokenRange], now: float
    ) -> list[TargetAction]:
        if not self._current(generation) or self.source_spans is None:
            return []
        found: list[TokenRange] = []
        for each in tokens:  # ranges of one message may overlap, too
            found += intersect(self.missing, each)
            self.missing = subtract(self.missing, [each])
        if found:
            self.ready_at = now
            self._motion(now, len(found))
        return [StartRead(part) for part in found]

    def committed(
        self, generation: int, record: messages.CommitRecord, now: float
    ) -> list[TargetAction]:
        if not self._current(generation) or self.record is not None:
            return []
        self.record = record
        if self.missing:
            return self.fail("incomplete: the source committed without all tokens", now)
        return self._finish()

    def read_ended(self, copied: int, error: str | None, now: float) -> list[TargetAction]:
        self._motion(now, -1)
        self.bytes += copied
        if error is not None and self.state is Target.PULLING:
            return self.fail(error, now)
        return self._finish() + self._settle()

    def lease_ended(self, generation: int, ok: bool, now: float) -> list[TargetAction]:
        if self.state is not Target.DONE or generation != self.generation or self.record is None:
            return []
        if not ok:
            return self.fail("expired", now, tell=False)
        self.state = Target.OVER
        timings = messages.Timings(
            transport=self.transport,
            bytes=self.bytes,
            wait_ms=(self.ready_at - self.fetched_at) * 1e3,
            copy_ms=self.motion_seconds * 1e3,
        )
        fetched = messages.Fetched(transfer=self.transfer, record=self.record, timings=timings)
        return [ToEngine(fetched)]

    def source_failed(self, generation: int, reason: str, now: float) -> list[TargetAction]:
        if generation != self.generation:
            return []
        return self.fail(reason, now, tell=False)

    def source_lied(self, generation: int, reason: str, now: float) -> list[TargetAction]:
        """What it says of this pull cannot be."""
        return self.fail(reason, now) if self._current(generation) else []

    def source_aborted(self, generation: int, reason: str, now: float) -> list[TargetAction]:
        """The source asks for ABORTED: given once no copy is in motion."""
        if generation != self.generation:
            return [ToSource(peer.PullAborted(self.transfer, generation))]
        self.acknowledge = True
        return self.fail(reason, now, tell=False)

    def abort(self, now: float) -> list[TargetAction]:
        return self.fail("aborted", now, retryable=False)

    def tick(self, now: float) -> list[TargetAction]:
        return self.fail("timeout", now) if now >= self.deadline else []

    def fail(
        self, reason: str, now: float, *, retryable: bool = True, tell: bool = True
    ) -> list[TargetAction]:
        """End it; `tell` the source, which otherwise knows."""
        if self.state in (Target.ENDING, Target.OVER):
            return []
        actions: list[TargetAction] = []
        if tell and self.state in (Target.PULLING, Target.DONE):
            actions.append(ToSource(peer.PullAbort(self.transfer, self.generation, reason)))
        if self.outstanding:
            actions.append(CancelReads())
        self.state = Target.ENDING
        self.failure = messages.Failed(transfer=self.transfer, reason=reason, retryable=retryable)
        return actions + self._settle()

    @property
    def over(self) -> bool:
        return self.state is Target.OVER

    def _current(self, generation: int) -> bool:
        return self.state is Target.PULLING and generation == self.generation

    def _motion(self, now: float, change: int) -> None:
        if not self.outstanding:
            self.motion_since = now
        self.outstanding += change
        if not self.outstanding:
            self.motion_seconds += now - self.motion_since

    def _finish(self) -> list[TargetAction]:
        if self.state is not Target.PULLING or self.outstanding or self.missing:
            return []
        if self.record is None:
            return []
        self.state = Target.DONE
        return [ToSource(peer.Done(self.transfer, self.generation))]

    def _settle(self) -> list[TargetAction]:
        if self.state is not Target.ENDING or self.outstanding or self.failure is None:
            return []
        self.state = Target.OVER
        actions: list[TargetAction] = [ToEngine(self.failure)]
        if self.acknowledge:
            actions.append(ToSource(peer.PullAborted(self.transfer, self.generation)))
        return actions
