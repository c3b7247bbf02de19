"""The legs on this instance: how each begins, is fetched or handed over, and how it ends.

Every leg ends in exactly one of End, LegError and Declined, whatever happens to its transfer; and
every transfer is let go of, whatever happens to its leg.
"""

import logging
from collections.abc import Collection

from distserve.engine.lifecycle import Moments
from distserve.engine.parts import Parts
from distserve.engine.reports import Reports
from distserve.engine.sequence import Phase, Request
from distserve.engine.timing import StepTimer
from distserve.engine.tombstones import Tombstones
from distserve.engine.transfers import Transfers
from distserve.strategies.conditions import is_idle, is_stall_free
from distserve.wire.dialect import (
    Condition,
    Declined,
    End,
    Handoff,
    Leg,
    LegError,
    LegEvent,
    Source,
)
from distserve.wire.messages import ChoiceProgress, CommitRecord, Failed, Fetched, Released

log = logging.getLogger(__name__)

CLIENT_GONE = 499
TRANSFER_FAILED = 502
TAKES_NOTHING = 503
TIMED_OUT = 504


class Legs:
    def __init__(
        self, parts: Parts, transfers: Transfers, reports: Reports, timer: StepTimer
    ) -> None:
        self._scheduler = parts.scheduler
        self._choices = parts.choices
        self._metrics = parts.metrics
        self._clock = parts.clock
        self._transfers = transfers
        self._reports = reports
        self._timer = timer
        self._active: dict[str, Request] = {}
        self._by_transfer: dict[str, Request] = {}
        self._ended_early = Tombstones()
        self._arrivals = 0
        self.closed: LegError | None = None
        """What every leg is told once the engine has ended."""

    @property
    def active(self) -> Collection[Request]:
        """Legs that somebody waits for."""
        return self._active.values()

    @property
    def offered(self) -> list[Request]:
        """Prefill legs that have ended and whose KV waits for its fetch."""
        return [r for r in self._by_transfer.values() if r.leg.id not in self._active]

    @property
    def next_due(self) -> float | None:
        return min((request.deadline for request in self._active.values()), default=None)

    # ---- begin -----------------------------------------------------------------------------------

    def start(self, leg: Leg, issued: float) -> None:
        if refusal := self._refusal(leg):
            self._reports.emit(leg.id, refusal)
            return
        self._arrivals += 1
        deadline = issued + leg.timeout_ms / 1000
        request = Request(leg, self._arrivals, deadline, Moments(issued))
        request.sequences = [self._choices.start(request, leg.choices[0], leg.prior)]
        self._active[leg.id] = request
        if request.offers or leg.source:
            assert request.transfer is not None
            self._by_transfer[request.transfer] = request
        if leg.source:
            source = leg.source
            self._transfers.expect(source.transfer, source.migrator, leg.timeout_ms, leg.request_id)
        self._scheduler.add(request)

    def _refusal(self, leg: Leg) -> LegEvent | None:
        transfer = leg.source.transfer if leg.source else leg.transfer
        if self.closed is not None:
            return self.closed
        if leg.id in self._ended_early or (transfer or "") in self._ended_early:
            return LegError("it was aborted before it began", False, CLIENT_GONE)
        if self._reports.draining:
            return LegError("the instance is draining: choose another one", True, TAKES_NOTHING)
        if leg.id in self._active or (transfer is not None and transfer in self._transfers):
            return LegError("this leg or transfer is here already", False, 409)
        if transfer is not None and self._transfers.address is None:
            reason = "the instance's migrator is not there: choose another"
            return LegError(reason, True, TAKES_NOTHING)
        if leg.only_if is not None and not self._holds(leg.only_if, leg):
            return Declined(self._reports.state([*self.active, *self.offered]))
        return None

    def _holds(self, condition: Condition, leg: Leg) -> bool:
        scheduler = self._scheduler
        if condition is Condition.IDLE:
            return is_idle(scheduler.waiting_count, scheduler.running_count)
        tokens = len(leg.prompt) + len(leg.prior)
        prefill_ms = 0.0 if leg.source else self._timer.predict_ms(tokens, 0)
        return is_stall_free(prefill_ms, (s.request.leg.slo.tpot_ms for s in scheduler.running))

    def drain(self) -> None:
        """Take nothing new. The legs that are here may still begin their transfers."""
        self._reports.draining = True
        self._drain_transfers()

    def _drain_transfers(self) -> None:
        if self._reports.draining and not self._active:
            self._transfers.drain()

    # ---- end -------------------------------------------------------------------------------------

    def end(self, request: Request) -> None:
        """Every choice is finished, or handed over. A hand-over is told before the end."""
        if request.phase is Phase.OFFERED and not request.is_announced:
            return
        now = self._clock()
        if request.moments.decoding_begin is not None:
            request.moments.decoding_end = now
        self._metrics.leg_ended(request.moments)
        self._close(
            request,
            End(
                request.moments.durations(),
                cached_tokens=request.cached_tokens,
                transport=request.transport,
                transfer_bytes=request.transfer_bytes,
                preemptions=request.preemptions,
            ),
        )

    def fail(self, request: Request, error: LegError) -> None:
        self._scheduler.remove(request)
        if request.transfer is not None:
            self._by_transfer.pop(request.transfer, None)
            self._transfers.abort(request.transfer)
        self._metrics.finished("abort" if error.status == CLIENT_GONE else "error")
        self._close(request, error)

    def stop(self, leg: str) -> None:
        """The client is gone. What is not here yet is refused when it comes."""
        if request := self._active.get(leg):
            self.fail(request, LegError("aborted", False, CLIENT_GONE))
            return
        self._ended_early.add(leg)
        for request in self.offered:
            if request.leg.id == leg and request.transfer is not None:
                self._transfers.abort(request.transfer)

    def drop_transfer(self, transfer: str) -> None:
        request = self._by_transfer.get(transfer)
        if request is not None and request.leg.id in self._active:
            self.fail(request, LegError("its transfer was released", False, CLIENT_GONE))
        elif transfer in self._transfers:
            self._transfers.abort(transfer)
        else:
            self._ended_early.add(transfer)

    def tick(self, now: float) -> None:
        for request in [r for r in self._active.values() if r.deadline <= now]:
            self.fail(request, LegError("the request's time is over", False, TIMED_OUT))
        for transfer in self._transfers.reclaim(now):
            self._by_transfer.pop(transfer, None)
            self._reports.changed()

    def _close(self, request: Request, event: LegEvent) -> None:
        self._active.pop(request.leg.id, None)
        self._reports.changed()
        self._reports.emit(request.leg.id, event)
        self._drain_transfers()

    # ---- transfers -------------------------------------------------------------------------------

    def offered_to_peers(self, transfer: str) -> None:
        request = self._by_transfer.get(transfer)
        if request is None or self._transfers.address is None:
            return
        request.is_announced = True
        source = Source(transfer, self._transfers.address)
        self._reports.emit(request.leg.id, Handoff(source))
        if request.phase is Phase.OFFERED:
            self.end(request)

    def fetched(self, message: Fetched) -> None:
        """The KV is here. Decoding starts, unless nobody waits for it any more."""
        request = self._by_transfer.pop(message.transfer, None)
        if request is not None and (problem := _mismatch(request.leg, message.record)):
            self._transfers.over(message.transfer)
            self.fail(request, LegError(problem, retryable=True))
        elif request is not None:
            request.moments.migration_end = self._clock()
            request.transport = message.timings.transport
            request.transfer_bytes = message.timings.bytes
            hashes = request.sequences[0].hashes
            request.sequences = [
                self._choices.start(request, progress.choice, progress.tokens)
                for progress in message.record.choices
                if not progress.finished
            ]
            for sequence in request.sequences:
                sequence.hashes = list(hashes)
            self._scheduler.start_fetched(request)
            if not request.sequences:
                self.end(request)
        self._transfers.over(message.transfer)

    def transfer_failed(self, message: Failed) -> None:
        self._transfers.over(message.transfer)
        if request := self._by_transfer.pop(message.transfer, None):
            reason = f"KV migration failed: {message.reason}"
            self.fail(request, LegError(reason, message.retryable, TRANSFER_FAILED))

    def released(self, message: Released) -> None:
        self._transfers.over(message.transfer)
        request = self._by_transfer.pop(message.transfer, None)
        if request is not None and request.leg.id in self._active and not message.fetched:
            reason = "the offered KV was let go of before it was fetched: its lease ran out"
            self.fail(request, LegError(reason, True, TRANSFER_FAILED))

    def migrator_gone(self) -> None:
        """Fetches fail by it, and so do prefills that could not be handed over any more. What was
        offered waits for its lease. No transfer is said to have failed: their peers are well."""
        gone = LegError("the instance's migrator is gone", True, TAKES_NOTHING)
        for transfer in self._transfers.migrator_gone(self._clock()):
            if request := self._by_transfer.pop(transfer, None):
                self.fail(request, gone)
        for request in [r for r in self._active.values() if r.offers]:
            self.fail(request, gone)


def _mismatch(leg: Leg, record: CommitRecord) -> str:
    """KV of other tokens must never be decoded from (empty: it is this leg's)."""

    def continues(progress: ChoiceProgress) -> bool:
        return progress.tokens[:-1] == leg.prior

    if record.prompt != leg.prompt or not all(map(continues, record.choices)):
        return "the migrated KV is not of this request's tokens"
    if [progress.choice for progress in record.choices] != leg.choices:
        return "the migrated KV is not of this request's choices"
    return ""
