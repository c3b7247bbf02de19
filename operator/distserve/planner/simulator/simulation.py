"""The clock, the agenda of events, and what happened to every request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

from distserve.planner.result import RunResult
from distserve.workload import Trace


class Strategy(Protocol):
    """Where requests go and what an instance does next; one per simulation."""

    def arrive(self, request: int) -> None:
        """Queue a request that has just arrived."""

    def prefilled(self, request: int, instance: Any) -> None:
        """Send on a request whose prompt `instance` has prefilled and that has tokens left."""


class Observer(Protocol):
    """Judges requests as they progress and ends the simulation when it has seen enough."""

    decided: bool

    def passed(self, now_ms: float) -> None: ...

    def first_token(self, request: int, now_ms: float) -> None: ...

    def finished(self, request: int, now_ms: float) -> None: ...


class StepRecord(NamedTuple):
    """`steps` equal batches in a row on one instance (1 unless decode advanced at once)."""

    start_ms: float
    end_ms: float
    instance: str
    prefill_tokens: int
    decode_requests: int
    context_tokens: int
    steps: int


@dataclass
class Lifecycle:
    """Instants of each request's stages, NaN for what it did not reach or did not need."""

    prefill_ms: list[float]
    first_token_ms: list[float]
    migration_ms: list[float]
    migrated_ms: list[float]
    decode_ms: list[float]
    finish_ms: list[float]

    @classmethod
    def of(cls, count: int) -> Lifecycle:
        return cls(*([math.nan] * count for _ in range(6)))


@dataclass
class Simulation:
    """Runs one trace. `step_by_step` takes every decode step as an event of its own."""

    trace: Trace
    step_by_step: bool = False
    observer: Observer | None = None
    log: list[StepRecord] | None = None
    now: float = 0.0
    life: Lifecycle = field(init=False)
    due: list[int] = field(init=False)
    base: list[int] = field(init=False)
    _agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = field(
        default_factory=list
    )
    _made: int = 0

    def __post_init__(self) -> None:
        count = len(self.trace)
        self.life = Lifecycle.of(count)
        self.due, self.base = [0] * count, [0] * count  # shared by all decode batches

    def at(self, time_ms: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` at `time_ms`; events of one instant happen in the order of making."""
        assert time_ms >= self.now, "time does not run backwards"
        heappush(self._agenda, (time_ms, self._made, action, arguments))
        self._made += 1

    def run(self, strategy: Strategy) -> RunResult:
        arrivals, observer, agenda = self.trace.arrival_ms, self.observer, self._agenda
        arrived, count = 0, len(self.trace)
        while arrived < count or agenda:
            if arrived < count and (not agenda or arrivals[arrived] <= agenda[0][0]):
                self.now = arrivals[arrived]
                strategy.arrive(arrived)
                arrived += 1
            else:
                self.now, _, action, arguments = heappop(agenda)
                action(*arguments)
            if observer:
                observer.passed(self.now)
                if observer.decided:
                    break
        return RunResult(
            self.trace, self.life.first_token_ms, self.life.finish_ms, first_by_prefill=True
        )

    def first_token(self, request: int) -> None:
        self.life.first_token_ms[request] = self.now
        if self.observer:
            self.observer.first_token(request, self.now)

    def finish(self, request: int) -> None:
        assert math.isnan(self.life.finish_ms[request]), "a request ends once"
        self.life.finish_ms[request] = self.now
        if self.observer:
            self.observer.finished(request, self.now)
