"""One instance's engine: takes commands, and steps. Owned by one thread (`loop.py`), or by a test.

    command -> handle() -> lines of the scheduler, ledger of transfers
    step()  =  schedule, run, postprocess

Whatever others must hear is collected as an `Output` and handed to `deliver`: before the model
runs, since transfers can proceed meanwhile, and after each step.
"""

import logging

from distserve.engine.batch import SpanResult
from distserve.engine.choices import Grown, progress_of
from distserve.engine.commands import (
    Command,
    DropTransfer,
    FromMigrator,
    MigratorDown,
    MigratorUp,
    Shutdown,
    StartDrain,
    StartLeg,
    StopLeg,
)
from distserve.engine.legs import TAKES_NOTHING, Legs
from distserve.engine.outbox import Deliver
from distserve.engine.parts import Parts
from distserve.engine.reports import Reports
from distserve.engine.scheduler import Entry, Step
from distserve.engine.sequence import Phase, Request
from distserve.engine.sequence import Sequence as Choice
from distserve.engine.spans import spans_of
from distserve.engine.timing import StepTimer
from distserve.engine.transfers import Transfers
from distserve.wire.dialect import Finish, LegError, Phases, PromptScores
from distserve.wire.messages import (
    CommitRecord,
    Drained,
    Failed,
    Fetched,
    MigratorMessage,
    Offered,
    Released,
    Welcome,
)

log = logging.getLogger(__name__)

LONG_STEP_SECONDS = 30.0
"""Every request of the instance waits for a step's end."""


