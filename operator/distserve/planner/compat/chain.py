"""The reference's times without an event per step: what a search runs.

Hand-over is instantaneous and nothing pushes back, so prefill does not depend on decode and is
simulated by itself. A batch that circulates alone in one stage advances many steps at once: its
step times form an arithmetic series until a request joins, finishes, or the step limit is met.
With several stages each takes its whole queue, batches merge where they wait, and every stage step
is an event. `steps` is the definition that all three functions are tested against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distserve.planner.batch import DecodeBatch
from distserve.planner.compat.rules import (
    BACK_PRESSURE_TOKENS,
    DECODE_STEP_TOKENS,
    ENTRY_MS_PER_TOKEN,
    Chain,
)
from distserve.planner.compat.staged import Staged
from distserve.planner.compat.work import Decoding, Observer, form_chunk
from distserve.planner.series import series_ms, steps_until
from distserve.workload import Trace


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


def decode_chain(
    trace: Trace, ready_ms: Sequence[float], chain: Chain, observer: Observer | None = None
) -> list[float]:
    """Finish instants of requests that enter decoding at `ready_ms` (in order).

    NaN for requests that had not finished when the observer had seen enough.
    """
    if chain.pp > 1:
        return Staged(trace, chain, observer, ready_ms).run()
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
        staged = Staged(trace, chain, observer)
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
            work.first_token(chunk.requests, now)
            head = chunk.requests.stop
        elif queue.context_tokens + queue.size > DECODE_STEP_TOKENS:
            step = queue.split(DECODE_STEP_TOKENS)
            now += _first_step_ms(chain, step)
            work.finish(step.advance(1), now)
            queue.absorb(step)
        else:
            now = _decode_alone(work, queue, now, arrival[head] if head < count else math.inf)
    return first_token_ms, work.finish_ms
