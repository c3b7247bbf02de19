"""What an engine is composed of, so that its modules take one argument for what they share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from distserve.engine.batch import Span, SpanResult
from distserve.engine.blocks import BlockManager, Copy
from distserve.engine.choices import Choices
from distserve.engine.metrics import EngineMetrics
from distserve.engine.scheduler import Scheduler


class Runner(Protocol):
    def run(self, spans: Sequence[Span]) -> list[SpanResult]: ...


@dataclass(frozen=True)
class Parts:
    """What an engine is composed of."""

    runner: Runner
    copy_blocks: Callable[[Sequence[Copy]], None]
    blocks: BlockManager
    scheduler: Scheduler
    choices: Choices
    metrics: EngineMetrics
    epoch: int
    lease_seconds: float
    warm_up_token_ms: float = 0.0
    clock: Callable[[], float] = time.monotonic
