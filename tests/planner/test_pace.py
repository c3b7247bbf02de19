"""A machine's pace from second to second."""

import math

import pytest

from distserve.planner.pace import Pace
from distserve.planner.serving import Serving

VARYING = Pace((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_it_goes_on_at_its_beginning() -> None:
    assert [VARYING.at(ms, prefills=True) for ms in (0, 999, 1000, 2000, 3000, 7500)] == [
        1, 1, 2, 3, 1, 2,
    ]  # fmt: skip
    assert VARYING.at(1000, prefills=False) == 5
    assert VARYING.left_ms(2300) == 700 and VARYING.left_ms(3000) == 1000


def test_where_nothing_was_measured_formulas_hold() -> None:
    assert Pace().at(1234, prefills=True, instance=3) == 1
    assert Pace().left_ms(1234) == math.inf
    assert not Pace() and Pace().later(4) == Pace()


def test_later_is_the_same_begun_elsewhere() -> None:
    assert VARYING.later(4) == Pace((2, 3, 1), (5, 6, 4))


def test_profiles_keep_it() -> None:
    serving = Serving(step_ms=2.0, pace=VARYING)
    assert Serving.from_entry(serving.as_entry()) == serving
    assert "pace" not in Serving(step_ms=2.0).as_entry()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"decode": []}, "not as many intervals"),
        ({"prefill": [0.0]}, "pace has 0, which cannot be"),
        ({"decode": [math.inf]}, "pace has inf"),
        ({"interval_ms": 500}, "other intervals than of 1000 ms"),
        ({"hybrid": [1.0]}, "is interval_ms, prefill and decode"),
    ],
)
def test_what_cannot_be_is_refused(entry: dict[str, object], message: str) -> None:
    whole = {"interval_ms": 1000.0, "prefill": [1.0], "decode": [1.0]}
    with pytest.raises(ValueError, match=message):
        Serving.from_entry({"pace": {**whole, **entry}})
