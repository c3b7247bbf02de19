"""Open loop: every request leaves at its planned instant, whatever the server does.

Called by `session` once per (count, rate). Measures itself too: a client that falls behind its
plan measures its own queue, so its lag is part of the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distserve.bench.client import Client
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.quantiles import quantile

_AHEAD_SECONDS = 0.25
"""So long before its instant a request is encoded and gets a connection: a few round trips."""
_BEAT_SECONDS = 0.05
"""Each wakes this process, which takes from a server on the same core: a hundred a second made its
steps of 5 ms 3 % longer."""
_TIMER_SECONDS = 0.0005
"""uvloop's timers come 0.2 ms late in the median, 0.8 at p99."""


@dataclass(frozen=True)
class Lag:
    """How late the client was, in milliseconds: against its plan, and its event loop as such, in
    which p99 is what it kept to in 99 % of the time. That is looked at twenty times a second: of a
    run of a few seconds p99 is nearly the worst, and a stall may be a beat longer than is told.

    Of requests that are due at one instant the first to leave is judged: nobody sends several at
    once, and how many there are is the question's choice. What an instant's requests do to those
    of the next is seen there, and what they do to the times of tokens in the loop.
    """

    send_p99_ms: float
    send_max_ms: float
    loop_p99_ms: float
    loop_max_ms: float

    def within(self, limit_ms: float) -> bool:
        return self.send_p99_ms <= limit_ms and self.loop_p99_ms <= limit_ms


@dataclass(frozen=True)
class Observed:
    outcomes: Sequence[Outcome]
    lag: Lag
    started: float
    """The plan's zero on the monotonic clock."""
    interrupted: bool = False


async def offer(
    requests: Sequence[Planned],
    client: Client,
    on_end: Callable[[Outcome], None] = lambda _: None,
    on_beat: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Observed:
    """Send all requests at their instants and wait for their ends; `on_beat` is called meanwhile,
    twenty times a second.

    Cancelled, it ends what runs and returns what has ended so far.
    """
    beats: list[float] = []
    outcomes: list[Outcome] = []
    interrupted = False

    async def run(request: Planned, due: float) -> None:
        outcomes.append(await _send(client, request, due, clock))
        on_end(outcomes[-1])

    with _quiet_collector():
        start = clock() + _AHEAD_SECONDS
        monitor = asyncio.create_task(_beat(beats, start, on_beat, clock))
        try:
            async with asyncio.TaskGroup() as running:
                for request in requests:
                    due = start + request.at_seconds
                    await asyncio.sleep(due - _AHEAD_SECONDS - clock())
                    running.create_task(run(request, due))
        except asyncio.CancelledError:
            interrupted = True
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            monitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await monitor
    outcomes.sort(key=lambda outcome: outcome.index)
    return Observed(outcomes, _lag(outcomes, beats), start, interrupted)


async def _send(
    client: Client, request: Planned, due: float, clock: Callable[[], float]
) -> Outcome:
    """All that can be done ahead is: what is due is only written to the socket."""
    body = client.target.body(request.prompt, request.output_tokens)
    spare = client.spare()
    try:
        await _until(due, clock)
        return await client.send(request, body, due, spare)
    finally:
        spare.drop()


async def _until(due: float, clock: Callable[[], float]) -> None:
    """Timers are rounded to milliseconds: the last one passes with the loop turning. Not more of
    them: a server on the same core would go without it meanwhile."""
    wait = due - clock() - _TIMER_SECONDS
    if wait > 0:
        await asyncio.sleep(wait)
    while clock() < due:
        await asyncio.sleep(0)


async def _beat(
    beats: list[float], start: float, on_beat: Callable[[], None], clock: Callable[[], float]
) -> None:
    """Until it is cancelled. That is no error to its caller, whose frame the task would keep with
    it, and all prompts in that."""
    with contextlib.suppress(asyncio.CancelledError):
        due = clock() + _BEAT_SECONDS
        while True:
            await asyncio.sleep(due - clock())
            now = clock()
            beats += _late(due, now, start)
            due = now + _BEAT_SECONDS  # before it is told: a terminal that blocks is lag too
            on_beat()


def _late(due: float, now: float, start: float) -> list[float]:
    """How late a beat was, and after it those that were missed while the loop stood still: so a
    share of beats is that share of the time. None of before the start: nothing is under way, and
    what is asked at once is made ready."""
    missed = max(1, math.ceil((now - due) / _BEAT_SECONDS))
    instants = (due + n * _BEAT_SECONDS for n in range(missed))
    return [now - instant for instant in instants if instant >= start]


def _lag(outcomes: Sequence[Outcome], beats: Sequence[float]) -> Lag:
    first: dict[float, float] = {}
    for one in outcomes:
        first[one.planned] = min(one.lag_seconds, first.get(one.planned, math.inf))
    sends = [late * 1000 for late in first.values()] or [0.0]
    loop = [late * 1000 for late in beats] or [0.0]
    return Lag(quantile(sends, 99), max(sends), quantile(loop, 99), max(loop))


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Full collections walk every object of a large request set: they would show as lag. So would
    one of the young: 500 streams are nearly 50,000 objects, which take 10 to 30 ms, and of them
    none is garbage."""
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(500_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
