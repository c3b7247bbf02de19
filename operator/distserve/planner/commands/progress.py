"""Progress on stderr for searches that take longer than a glance."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_GLANCE_SECONDS, _PERIOD_SECONDS = 1.0, 0.2
_LOGGED_SECONDS = 10.0
"""Elsewhere than on a terminal nobody waits for the first line, and each one stays."""


class Progress:
    """Counts work done; a line that rewrites itself on a terminal, one every 10 s elsewhere."""

    def __init__(self, what: str, total: int | None = None, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._period = _PERIOD_SECONDS if self._live else _LOGGED_SECONDS
        # Quick work stays quiet.
        self._next = time.monotonic() + (_GLANCE_SECONDS if self._live else _LOGGED_SECONDS)
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
        line = f"\r{text}" if self._live else f"{text}\n"
        print(line, end="", file=self._stream, flush=True)

    def close(self) -> None:
        if self._shown and self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)
