"""What `benchmarks/bench_client.py` calls a missed aim, and what the machine's fault."""

from dataclasses import replace

import pytest
from benchmarks.bench_client import Figures, Truth, compared, missed
from benchmarks.pauses import Pauses

from distserve.bench.openloop import Lag, Observed
from distserve.bench.outcome import Outcome

GOOD = Figures(
    asked=100, failures={}, most_streams=20, tokens_per_second=120.0,
    off={"TTFT": [0.5] * 100, "arrival": [0.1] * 100}, off_all={}, pauses=Pauses(),
    send_lag_p99_ms=0.1, loop_lag_p99_ms=0.1,
)  # fmt: skip


def test_nothing_is_missed_where_all_is_met() -> None:
    assert missed(GOOD, 20) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"failures": {"no tokens": 1}}, "1 of 100 requests failed: no tokens"),
        ({"most_streams": 18}, "at most 18 of 20 streams at once"),
        ({"off": {"TTFT": [0.1] * 98 + [2.5] * 2}}, "TTFT: p99 2.500 ms, aim below 2 ms"),
        (
            {"off": {"TTFT": [2.5] * 49}},
            "the machine left 49 of 100 requests alone: not judged; run it again on a quieter one",
        ),
        ({"asked": 0, "off": {"TTFT": []}}, "TTFT: p99 nan ms, aim below 2 ms"),
    ],
    ids=["failures", "streams", "p99", "pauses", "nothing"],
)
def test_each_aim_can_be_missed(seen: dict[str, object], said: str) -> None:
    assert missed(replace(GOOD, **seen), 20) == [said]  # type: ignore[arg-type]


def test_the_client_is_compared_with_the_server() -> None:
    def request(index: int, sent: float, failure: str | None = None) -> Outcome:
        times = [sent + 0.1, sent + 0.3]
        return Outcome(index, 1, 2, sent, sent, sent + 0.5, times, 2, failure=failure)

    outcomes = [request(0, 0.0), request(1, 0.25), request(2, 1.0), request(3, 1.0, "no tokens")]
    truths = {o.index: Truth(o.sent + 0.01, [o.sent + 0.1, o.sent + 0.2]) for o in outcomes}
    seen = Observed(outcomes, Lag(1, 2, 3, 4), 0.0)
    found = compared(seen, truths, Pauses())
    assert (found.asked, found.failures, found.most_streams) == (4, {"no tokens": 1}, 2)
    # One token of the second request between the first end and the last sending.
    assert found.tokens_per_second == pytest.approx(1 / 0.5)
    assert found.off == found.off_all
    ttft, tpot, arrival = found.off.values()
    assert (ttft, tpot, arrival) == tuple(pytest.approx([ms] * 3) for ms in (10, 100, 10))
    nothing = compared(Observed([], Lag(0, 0, 0, 0), 0.0), {}, Pauses())
    assert nothing.tokens_per_second == 0
    # The second's first token came after a pause, before what had waited for it was worked off.
    paused = compared(seen, truths, Pauses(spans=[(0.33, 0.345)]))
    assert [len(ms) for ms in paused.off.values()] == [2, 2, 2]
    assert paused.off_all == found.off_all


@pytest.mark.parametrize(
    ("at", "touched"),
    [(0.9, False), (1.01, True), (1.3, True), (1.5, True), (2.0, True), (3.99, True), (4.1, False)],
)
def test_a_pause_is_felt_for_its_own_length_after_it(at: float, touched: bool) -> None:
    pauses = Pauses(spans=[(1.0, 2.5), (1.2, 1.3), (7.0, 8.0)])
    assert pauses.touch([0.1, at]) is touched
    assert not Pauses().touch([at])