class Engine:
    def __init__(self, parts: Parts, deliver: Deliver) -> None:
        self._runner = parts.runner
        self._copy_blocks = parts.copy_blocks
        self._blocks = parts.blocks
        self._scheduler = parts.scheduler
        self._choices = parts.choices
        self._metrics = parts.metrics
        self._clock = parts.clock
        self._timer = StepTimer(parts.warm_up_token_ms)
        self._said_long = False
        self._reports = Reports(parts, deliver)
        self._transfers = Transfers(parts.blocks, self._reports.send, parts.lease_seconds)
        self._legs = Legs(parts, self._transfers, self._reports, self._timer)
        self.expected_ms = 0.0
        """Of the step that runs, or ran last."""
        self.is_over = False

    # ---- commands --------------------------------------------------------------------------------

    def handle(self, command: Command) -> None:
        match command:
            case StartLeg(leg, issued):
                self._legs.start(leg, issued)
            case StopLeg(leg):
                self._legs.stop(leg)
            case DropTransfer(transfer):
                self._legs.drop_transfer(transfer)
            case FromMigrator(message):
                self._hear(message)
            case MigratorUp(address):
                self._transfers.address = address
            case MigratorDown():
                self._legs.migrator_gone()
            case StartDrain():
                self._legs.drain()
            case Shutdown():
                self.fail_all("the instance shuts down", TAKES_NOTHING)
                self.is_over = True
        self._reports.changed()

    def next_due(self) -> float | None:
        """When `tick` must be called at the latest, on the engine's clock."""
        dues = (self._legs.next_due, self._transfers.next_due, self._reports.next_due)
        return min((due for due in dues if due is not None), default=None)

    def tick(self) -> None:
        """Deadlines. Cheap when none has passed."""
        self._legs.tick(self._clock())

    def flush(self, *, may_step: bool = False) -> None:
        """Deliver what has come together. Where another step may follow, the state waits for its
        beginning: it then has the legs that came meanwhile, and how long that step takes."""
        if may_step:
            self._reports.deliver()
        else:
            self._reports.flush(self._view(), step_rest_ms=0.0)

    def fail_all(self, message: str, status: int) -> None:
        """Nobody is left waiting for an answer that will not come, nor does from now on. What is
        here is told `status`: any of it may be what broke the engine, and a leg that was refused
        is tried on more instances than one that failed."""
        self._legs.closed = LegError(message, True, TAKES_NOTHING)
        for request in list(self._legs.active):
            self._legs.fail(request, LegError(message, True, status))

    def check_integrity(self) -> None:
        """Raises IntegrityError when a block is lost or held by nobody that lives."""
        live = {s.owner for r in self._legs.active for s in r.sequences}
        self._blocks.check_integrity(live | set(self._transfers.owners))

    def _view(self) -> list[Request]:
        return [*self._legs.active, *self._legs.offered]

    # ---- a step ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Schedule, run, postprocess. False when nothing can run until a command comes."""
        step = self._scheduler.schedule()
        self._begin(step)
        entries = step.entries
        if not entries:
            return False
        self.expected_ms = self._timer.predict_ms(step.prefill_tokens, len(step.decodes))
        self._reports.flush(self._view(), self.expected_ms)
        begun = self._clock()
        try:
            self._copy_blocks(step.copies)
            results = self._runner.run(spans_of(step, self._blocks))
        except Exception as error:
            self._fail_step(entries, error)
            return True
        took_ms = (self._clock() - begun) * 1000
        self._timer.observe(step.prefill_tokens, len(step.decodes), took_ms)
        self._say_if_long(step, took_ms / 1000)
        self._metrics.step(step.tokens, sum(len(r.draws) for r in results), step.preempted)
        for entry, result in zip(entries, results, strict=True):
            self._postprocess(entry, result)
        self._reports.changed()
        return True

    def _say_if_long(self, step: Step, seconds: float) -> None:
        if seconds > LONG_STEP_SECONDS and step.prefill_tokens and not self._said_long:
            self._said_long = True
            log.warning(
                "a step of %d tokens takes %.0f s, and all requests here wait for it: "
                "lower maxNumBatchedTokens",
                step.tokens,
                seconds,
            )

    def _begin(self, step: Step) -> None:
        """What admission means for transfers, metrics and lifetimes."""
        now = self._clock()
        for request in step.pulls:
            request.moments.migration_begin = now
            assert request.transfer is not None
            self._transfers.fetch(request.transfer, request.cached_tokens, request.context_tokens)
            self._metrics.looked_up(request.context_tokens, request.cached_tokens)
        for sequence in step.admitted:
            request = sequence.request
            if request.moments.context_begin is None and not request.forked:
                request.moments.context_begin = now
                request.cached_tokens = sequence.computed
                self._metrics.looked_up(sequence.length, sequence.computed)
                self._metrics.prefilled(sequence.length)
            if request.offers:
                self._offer(sequence)
        for entry in step.decodes:
            moments = entry.sequence.request.moments
            if moments.decoding_begin is None:
                moments.decoding_begin = now
        if step.pulls or step.preempted:
            self._reports.changed()

    def _offer(self, sequence: Choice) -> None:
        request, table = sequence.request, self._blocks.table(sequence.owner)
        transfer, request_id = request.transfer, request.leg.request_id
        assert transfer is not None
        timeout_ms = (request.deadline - self._clock()) * 1000
        self._transfers.offer(transfer, sequence.length, table, timeout_ms, request_id)
        self._transfers.chunk_ready(transfer, 0, sequence.computed)

    def _fail_step(self, entries: list[Entry], error: Exception) -> None:
        log.exception("a step failed; its legs are told", exc_info=error)
        reason = f"the step failed: {type(error).__name__}: {error}"
        for request in {entry.sequence.request for entry in entries}:
            self._legs.fail(request, LegError(reason, retryable=True))

    def _postprocess(self, entry: Entry, result: SpanResult) -> None:
        sequence, request = entry.sequence, entry.sequence.request
        is_last, begun = entry.draws, sequence.computed
        self._scheduler.advance(entry)
        request.scores += result.prompt_scores
        if request.offers and request.transfer is not None:
            self._transfers.chunk_ready(request.transfer, begun, sequence.computed)
        if not is_last:
            return
        if not request.forked:
            self._first_tokens(sequence, result)
            return
        if sequence in self._scheduler.prefilling:
            self._scheduler.resume(sequence)
        self._tell(sequence, self._choices.grow(sequence, result.draws[0]))
        self._end_if_done(request)

    def _first_tokens(self, sequence: Choice, result: SpanResult) -> None:
        """The context is computed and every choice has its next token."""
        request, leg = sequence.request, sequence.request.leg
        request.moments.context_end = self._clock()
        if request.wants_scores:
            self._reports.emit(leg.id, PromptScores([None, *request.scores]))
        others = [self._choices.start(request, c, sequence.output) for c in leg.choices[1:]]
        request.sequences = [sequence, *others]
        if leg.phases is not Phases.PREFILL:
            self._scheduler.fork(sequence, others)
        grown = [
            self._choices.grow(choice, sampled)
            for choice, sampled in zip(request.sequences, result.draws, strict=False)
        ]
        record = CommitRecord(
            list(leg.prompt),
            [progress_of(s, g) for s, g in zip(request.sequences, grown, strict=False)],
        )
        for choice, one in zip(list(request.sequences), grown, strict=False):
            self._tell(choice, one)
        if not grown:  # max_tokens is 0: only the prompt's scores were wanted
            for choice in list(request.sequences):
                self._finish(choice, Finish(choice.choice, "length"))
        if leg.phases is Phases.PREFILL:
            self._hand_over(request, record)
        self._end_if_done(request)

    def _hand_over(self, request: Request, record: CommitRecord) -> None:
        """The prefill leg's work is done: its KV waits to be fetched, if it is wanted."""
        is_wanted = bool(request.sequences)
        for sequence in list(request.sequences):
            self._scheduler.finish(sequence)
        if not request.offers or request.transfer is None:
            return
        if is_wanted:
            request.phase = Phase.OFFERED
            self._metrics.finished("handoff")
            self._transfers.commit(request.transfer, record)
        else:
            self._transfers.abort(request.transfer)

    def _tell(self, sequence: Choice, grown: Grown) -> None:
        self._reports.emit(sequence.request.leg.id, grown.token)
        if grown.finish is not None:
            self._finish(sequence, grown.finish)

    def _finish(self, sequence: Choice, finish: Finish) -> None:
        self._reports.emit(sequence.request.leg.id, finish)
        self._metrics.finished(finish.reason)
        self._scheduler.finish(sequence)

    def _end_if_done(self, request: Request) -> None:
        if not request.sequences:
            self._legs.end(request)

    # ---- what the migrator says ------------------------------------------------------------------

    def _hear(self, message: MigratorMessage) -> None:
        match message:
            case Welcome():
                self._transfers.address = message.address
            case Offered(transfer):
                self._legs.offered_to_peers(transfer)
            case Fetched():
                self._legs.fetched(message)
            case Failed():
                self._legs.transfer_failed(message)
            case Released():
                self._legs.released(message)
            case Drained():
                log.info("the migrator is drained")
