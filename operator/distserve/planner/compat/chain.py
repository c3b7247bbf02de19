"""The reference's times without an event per step: what a search runs.

Hand-over is instantaneous and nothing pushes back, so prefill does not depend on decode and is
simulated by itself. A batch that circulates alone in one stage advances many steps at once: its
step times form an arithmetic series until a request joins, finishes, or the step limit is met.
With several stages each takes its whole queue, batches merge where they wait, and every stage step
is an event. `steps` is the definition that all three functions are tested against.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from distserve.planner.batch import DecodeBatch
from distserve.planner.compat.rules import (
    BACK_PRESSURE_TOKENS,
    DECODE_STEP_TOKENS,
    ENTRY_MS_PER_TOKEN,
    Chain,
)
from distserve.planner.errors import OversizedRequest
from distserve.planner.series import series_ms, steps_until
from distserve.workload import Trace


class Observer(Protocol):
    """Told of every request that finishes; ends the simulation when it has seen enough."""

    def finished(self, request: int, now_ms: float) -> None: ...

    def decided(self, now_ms: float) -> bool: ...


class Chunk(NamedTuple):
    """Prompts that are prefilled together."""

    requests: range
    tokens: int
    squared_tokens: int


def form_chunk(trace: Trace, head: int, now_ms: float, limit_tokens: int) -> Chunk:
    """All whole prompts from `head` that have arrived and fit one prefill step."""
    prompt, arrival = trace.prompt_tokens, trace.arrival_ms
    tokens = squared = 0
    tail = head
    while tail < len(prompt) and arrival[tail] <= now_ms and tokens + prompt[tail] <= limit_tokens:
        tokens += prompt[tail]
        squared += prompt[tail] * prompt[tail]
        tail += 1
    if tail == head:
        raise OversizedRequest(
            f"a prompt of {prompt[head]} tokens exceeds the {limit_tokens} tokens of one prefill "
            "step; leave it out or give the prefill more accelerators"
        )
    return Chunk(range(head, tail), tokens, squared)


def prefill_chain(trace: Trace, chain: Chain) -> list[float]:
    """First-token instants when prefill has its own chain."""
    arrival = trace.arrival_ms
    free = [0.0] * chain.pp
    first_token_ms = [0.0] * len(trace)
    head = 0
    while head < len(trace):
        start = max(arrival[head], free[0])
        chunk = form_chunk(trace, head, start, chain.prefill_tokens)
        stage_ms = chain.prefill_stage_ms(chunk.tokens, chunk.squared_tokens)
        end = free[0] = start + (stage_ms + chain.entry_ms(chunk.tokens))
        for stage in range(1, chain.pp):
            end = free[stage] = max(end, free[stage]) + stage_ms
        for request in chunk.requests:
            first_token_ms[request] = end
        head = chunk.requests.stop
    return first_token_ms


class Decoding:
    """What the decode loops share: the batches' bookkeeping and the instants found so far."""

    def __init__(self, trace: Trace, chain: Chain, observer: Observer | None) -> None:
        self.trace = trace
        self.chain = chain
        self.observer = observer
        self.finish_ms = [math.nan] * len(trace)
        self.left = len(trace)
        self._due = [0] * len(trace)
        self._base = [0] * len(trace)

    def batch(self) -> DecodeBatch:
        return DecodeBatch(self._due, self._base)

    def finish(self, requests: Sequence[int], now_ms: float) -> None:
        for request in requests:
            self.finish_ms[request] = now_ms
            if self.observer:
                self.observer.finished(request, now_ms)
        self.left -= len(requests)

    @property
    def over(self) -> bool:
        return self.left == 0

    def decided(self, now_ms: float) -> bool:
        return self.observer is not None and self.observer.decided(now_ms)


