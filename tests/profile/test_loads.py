"""What a load is made of, as far as chance draws it."""

from itertools import pairwise
from random import Random
from statistics import fmean, pstdev
from time import perf_counter
from typing import Any

import pytest

from distserve.profile import loads


async def test_gaps_of_those_that_come_are_as_long_as_chance_has_it() -> None:
    """Ten a second were answered; drawn from a seed, so that they are the same each time."""
    came: list[float] = []

    class Offered:
        async def offer(self, instants: list[float], lengths: list[tuple[int, int]]) -> list[Any]:
            assert len(instants) == len(lengths)
            came.extend(instants)
            return []

    load = loads._Load(16, perf_counter() - 200, Random(1), loads.usual(), answered=2000)
    asker: Any = Offered()
    await loads._whenever_they_come(asker, load)
    gaps = [after - before for before, after in pairwise([0.0, *came])]
    assert len(gaps) == 2000 and min(gaps) > 0
    assert fmean(gaps) == pytest.approx(0.1, rel=0.1)
    assert pstdev(gaps) == pytest.approx(0.1, rel=0.1), "Poisson's"
