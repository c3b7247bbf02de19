"""What the fast simulations share: chunks of prompts, who watches, and the instants found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from distserve.planner.batch import DecodeBatch
from distserve.planner.compat.rules import Chain
from distserve.planner.errors import OversizedRequest
from distserve.workload import Trace


class Observer(Protocol):
    """Told of every request that finishes; ends the simulation when it has seen enough."""

    def first_token(self, requests: range, now_ms: float) -> None: ...

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

    def first_token(self, requests: range, now_ms: float) -> None:
        if self.observer:
            self.observer.first_token(requests, now_ms)

    @property
    def over(self) -> bool:
        return self.left == 0

    def decided(self, now_ms: float) -> bool:
        return self.observer is not None and self.observer.decided(now_ms)