def decode_chain(
    trace: Trace, ready_ms: Sequence[float], chain: Chain, observer: Observer | None = None
) -> list[float]:
    """Finish instants of requests that enter decoding at `ready_ms` (in order).

    NaN for requests that had not finished when the observer had seen enough.
    """
    if chain.pp > 1:
        return _Staged(trace, chain, observer, ready_ms).run()
    prompt, output = trace.prompt_tokens, trace.output_tokens
    work = Decoding(trace, chain, observer)
    queue = work.batch()
    now, head, count = 0.0, 0, len(trace)
    while not work.over and not work.decided(now):
        if queue.size == 0:
            now = max(now, ready_ms[head])
        head = _join_ready(queue, trace, ready_ms, head, now)
        if queue.context_tokens + queue.size > DECODE_STEP_TOKENS:
            step = queue.split(DECODE_STEP_TOKENS)
            now += _first_step_ms(chain, step)
            while head < count and ready_ms[head] <= now:
                queue.join(head, prompt[head], output[head])
                head += 1
            work.finish(step.advance(1), now)
            queue.absorb(step)
        else:
            now = _decode_alone(work, queue, now, ready_ms[head] if head < count else math.inf)
    return work.finish_ms


def _join_ready(
    queue: DecodeBatch, trace: Trace, ready_ms: Sequence[float], head: int, now_ms: float
) -> int:
    """Requests that became ready during a step wait in front of those that were in it."""
    tail = head
    while tail < len(ready_ms) and ready_ms[tail] <= now_ms:
        tail += 1
    if tail > head:
        prompt, output = trace.prompt_tokens, trace.output_tokens
        queue.join_ahead([(r, prompt[r], output[r]) for r in range(head, tail)])
    return tail


def _first_step_ms(chain: Chain, batch: DecodeBatch) -> float:
    stage_ms = chain.decode_stage_ms(batch.size, batch.context_tokens)
    return stage_ms + chain.entry_ms(batch.context_tokens)


def _decode_alone(work: Decoding, batch: DecodeBatch, now: float, next_ready_ms: float) -> float:
    """Advance a batch that is all there is, up to what changes it; returns the time then."""
    size, context = batch.size, batch.context_tokens
    first_ms = _first_step_ms(work.chain, batch)
    growth_ms = size * (work.chain.times.decode(size).b + ENTRY_MS_PER_TOKEN)
    until_limit = (DECODE_STEP_TOKENS - context - size) // size + 1
    steps = min(batch.rounds_to_next_finish, until_limit)
    if now + series_ms(steps, first_ms, growth_ms) > next_ready_ms:
        steps = min(steps, steps_until(next_ready_ms - now, first_ms, growth_ms))
    now += series_ms(steps, first_ms, growth_ms)
    work.finish(batch.advance(steps), now)
    return now


def colocated_chain(
    trace: Trace, chain: Chain, observer: Observer | None = None
) -> tuple[list[float], list[float]]:
    """First-token and finish instants when one chain does both, prefill first."""
    if chain.pp > 1:
        staged = _Staged(trace, chain, observer)
        return staged.first_token_ms, staged.run()
    arrival, prompt, output = trace.arrival_ms, trace.prompt_tokens, trace.output_tokens
    first_token_ms = [math.nan] * len(trace)
    work = Decoding(trace, chain, observer)
    queue = work.batch()
    now, head, count = 0.0, 0, len(trace)
    while not work.over and not work.decided(now):
        if queue.size == 0 and head < count:
            now = max(now, arrival[head])
        waits = head < count and arrival[head] <= now
        if waits and queue.context_tokens <= BACK_PRESSURE_TOKENS:
            chunk = form_chunk(trace, head, now, chain.prefill_tokens)
            now += chain.prefill_stage_ms(chunk.tokens, chunk.squared_tokens) + chain.entry_ms(
                chunk.tokens
            )
            for request in chunk.requests:
                first_token_ms[request] = now
                queue.join(request, prompt[request], output[request])
            head = chunk.requests.stop
        elif queue.context_tokens + queue.size > DECODE_STEP_TOKENS:
            step = queue.split(DECODE_STEP_TOKENS)
            now += _first_step_ms(chain, step)
            work.finish(step.advance(1), now)
            queue.absorb(step)
        else:
            now = _decode_alone(work, queue, now, arrival[head] if head < count else math.inf)
    return first_token_ms, work.finish_ms


