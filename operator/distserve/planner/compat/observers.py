"""End a probe as soon as its outcome is certain.

A quantile interpolates between two order statistics, so it is below its target for certain when as
many values as the upper one's rank are, and not below it when too few can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.planner.result import Slo
from distserve.workload import Trace


@dataclass(frozen=True)
class Miss:
    """A quantile that is not below its target; `found_ms` is None when only that is known."""

    metric: str
    percent: float
    found_ms: float | None
    target_ms: float

    @property
    def ratio(self) -> float | None:
        return self.found_ms / self.target_ms if self.found_ms is not None else None

    def __str__(self) -> str:
        found = f"{self.found_ms:.0f} ms" if self.found_ms is not None else "above it"
        return f"P{self.percent:g} {self.metric} is {found} and must be below {self.target_ms:g} ms"


class QuantileVote:
    """Counts values below and not below a target, each request once."""

    def __init__(self, count: int, percent: float) -> None:
        position = percent / 100 * (count - 1)
        low = int(position)
        self._good_needed = low + 1 if position == low else low + 2
        self._bad_needed = count - low
        self._good = self._bad = 0
        self.counted = [False] * count

    def count(self, request: int, good: bool) -> None:
        if not self.counted[request]:
            self.counted[request] = True
            self._good += good
            self._bad += not good

    @property
    def outcome(self) -> bool | None:
        """True: below the target for certain; False: not below it; None: not known yet."""
        if self._good >= self._good_needed:
            return True
        return False if self._bad >= self._bad_needed else None


class TpotObserver:
    """Judges TPOT where the first tokens are known beforehand."""

    def __init__(self, trace: Trace, first_token_ms: Sequence[float], slo: Slo) -> None:
        self._first_token_ms = first_token_ms
        self._output = trace.output_tokens
        self._slo = slo
        self._vote = QuantileVote(len(trace), slo.tpot_percent)
        # A request still decoding at its deadline misses, whenever it ends.
        self._deadlines = sorted(
            (first + slo.tpot_ms * output, request)
            for request, (first, output) in enumerate(
                zip(first_token_ms, trace.output_tokens, strict=True)
            )
        )
        self._next = 0

    def first_token(self, requests: range, now_ms: float) -> None:
        """Known already."""

    def finished(self, request: int, now_ms: float) -> None:
        tpot_ms = (now_ms - self._first_token_ms[request]) / self._output[request]
        self._vote.count(request, tpot_ms < self._slo.tpot_ms)

    def decided(self, now_ms: float) -> bool:
        while self._next < len(self._deadlines) and self._deadlines[self._next][0] < now_ms:
            self._vote.count(self._deadlines[self._next][1], good=False)
            self._next += 1
        return self.outcome is not None

    @property
    def outcome(self) -> bool | None:
        return self._vote.outcome

    @property
    def miss(self) -> Miss:
        return Miss("TPOT", self._slo.tpot_percent, None, self._slo.tpot_ms)


class ColocatedObserver:
    """Judges TTFT and TPOT where decode delays prefill and both unfold together."""

    def __init__(self, trace: Trace, slo: Slo) -> None:
        self._trace = trace
        self._slo = slo
        self._ttft = QuantileVote(len(trace), slo.ttft_percent)
        self._tpot = QuantileVote(len(trace), slo.tpot_percent)
        self._first_ms: dict[int, float] = {}
        self._next = 0  # requests before it have waited too long or have their first token

    def first_token(self, requests: range, now_ms: float) -> None:
        for request in requests:
            self._first_ms[request] = now_ms
            ttft_ms = now_ms - self._trace.arrival_ms[request]
            self._ttft.count(request, ttft_ms < self._slo.ttft_ms)

    def finished(self, request: int, now_ms: float) -> None:
        tpot_ms = (now_ms - self._first_ms[request]) / self._trace.output_tokens[request]
        self._tpot.count(request, tpot_ms < self._slo.tpot_ms)

    def decided(self, now_ms: float) -> bool:
        arrival, overdue = self._trace.arrival_ms, now_ms - self._slo.ttft_ms
        while self._next < len(arrival) and arrival[self._next] < overdue:
            if self._next not in self._first_ms:
                self._ttft.count(self._next, good=False)
            self._next += 1
        return self.outcome is not None

    @property
    def outcome(self) -> bool | None:
        votes = (self._ttft.outcome, self._tpot.outcome)
        if False in votes:
            return False
        return True if votes == (True, True) else None

    @property
    def miss(self) -> Miss:
        if self._ttft.outcome is False:
            return Miss("TTFT", self._slo.ttft_percent, None, self._slo.ttft_ms)
        return Miss("TPOT", self._slo.tpot_percent, None, self._slo.tpot_ms)
