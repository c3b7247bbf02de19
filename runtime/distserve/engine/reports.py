"""Collects what others must hear of the engine, and makes the state lines that routers read."""

from collections.abc import Sequence

from distserve.engine.outbox import Deliver, Output
from distserve.engine.parts import Parts
from distserve.engine.sequence import Request
from distserve.wire.dialect import InstanceState, LegEvent
from distserve.wire.messages import EngineMessage

STATE_SECONDS = 0.05
"""A state line is made at most this often."""


class Reports:
    def __init__(self, parts: Parts, deliver: Deliver) -> None:
        self._scheduler = parts.scheduler
        self._blocks = parts.blocks
        self._metrics = parts.metrics
        self._epoch = parts.epoch
        self._clock = parts.clock
        self._deliver = deliver
        self._output = Output()
        self._sequence = 0
        self._reported_at: float | None = None
        self._is_changed = True
        self.draining = False

    @property
    def next_due(self) -> float | None:
        """When a change that came too soon after the last line is to be told."""
        if not self._is_changed:
            return None
        return (self._reported_at or 0.0) + STATE_SECONDS

    def emit(self, leg: str, event: LegEvent) -> None:
        self._output.events.append((leg, event))

    def send(self, message: EngineMessage) -> None:
        self._output.messages.append(message)

    def changed(self) -> None:
        self._is_changed = True

    def flush(self, requests: Sequence[Request], step_rest_ms: float) -> None:
        """Deliver, with a state line if there is a change and it is due."""
        now = self._clock()
        if self._is_changed and (
            self._reported_at is None or now - self._reported_at >= STATE_SECONDS
        ):
            self._is_changed = False
            self._reported_at = now
            self._output.state = self.state(requests, step_rest_ms)
        self.deliver()

    def deliver(self) -> None:
        """Deliver what has come together, without a state line."""
        self._output.cache = self._blocks.take_changes() or None
        if self._output:
            output, self._output = self._output, Output()
            self._deliver(output)

    def state(self, requests: Sequence[Request], step_rest_ms: float = 0.0) -> InstanceState:
        now = self._clock()
        self._sequence += 1
        scheduler, blocks = self._scheduler, self._blocks
        waiting, running = scheduler.waiting_count, scheduler.running_count
        self._metrics.load(running, waiting, blocks.held / blocks.total)
        return InstanceState(
            epoch=self._epoch,
            sequence=self._sequence,
            free_blocks=blocks.available,
            total_blocks=blocks.total,
            waiting=waiting,
            running=running,
            step_rest_ms=step_rest_ms,
            draining=self.draining,
            requests=[request.state(now) for request in requests],
        )
