"""A client's lag is what it could have done better; several requests at one instant it cannot."""

import asyncio
from collections.abc import Sequence

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
