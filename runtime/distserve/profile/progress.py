"""How far a profile is and how long it still takes: a line that rewrites itself on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from distserve.profile.grid import Point, Visit

_WIDTH = 24


class Progress:
    """Work is counted in tokens and batches alike: both cost time, neither alone tells it."""

    def __init__(
        self,
        visits: list[Visit],
        kept: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = {visit: _work(visit[0]) for visit in visits}
        self._total = sum(self._left.values())
        self._count = len(visits) + kept
        self._stream = stream
        self._live = stream.isatty()
        self._clock = clock
        self._begun = clock()

    def begin(self, visit: Visit) -> None:
        if not self._live:
            return
        point, nth = visit
        done = self._total - sum(self._left.values())
        filled = round(_WIDTH * done / self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        left = self.seconds_left()
        time_left = "" if left is None else f", {_minutes(left)} left"
        print(
            f"\r\033[K[{bar}] {self._count - len(self._left)}/{self._count}, now round {nth + 1}: "
            f"{point.batch_size} x {point.input_tokens} tokens{time_left}",
            end="", file=self._stream, flush=True,
        )  # fmt: skip

    def ended(self, visit: Visit) -> None:
        del self._left[visit]

    def close(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def seconds_left(self) -> float | None:
        """None before anything is known."""
        rest = sum(self._left.values())
        done = self._total - rest
        return (self._clock() - self._begun) * rest / done if done else None


def _work(point: Point) -> float:
    return 64 + point.tokens + point.batch_size * 8


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
