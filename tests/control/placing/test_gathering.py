"""Who comes alone is decided at once; who comes in a burst waits for its end, which has a bound."""

from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.gathering import Gathering


def test_one_that_comes_alone_does_not_wait() -> None:
    gathering = Gathering(quiet_seconds=0.3, longest_seconds=2.0)
    assert gathering.left_seconds(0.0) == 0
    for now in (10.0, 11.0, 12.0):
        gathering.come(now)
        assert gathering.left_seconds(now) == 0


def test_several_wait_until_no_more_come() -> None:
    gathering = Gathering(quiet_seconds=0.25, longest_seconds=2.0)
    for now in (10.0, 10.125, 10.25):
        gathering.come(now)
    assert gathering.opened == 10.125
    assert gathering.left_seconds(10.25) == 0.25
    assert gathering.left_seconds(10.5) == 0
    gathering.done()
    assert gathering.left_seconds(10.5) == 0


@given(st.lists(st.floats(0, 0.25), min_size=2, max_size=40))
def test_nobody_waits_longer_than_the_bound(gaps: list[float]) -> None:
    """However they go on coming."""
    gathering, now = Gathering(quiet_seconds=0.3, longest_seconds=1.0), 100.0
    for gap in gaps:
        now += gap
        gathering.come(now)
        assert gathering.opened is None or now + gathering.left_seconds(now) <= max(
            now, gathering.opened + 1.0
        )


def test_a_clock_that_is_put_back_makes_nobody_wait_longer() -> None:
    gathering = Gathering(quiet_seconds=0.3, longest_seconds=2.0)
    gathering.come(1000.0)
    gathering.come(1000.1)
    assert gathering.left_seconds(10.0) == 0
    gathering.done()
    gathering.come(10.0)
    assert gathering.left_seconds(10.0) == 0
