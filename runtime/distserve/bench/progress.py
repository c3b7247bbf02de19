"""Progress of a run on a terminal: requests that ended, failures, time left to the last arrival."""

from __future__ import annotations

import time
from typing import TextIO

from distserve.bench.outcome import Outcome

_PERIOD_SECONDS = 0.2
_WIDTH = 24


class Progress:
    """A line that rewrites itself; silent where the stream is no terminal."""

    def __init__(self, title: str, total: int, seconds: float, stream: TextIO) -> None:
        """`seconds`: until the last arrival."""
        self._title = title
        self._total = total
        self._last_arrival = time.monotonic() + seconds
        self._stream = stream
        self._live = stream.isatty()
        self._ended = 0
        self._failed = 0
        self._next = 0.0

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        self._failed += not outcome.complete
        now = time.monotonic()
        if self._live and now >= self._next:
            self._next = now + _PERIOD_SECONDS
            self._draw(self._last_arrival - now)

    def close(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _draw(self, left: float) -> None:
        filled = _WIDTH * self._ended // self._total
        bar = "#" * filled + "." * (_WIDTH - filled)
        failed = f", {self._failed} failed" if self._failed else ""
        wait = f", {left:.0f} s of arrivals left" if left > 0 else ", the last answers come"
        print(
            f"\r\033[K{self._title} [{bar}] {self._ended}/{self._total}{failed}{wait}",
            end="", file=self._stream, flush=True,
        )  # fmt: skip
