"""The definition of the reference's behaviour: every stage step is an event.

One process per stage: it sleeps until a queue fills, prefills what waits before it decodes, takes
as much of its queue as one step may hold, and hands the result to the next stage. Events at one
instant happen in the order in which they were made. Called for single runs that want the event
and worker logs, and by tests as the measure of `chain`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from distserve.planner.compat.rules import (
    BACK_PRESSURE_TOKENS,
    DECODE_STEP_TOKENS,
    Chain,
)
from distserve.planner.errors import OversizedRequest
from distserve.planner.result import RunResult
from distserve.workload import Trace


class RequestEvent(NamedTuple):
    time_ms: float
    event: str
    worker: int | None
    request: int


class WorkerEvent(NamedTuple):
    time_ms: float
    event: str
    tokens: int
    prefill_tokens: list[int]
    decode_contexts: list[int]
    worker: int


@dataclass(eq=False)
class Stage:
    """One worker: two queues, and the step that it is in."""

    worker: int
    chain: Chain
    first: bool
    last: bool
    next: Stage = field(init=False, repr=False)
    prefill_queue: deque[int] = field(default_factory=deque)
    decode_queue: deque[int] = field(default_factory=deque)
    prefilling: list[int] = field(default_factory=list)
    decoding: list[int] = field(default_factory=list)
    asleep: bool = True


class StepSimulation:
    """A prefill and a decode chain, or one chain for both (`decode` left out)."""

    def __init__(self, trace: Trace, prefill: Chain, decode: Chain | None = None) -> None:
        self.trace = trace
        self.prompt, self.output = trace.prompt_tokens, trace.output_tokens
        self.now = 0.0
        self.generated = [-1] * len(trace)  # -1 until the prefill ends, then decode rounds
        self.chunk = [0] * len(trace)
        self.first_token_ms = [0.0] * len(trace)
        self.finish_ms = [0.0] * len(trace)
        self.request_events: list[RequestEvent] = []
        self.worker_events: list[WorkerEvent] = []
        self._agenda: list[tuple[float, int, Stage | int]] = []
        self._made = 0
        self._prefill = self._stages(prefill, first_worker=0)
        self._decode = self._stages(decode, first_worker=prefill.pp) if decode else self._prefill
        for request, time in enumerate(trace.arrival_ms):
            self._at(time, request)

    def run(self) -> RunResult:
        while self._agenda:
            self.step()
        return RunResult(self.trace, self.first_token_ms, self.finish_ms)

    def step(self) -> None:
        """One event: an arrival, a stage that wakes, or a stage whose step ends."""
        self.now, _, what = heappop(self._agenda)
        if isinstance(what, int):
            self._log(what, "init", -1)
            head = self._prefill[0]
            head.prefill_queue.append(what)
            self._wake(head)
            return
        self._end_step(what)
        self._begin_step(what)

    @staticmethod
    def _stages(chain: Chain, first_worker: int) -> list[Stage]:
        stages = [
            Stage(first_worker + rank, chain, first=rank == 0, last=rank == chain.pp - 1)
            for rank in range(chain.pp)
        ]
        for stage, following in zip(stages, stages[1:] + stages[:1], strict=True):
            stage.next = following
        return stages

    def _at(self, time_ms: float, what: Stage | int) -> None:
        heappush(self._agenda, (time_ms, self._made, what))
        self._made += 1

    def _wake(self, stage: Stage) -> None:
        if stage.asleep:
            stage.asleep = False
            self._at(self.now, stage)

    def _context(self, request: int) -> int:
        return self.prompt[request] + max(0, self.generated[request])

    # -- beginning a step

    def _begin_step(self, stage: Stage) -> None:
        if not stage.prefill_queue and not stage.decode_queue:
            stage.asleep = True
        elif stage.prefill_queue and not self._pressed_back(stage):
            self._begin_prefill(stage)
        else:
            self._begin_decode(stage)

    def _pressed_back(self, stage: Stage) -> bool:
        return sum(map(self._context, stage.decode_queue)) > BACK_PRESSURE_TOKENS

    def _begin_prefill(self, stage: Stage) -> None:
        queue = stage.prefill_queue
        batch: list[int] = []
        if stage.first:
            room = stage.chain.prefill_tokens
            while queue and self.prompt[queue[0]] <= room:
                room -= self.prompt[queue[0]]
                batch.append(queue.popleft())
            if not batch:
                raise OversizedRequest(
                    f"a prompt of {self.prompt[queue[0]]} tokens exceeds the "
                    f"{stage.chain.prefill_tokens} tokens of one prefill step; leave it out or "
                    "give the prefill more accelerators"
                )
            for request in batch:
                self.chunk[request] = batch[0]
        else:
            chunk = self.chunk[queue[0]]
            while queue and self.chunk[queue[0]] == chunk:
                batch.append(queue.popleft())
        lengths = [self.prompt[request] for request in batch]
        for request in batch:
            self._log(request, "do_prefill", stage.worker)
        tokens = sum(lengths)
        self._log_worker(stage, "do_prefill", tokens, lengths, [])
        duration = stage.chain.prefill_stage_ms(tokens, sum(n * n for n in lengths))
        if stage.first:
            duration += stage.chain.entry_ms(tokens)
        stage.prefilling = batch
        self._at(self.now + duration, stage)

    def _begin_decode(self, stage: Stage) -> None:
        queue = stage.decode_queue
        batch: list[int] = []
        room = DECODE_STEP_TOKENS
        while queue and self._context(queue[0]) + 1 <= room:
            room -= self._context(queue[0]) + 1
            batch.append(queue.popleft())
        if not batch:
            raise OversizedRequest(
                f"a context of {self._context(queue[0])} tokens exceeds the {DECODE_STEP_TOKENS} "
                "tokens of one decode step; leave such requests out"
            )
        for request in batch:
            self._log(request, "do_decode", stage.worker)
        contexts = [self._context(request) for request in batch]
        self._log_worker(stage, "do_decode", len(batch), [], contexts)
        duration = stage.chain.decode_stage_ms(len(batch), sum(contexts))
        if stage.first:
            duration += stage.chain.entry_ms(sum(contexts))
        stage.decoding = batch
        self._at(self.now + duration, stage)

    # -- ending a step

    def _end_step(self, stage: Stage) -> None:
        prefilled, decoded = stage.prefilling, stage.decoding
        stage.prefilling, stage.decoding = [], []
        if not prefilled and not decoded:
            return  # it only woke
        for request in prefilled:
            self._end_prefill(stage, request)
        for request in decoded:
            if stage.last:
                self.generated[request] += 1
            self._log(request, "wait_decode", stage.next.worker)
            if self.generated[request] >= self.output[request]:
                self._exit(request)
            else:
                stage.next.decode_queue.append(request)
                self._wake(stage.next)
        self._log_worker(stage, "wait", 0, [], [])

    def _end_prefill(self, stage: Stage, request: int) -> None:
        if not stage.last:
            self._log(request, "wait_prefill", stage.next.worker)
            stage.next.prefill_queue.append(request)
            self._wake(stage.next)
            return
        self.generated[request] = 0
        self.first_token_ms[request] = self.now
        self._log(request, "wait_decode", stage.next.worker)
        head = self._decode[0]
        if self._decode is not self._prefill:
            self._log(request, "wait_decode", head.worker)
        head.decode_queue.append(request)
        self._wake(head)

    def _exit(self, request: int) -> None:
        self._log(request, "exit_system", -1)
        self.finish_ms[request] = self.now

    # -- logs

    def _log(self, request: int, event: str, worker: int) -> None:
        self.request_events.append(RequestEvent(self.now, event, worker, request))

    def _log_worker(
        self,
        stage: Stage,
        event: str,
        tokens: int,
        prefill_tokens: Sequence[int],
        decode_contexts: Sequence[int],
    ) -> None:
        self.worker_events.append(
            WorkerEvent(
                self.now, event, tokens, list(prefill_tokens), list(decode_contexts), stage.worker
            )
        )
