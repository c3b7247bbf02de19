"""What a terminal shows of work under way: a line that rewrites itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from distserve.bench.outcome import Outcome

_PERIOD_SECONDS = 0.2
_WIDTH = 24


class Line:
    """Written anew five times a second at most; silent where the stream is no terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._clock = clock
        self._next = 0.0

    def show(self, words: Callable[[float], str]) -> None:
        """What it is to say, by the clock."""
        if self._live and (now := self._clock()) >= self._next:
            self._next = now + _PERIOD_SECONDS
            print(f"\r\033[K{words(now)}", end="", file=self._stream, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)


class Progress:
    """Of a run: requests that ended, failures, time left to the last arrival."""

    def __init__(
        self,
        title: str,
        total: int,
        seconds: float,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds`: until the last arrival."""
        self._title = title
        self._total = total
        self._last_arrival = clock() + seconds
        self._line = Line(stream, clock)
        self._ended = 0
        self._failed = 0

    def ended(self, outcome: Outcome) -> None:
        self._ended += 1
        self._failed += not outcome.complete

    def beat(self) -> None:
        """To be called again and again: a server that hangs ends nothing."""
        self._line.show(self._words)

    def close(self) -> None:
        self._line.close()

    def _words(self, now: float) -> str:
        filled = _WIDTH * self._ended // self._total
        bar = "#" * filled + "." * (_WIDTH - filled)
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._last_arrival - now
        wait = f", {left:.0f} s of arrivals left" if left > 0 else ", the last answers come"
        return f"{self._title} [{bar}] {self._ended}/{self._total}{failed}{wait}"


class Counting:
    """Of something whose end is not known: how many there are so far."""

    def __init__(
        self, title: str, noun: str, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title = title
        self._noun = noun
        self._line = Line(stream, clock)
        self._count = 0

    def one(self) -> None:
        self._count += 1
        self._line.show(lambda _: f"{self._title}: {self._count} {self._noun}")

    def close(self) -> None:
        self._line.close()
