"""A client's lag is what it could have done better; several requests at one instant it cannot."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from distserve.bench.client import Client, Target
from distserve.bench.connections import Spare
from distserve.bench.openloop import offer
from distserve.bench.outcome import Outcome, Planned


class NoConnection(Spare):
    def __init__(self) -> None:
        pass

    def drop(self) -> None:
        pass


class Late(Client):
    """Every request leaves so late as is said."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.target = Target("http://127.0.0.1", "m")
        self._late = seconds

    def spare(self) -> Spare:
        return NoConnection()

    async def send(
        self, request: Planned, body: bytes, planned: float, spare: Spare | None = None
    ) -> Outcome:
        sent = planned + self._late[request.index]
        return Outcome(request.index, 1, 1, planned, sent, sent)


@pytest.mark.parametrize(
    ("instants", "late", "worst_ms"),
    [
        ([0, 0, 0], [0.5, 0.001, 0.9], 1),
        ([0, 0, 0.01, 0.01], [0.001, 0.5, 0.5, 0.002], 2),
        ([0, 0, 0.01, 0.01], [0.001, 0.5, 0.5, 0.4], 400),
        ([0, 0.01, 0.02], [0.001, 0.5, 0.002], 500),
    ],
    ids=["at once", "bursts", "a late burst", "apart"],
)
def test_of_one_instant_the_first_to_leave_is_judged(
    instants: list[float], late: list[float], worst_ms: float
) -> None:
    plan = [Planned(index, at, "x", 1, 1) for index, at in enumerate(instants)]
    observed = asyncio.run(asyncio.wait_for(offer(plan, Late(late)), 30))
    assert len(observed.outcomes) == len(plan)
    assert observed.lag.send_max_ms == pytest.approx(worst_ms, abs=1e-3)


class VirtualTime(asyncio.SelectorEventLoop):
    """Time passes at once where nobody has anything to do, and a little with each look at it."""

    now = 0.0

    def time(self) -> float:
        self.now += 1e-6
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            first = self._scheduled[0]  # type: ignore[attr-defined]
            self.now = max(self.now, first.when())
        super()._run_once()  # type: ignore[misc]


class Answering(Late):
    """For so long, on a loop that stands still for a while again and again."""

    def __init__(self, seconds: float, stall: float, every: float) -> None:
        super().__init__([0.0])
        self._seconds, self._stall, self._every = seconds, stall, every

    async def send(
        self, request: Planned, body: bytes, planned: float, spare: Spare | None = None
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTime)
        until = loop.now + self._seconds
        while loop.now < until:
            await asyncio.sleep(self._every - self._stall)
            loop.now += self._stall
        return await super().send(request, body, planned)


@pytest.mark.parametrize(
    ("stall", "every", "good"),
    [(1.0, 2.0, False), (0.3, 10.0, False), (0.08, 10.0, True), (0.005, 0.1, True)],
)
def test_a_share_of_beats_is_a_share_of_the_time(stall: float, every: float, good: bool) -> None:
    """Also where nothing is sent: only the times of tokens show it then."""
    loop = VirtualTime()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        client = Answering(40.0, stall, every)
        observed = runner.run(offer([Planned(0, 0.0, "x", 1, 1)], client, clock=loop.time))
    assert observed.lag.send_p99_ms < 1
    between_beats_ms = 52
    assert 1000 * stall - between_beats_ms < observed.lag.loop_max_ms < 1000 * stall + 2
    assert observed.lag.within(10.0) == good


@pytest.mark.parametrize(("seconds", "good"), [(1.0, False), (0.001, True)])
def test_a_terminal_that_blocks_is_lag(seconds: float, good: bool) -> None:
    """As after Ctrl-S: nothing is read meanwhile."""
    loop = VirtualTime()
    beats = 0

    def draw() -> None:
        nonlocal beats
        beats += 1
        if beats % 100 == 0:
            loop.now += seconds

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        client = Answering(40.0, 0.0, 1.0)
        plan = [Planned(0, 0.0, "x", 1, 1)]
        observed = runner.run(offer(plan, client, on_beat=draw, clock=loop.time))
    assert observed.lag.within(10.0) == good


@pytest.mark.parametrize(("seconds", "good"), [(0.2, True), (0.5, False)])
def test_what_is_made_ready_before_the_start_is_no_lag(seconds: float, good: bool) -> None:
    """That it is not ready in time is."""

    class Opening(Answering):
        def spare(self) -> Spare:
            loop.now += seconds
            return super().spare()

    loop = VirtualTime()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        client = Opening(5.0, 0.0, 1.0)
        observed = runner.run(offer([Planned(0, 0.0, "x", 1, 1)], client, clock=loop.time))
    assert observed.lag.within(10.0) == good


def test_it_is_told_of_time_that_passes_without_an_end() -> None:
    """So that somebody who watches sees it too."""
    beaten = asyncio.Event()
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            beaten.set()

    class Waiting(Late):
        async def send(self, *args: Any) -> Outcome:
            await beaten.wait()
            return Outcome(0, 1, 1, 0.0, 0.0, 0.0)

    plan = [Planned(0, 0.0, "x", 1, 1)]
    observed = asyncio.run(asyncio.wait_for(offer(plan, Waiting([]), on_beat=beat), 30))
    assert len(observed.outcomes) == 1
