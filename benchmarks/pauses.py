"""When the machine itself stood still: a bare timer on each core, with priority over all else.

A virtual machine's cores are taken away and given back by their host; nothing that runs on them can
be on time then. Used beside a measurement, `watched` tells those moments from the program's own.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

PERIOD_SECONDS = 0.001
LATE_SECONDS = 0.0005
"""Beyond the period: a timer of real-time priority comes 0.1 ms late on a core that is there."""
PRIORITY = 50


@dataclass
class Pauses:
    """Spans of `time.perf_counter` in which a core was not there, from the last beat before."""

    known: bool = True
    """False where no real-time priority is to be had: then nothing can be told."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """By their start."""

    def touch(self, instants: Iterable[float]) -> bool:
        """Whether one of them is in a pause, or less than its length after it: what had to wait
        is worked off then."""
        return any(self._in_one(at) for at in instants)

    @property
    def seconds(self) -> float:
        return sum(end - start - PERIOD_SECONDS for start, end in self.spans)

    def _in_one(self, at: float) -> bool:
        before = bisect_left(self.spans, (at,))
        return before > 0 and at < self._over[before - 1]

    @cached_property
    def _over(self) -> list[float]:
        """When each span and all before it are worked off."""
        return list(accumulate((2 * end - start for start, end in self.spans), max))


@contextlib.contextmanager
def watched() -> Iterator[Pauses]:
    """What is yielded is filled when the block ends."""
    seen = Pauses()
    cores = sorted(os.sched_getaffinity(0))
    watchers = [
        subprocess.Popen(
            [sys.executable, __file__, str(core)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for core in cores
    ]  # fmt: skip
    try:
        for watcher in watchers:
            assert watcher.stdout
            seen.known = watcher.stdout.readline() == "watching\n" and seen.known
        yield seen
        if seen.known:
            for watcher in watchers:
                spans, _ = watcher.communicate(timeout=10)
                seen.spans += [(start, end) for start, end in json.loads(spans)]
        seen.spans.sort()
    finally:
        for watcher in watchers:
            with contextlib.suppress(ProcessLookupError):
                watcher.kill()
            watcher.wait(10)


def watch(core: int) -> None:
    """Until stdin closes; then prints the spans of this core."""
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        print("no real-time priority", flush=True)
        return
    print("watching", flush=True)
    spans = []
    before = time.perf_counter()
    while not select.select([sys.stdin], [], [], PERIOD_SECONDS)[0]:
        now = time.perf_counter()
        if now - before > PERIOD_SECONDS + LATE_SECONDS:
            spans.append((before, now))
        before = now
    json.dump(spans, sys.stdout)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