class _Staged:
    """Several stages, an event per stage step; `ready_ms` left out means prefill here as well."""

    def __init__(
        self,
        trace: Trace,
        chain: Chain,
        observer: Observer | None,
        ready_ms: Sequence[float] | None = None,
    ) -> None:
        self.trace = trace
        self.chain = chain
        self.work = Decoding(trace, chain, observer)
        self.prefills = ready_ms is None
        self.feed = trace.arrival_ms if ready_ms is None else ready_ms
        self.head = 0  # the first request that has not entered a stage
        self.first_token_ms = [math.nan] * len(trace)
        self.chunks: list[deque[Chunk]] = [deque() for _ in range(chain.pp)]
        self.waiting: list[list[DecodeBatch]] = [[] for _ in range(chain.pp)]
        self.running: list[Chunk | DecodeBatch | None] = [None] * chain.pp
        # (instant, order of making, stage, whether a step ends or a sleeping stage wakes)
        self.agenda: list[tuple[float, int, int, bool]] = []
        self.made = 0
        self.woken: list[int] = []

    def run(self) -> list[float]:
        work, feed, agenda = self.work, self.feed, self.agenda
        entered, count = 0, len(feed)
        while not work.over:
            if entered < count and (not agenda or feed[entered] <= agenda[0][0]):
                now = feed[entered]
                tail = entered
                while tail < count and feed[tail] == now:
                    tail += 1
                self._enter(range(entered, tail))
                entered = tail
            else:
                now, _, stage, ends = heappop(agenda)
                if ends:
                    self._end(stage, now)
                if self.running[stage] is None:
                    self._begin(stage, now, entered)
                if work.decided(now):
                    break
            for stage in self.woken:
                if agenda and agenda[0][0] == now:
                    self._schedule(now, stage, ends=False)  # others of this instant come first
                elif self.running[stage] is None:
                    self._begin(stage, now, entered)
            self.woken.clear()
        return work.finish_ms

    def _schedule(self, time_ms: float, stage: int, ends: bool) -> None:
        heappush(self.agenda, (time_ms, self.made, stage, ends))
        self.made += 1

    def _enter(self, requests: range) -> None:
        if not self.prefills:
            self._queue(0, self._fresh(requests))
        elif self.running[0] is None:
            self.woken.append(0)

    def _fresh(self, requests: range) -> DecodeBatch:
        batch = self.work.batch()
        for request in requests:
            batch.join(
                request, self.trace.prompt_tokens[request], self.trace.output_tokens[request]
            )
        return batch

    def _queue(self, stage: int, batch: DecodeBatch) -> None:
        self.waiting[stage].append(batch)
        if self.running[stage] is None:
            self.woken.append(stage)

    def _begin(self, stage: int, now: float, entered: int) -> None:
        waiting = self.waiting[stage]
        chunk = self._next_chunk(stage, now, entered)
        if chunk is not None:
            duration = self.chain.prefill_stage_ms(chunk.tokens, chunk.squared_tokens)
            if stage == 0:
                duration += self.chain.entry_ms(chunk.tokens)
            self.running[stage] = chunk
        elif waiting:
            batch = waiting[0]
            for other in waiting[1:]:
                batch.absorb(other)
            waiting.clear()
            if batch.context_tokens + batch.size > DECODE_STEP_TOKENS:
                rest, batch = batch, batch.split(DECODE_STEP_TOKENS)
                waiting.append(rest)
            duration = self.chain.decode_stage_ms(batch.size, batch.context_tokens)
            if stage == 0:
                duration += self.chain.entry_ms(batch.context_tokens)
            self.running[stage] = batch
        else:
            return
        self._schedule(now + duration, stage, ends=True)

    def _next_chunk(self, stage: int, now: float, entered: int) -> Chunk | None:
        if not self.prefills:
            return None
        if sum(batch.context_tokens for batch in self.waiting[stage]) > BACK_PRESSURE_TOKENS:
            return None
        if stage > 0:
            return self.chunks[stage].popleft() if self.chunks[stage] else None
        if self.head == entered:
            return None
        chunk = form_chunk(self.trace, self.head, now, self.chain.prefill_tokens)
        self.head = chunk.requests.stop
        return chunk

    def _end(self, stage: int, now: float) -> None:
        done, self.running[stage] = self.running[stage], None
        last = stage == self.chain.pp - 1
        following = 0 if last else stage + 1
        if isinstance(done, Chunk):
            if last:
                for request in done.requests:
                    self.first_token_ms[request] = now
                self._queue(0, self._fresh(done.requests))
            else:
                self.chunks[following].append(done)
                if self.running[following] is None:
                    self.woken.append(following)
        elif done is not None:
            if last:
                self.work.finish(done.advance(1), now)
            if done.size:
                self._queue(following, done)
