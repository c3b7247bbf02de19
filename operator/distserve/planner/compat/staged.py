"""A chain of several stages, an event per stage step: each stage takes its whole queue.

Batches that wait at a busy stage merge, so a batch per stage is all that ever waits. Events of one
instant happen in the order in which they were made, as in the reference.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from distserve.planner.batch import DecodeBatch
from distserve.planner.compat.rules import BACK_PRESSURE_TOKENS, DECODE_STEP_TOKENS, Chain
from distserve.planner.compat.work import Chunk, Decoding, Observer, form_chunk
from distserve.workload import Trace

NOBODY = -1


class Staged:
    """`ready_ms` says when requests enter decoding; left out, the chain prefills as well."""

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
        self.entered = 0  # requests that are in the chain
        self.head = 0  # the first of them that has not begun its prefill
        self.first_token_ms = [math.nan] * len(trace)
        self.chunks: list[deque[Chunk]] = [deque() for _ in range(chain.pp)]
        self.waiting: list[DecodeBatch | None] = [None] * chain.pp
        self.running: list[Chunk | DecodeBatch | None] = [None] * chain.pp
        # (instant, order of making, stage, whether a step ends or a sleeping stage wakes)
        self.agenda: list[tuple[float, int, int, bool]] = []
        self.made = 0

    def run(self) -> list[float]:
        work, feed, agenda, running = self.work, self.feed, self.agenda, self.running
        count, last = len(feed), self.chain.pp - 1
        while not work.over:
            if self.entered < count and (not agenda or feed[self.entered] <= agenda[0][0]):
                now = feed[self.entered]
                woken = self._enter(now)
            else:
                now, _, stage, ends = heappop(agenda)
                woken = self._end(stage, now) if ends else NOBODY
                if running[stage] is None:
                    self._begin(stage, now)
                if stage == last and work.decided(now):
                    break
            if woken != NOBODY and running[woken] is None:
                if agenda and agenda[0][0] == now:
                    self._schedule(now, woken, ends=False)  # others of this instant come first
                else:
                    self._begin(woken, now)
        return work.finish_ms

    def _schedule(self, time_ms: float, stage: int, ends: bool) -> None:
        heappush(self.agenda, (time_ms, self.made, stage, ends))
        self.made += 1

    def _enter(self, now: float) -> int:
        """Let all requests of this instant in; they wake the first stage."""
        first = self.entered
        while self.entered < len(self.feed) and self.feed[self.entered] == now:
            self.entered += 1
        if not self.prefills:
            self._queue(0, self._fresh(range(first, self.entered)))
        return 0

    def _fresh(self, requests: range) -> DecodeBatch:
        batch = self.work.batch()
        prompt, output = self.trace.prompt_tokens, self.trace.output_tokens
        for request in requests:
            batch.join(request, prompt[request], output[request])
        return batch

    def _queue(self, stage: int, batch: DecodeBatch) -> None:
        ahead = self.waiting[stage]
        if ahead is None:
            self.waiting[stage] = batch
        else:
            ahead.absorb(batch)

    def _begin(self, stage: int, now: float) -> None:
        chain, batch = self.chain, self.waiting[stage]
        chunk = self._next_chunk(stage, now) if self.prefills else None
        if chunk is not None:
            duration = chain.prefill_stage_ms(chunk.tokens, chunk.squared_tokens)
            if stage == 0:
                duration += chain.entry_ms(chunk.tokens)
            self.running[stage] = chunk
        elif batch is not None:
            self.waiting[stage] = None
            if batch.context_tokens + batch.size > DECODE_STEP_TOKENS:
                self.waiting[stage], batch = batch, batch.split(DECODE_STEP_TOKENS)
            duration = chain.decode_stage_ms(batch.size, batch.context_tokens)
            if stage == 0:
                duration += chain.entry_ms(batch.context_tokens)
            self.running[stage] = batch
        else:
            return
        self._schedule(now + duration, stage, ends=True)

    def _next_chunk(self, stage: int, now: float) -> Chunk | None:
        waiting = self.waiting[stage]
        if waiting is not None and waiting.context_tokens > BACK_PRESSURE_TOKENS:
            return None
        if stage > 0:
            return self.chunks[stage].popleft() if self.chunks[stage] else None
        if self.head == self.entered:
            return None
        chunk = form_chunk(self.trace, self.head, now, self.chain.prefill_tokens)
        self.head = chunk.requests.stop
        return chunk

    def _end(self, stage: int, now: float) -> int:
        """Hand on what the stage has done; returns the stage that this wakes."""
        done, self.running[stage] = self.running[stage], None
        last = stage == self.chain.pp - 1
        following = 0 if last else stage + 1
        if isinstance(done, Chunk):
            if last:
                for request in done.requests:
                    self.first_token_ms[request] = now
                self.work.first_token(done.requests, now)
                self._queue(0, self._fresh(done.requests))
            else:
                self.chunks[following].append(done)
            return following
        assert done is not None, "a step that ends was begun"
        if last:
            self.work.finish(done.advance(1), now)
        if not done.size:
            return NOBODY
        self._queue(following, done)
        return following
