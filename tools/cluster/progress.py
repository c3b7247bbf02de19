"""Says what takes long: lines in a log, a line that moves at a terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 60.0


@dataclass
class Step:
    """One running step; `count` tells how far it is."""

    title: str
    out: TextIO
    live: bool
    started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def count(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said > (TERMINAL_SECONDS if self.live else LOG_SECONDS):
            self._said = now
            self.say(f"{done} packages, {self.seconds:.0f} s")

    def say(self, words: str, *, last: bool = False) -> None:
        line = f"{self.title}: {words}"
        end = "\n" if last or not self.live else ""
        self.out.write(f"\r{line}\x1b[K{end}" if self.live else f"{line}{end}")
        self.out.flush()


@dataclass
class Progress:
    out: TextIO = sys.stderr

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step that says how long it took, or that it failed by what it raises."""
        step = Step(title, self.out, self.out.isatty())
        step.say("...")
        yield step
        step.say(f"{step.seconds:.1f} s", last=True)

    def note(self, words: str) -> None:
        self.out.write(f"{words}\n")
        self.out.flush()
