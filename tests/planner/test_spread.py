"""Single times about their mean."""

import math
from statistics import fmean

import pytest

from distserve.planner.serving import Serving
from distserve.planner.spread import Spread

UNEVEN = Spread((0.5, 1.0, 1.5))


def test_parts_are_means_of_equally_many() -> None:
    found = Spread.of([float(value) for value in range(80, 0, -1)])
    assert len(found.parts) == 20 and fmean(found.parts) == pytest.approx(1)
    assert found.parts[0] * 40.5 == pytest.approx(2.5) and found.parts[-1] * 40.5 == 78.5


def test_too_few_tell_nothing() -> None:
    assert not Spread.of([1.0] * 19) and not Spread.of([0.0] * 30)
    assert Spread().at(7) == 1


def test_each_part_comes_as_often_as_another() -> None:
    drawn = [UNEVEN.at(nth) for nth in range(30)]
    assert all(9 <= drawn.count(part) <= 11 for part in UNEVEN.parts)
    assert len(set(drawn[:4])) == 3, "also of the first few"


def test_requests_ways_are_as_long_as_it_says() -> None:
    serving = Serving(request_ms=10.0, busy_request_ms=2.0, way_spread=UNEVEN)
    assert {serving.way_ms(nth, busy=False) for nth in range(9)} == {5.0, 10.0, 15.0}
    assert {serving.way_ms(nth, busy=True) for nth in range(9)} == {6.0, 12.0, 18.0}


def test_profiles_keep_it() -> None:
    serving = Serving(request_ms=2.0, way_spread=UNEVEN, prefill_spread=UNEVEN)
    assert Serving.from_entry(serving.as_entry()) == serving
    assert not {"way_spread", "prefill_spread"} & Serving(request_ms=2.0).as_entry().keys()


@pytest.mark.parametrize("part", [-0.1, math.inf])
def test_what_cannot_be_is_refused(part: float) -> None:
    with pytest.raises(ValueError, match="spread has"):
        Serving.from_entry({"way_spread": [1.0, part]})
