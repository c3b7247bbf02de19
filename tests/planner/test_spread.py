"""Single times about their mean."""

import math
from statistics import correlation, fmean

import pytest

from distserve.planner.serving import Serving
from distserve.planner.spread import PREFILLS, WAYS, Spread

UNEVEN = Spread((0.5, 1.0, 1.5))


def test_parts_are_means_of_equally_many() -> None:
    found = Spread.of([float(value) for value in range(80, 0, -1)])
    assert len(found.parts) == 20 and fmean(found.parts) == pytest.approx(1)
    assert found.parts[0] * 40.5 == pytest.approx(2.5) and found.parts[-1] * 40.5 == 78.5


def test_too_few_tell_nothing() -> None:
    assert not Spread.of([1.0] * 19) and not Spread.of([0.0] * 30)
    assert Spread().at(7, WAYS) == 1


@pytest.mark.parametrize("step", [WAYS, PREFILLS])
def test_each_part_comes_as_often_as_another(step: float) -> None:
    drawn = [UNEVEN.at(nth, step) for nth in range(300)]
    assert all(98 <= drawn.count(part) <= 102 for part in UNEVEN.parts)
    assert len(set(drawn[:5])) == 3, "also of the first few"
    assert UNEVEN.at(0, step) != UNEVEN.at(0, step, instance=1)


@pytest.mark.parametrize("later", [0, 1, 5, 13])
def test_ways_and_prefills_have_nothing_to_do_with_each_other(later: int) -> None:
    parts = Spread(tuple((0.5 + part) / 10 for part in range(20)))
    pairs = [(parts.at(n, WAYS), parts.at(n + later, PREFILLS)) for n in range(300)]
    assert abs(correlation(*zip(*pairs, strict=True))) < 0.1


def test_requests_ways_are_as_long_as_it_says() -> None:
    serving = Serving(
        request_ms=10.0, busy_request_ms=2.0, stream_request_ms=0.5, way_spread=UNEVEN
    )
    assert {serving.way_ms(nth, streams=0) for nth in range(9)} == {5.0, 10.0, 15.0}
    assert {serving.way_ms(nth, streams=4) for nth in range(9)} == {7.0, 14.0, 21.0}


def test_profiles_keep_it() -> None:
    serving = Serving(request_ms=2.0, way_spread=UNEVEN, prefill_spread=UNEVEN)
    assert Serving.from_entry(serving.as_entry()) == serving
    assert not {"way_spread", "prefill_spread"} & Serving(request_ms=2.0).as_entry().keys()


@pytest.mark.parametrize(
    ("part", "said"), [(-0.1, "has -0.1"), (math.inf, "has inf"), (0.5, "a mean of 0.75")]
)
def test_what_cannot_be_is_refused(part: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Serving.from_entry({"way_spread": [1.0, part]})
