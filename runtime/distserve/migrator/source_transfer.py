"""The source's half of a transfer: an offer and its lease. `source` carries its answers out::

    OFFERED <-- pull / the pull's end --> PULLING -- done in time --> over, fetched
       '------- abort, lease over, engine gone -------'--> ENDING --> over, not fetched
                                                (bytes in motion, reader's ack)

Pure, as `transfer` says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from distserve.migrator import peer_messages as peer
from distserve.migrator.transfer import ToEngine
from distserve.wire import messages
from distserve.wire.pool import BlockSpan, TokenRange

ACK_SECONDS = 1.0
"""How long an ending source waits for its reader's ABORTED. The reader's bytes are lost in any
case, since only LEASE_END(ok) makes them count; this keeps the source's blocks quiet as well."""


@dataclass(frozen=True, slots=True)
class ToReader:
    reader: int
    message: peer.SourceMessage


@dataclass(frozen=True, slots=True)
class CutReader:
    """Break the reader's data connection if it stands still, with bytes of an ending transfer in
    motion or waiting. While it moves, their turn comes."""

    reader: int


SourceAction = ToEngine | ToReader | CutReader


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
