"""Progress on stderr for searches that take longer than a glance."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts work done; a line that rewrites itself on a terminal, one every 2 s elsewhere."""

    def __init__(self, what: str, total: int | None = None, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._period = 0.2 if self._live else 2.0
        self._next = time.monotonic() + 1.0  # quick work stays quiet
        self._done = 0
        self._shown = False

    def advance(self) -> None:
        self._done += 1
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._period
        self._shown = True
        of_all = f"/{self._total}" if self._total is not None else ""
        text = f"{self._done}{of_all} {self._what}"
        print(f"\r{text}", end="" if self._live else "\n", file=self._stream, flush=True)

    def close(self) -> None:
        if self._shown and self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)
