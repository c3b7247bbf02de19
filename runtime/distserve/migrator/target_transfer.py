"""The target's half of a transfer: what the engine expects. `target` carries its answers out::

    EXPECTED -- fetch and link --> PULLING -- all copied, committed --> DONE -- ok --> over, fetched
       '------- abort, timeout, peer lost, refused -------'--> ENDING --> over, failed
                                                         (copies in motion)

Pure, as `transfer` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from distserve.migrator import peer_messages as peer
from distserve.migrator.pieces import intersect, subtract
from distserve.migrator.transfer import ToEngine
from distserve.wire import messages
from distserve.wire.pool import BlockSpan, TokenRange


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


TargetAction = ToEngine | ToSource | StartRead | CancelReads


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
