"""What `benchmarks/bench_client.py` calls a missed aim."""

from dataclasses import replace

import pytest
from benchmarks.bench_client import Figures, Truth, compared, missed

from distserve.bench.openloop import Lag, Observed
from distserve.bench.outcome import Outcome

GOOD = Figures(
    asked=100, failures={}, most_streams=20, tokens_per_second=120.0,
    off={"TTFT": [0.5] * 100, "arrival": [0.1] * 100}, send_lag_p99_ms=0.1, loop_lag_p99_ms=0.1,
)  # fmt: skip


def test_nothing_is_missed_where_all_is_met() -> None:
    assert missed(GOOD, 20) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"failures": {"no tokens": 1}}, "1 of 100 requests failed: no tokens"),
        ({"most_streams": 18}, "at most 18 of 20 streams at once"),
        ({"off": {"TTFT": [0.1, 2.5]}}, "TTFT: p99 2.476 ms, aim below 2 ms"),
        ({"off": {"TTFT": []}}, "TTFT: p99 nan ms, aim below 2 ms"),
    ],
    ids=["failures", "streams", "p99", "nothing"],
)
def test_each_aim_can_be_missed(seen: dict[str, object], said: str) -> None:
    assert missed(replace(GOOD, **seen), 20) == [said]  # type: ignore[arg-type]


def test_the_client_is_compared_with_the_server() -> None:
    def request(index: int, sent: float, failure: str | None = None) -> Outcome:
        times = [sent + 0.1, sent + 0.3]
        return Outcome(index, 1, 2, sent, sent, sent + 0.5, times, 2, failure=failure)

    outcomes = [request(0, 0.0), request(1, 0.25), request(2, 1.0), request(3, 1.0, "no tokens")]
    truths = {o.index: Truth(o.sent + 0.01, [o.sent + 0.1, o.sent + 0.2]) for o in outcomes}
    found = compared(Observed(outcomes, Lag(1, 2, 3, 4), 0.0), truths)
    assert (found.asked, found.failures, found.most_streams) == (4, {"no tokens": 1}, 2)
    # One token of the second request between the first end and the last sending.
    assert found.tokens_per_second == pytest.approx(1 / 0.5)
    ttft, tpot, arrival = found.off.values()
    assert (ttft, tpot, arrival) == tuple(pytest.approx([ms] * 3) for ms in (10, 100, 10))
    assert compared(Observed([], Lag(0, 0, 0, 0), 0.0), {}).tokens_per_second == 0
