"""Arrivals within a window: LoongServe's instants, beside the other processes' in tests/planner."""

import itertools

import numpy as np
import pytest

from distserve.workload import ArrivalProcess, WorkloadError


def loongserve_s(count: int, rate: float, seed: int) -> list[float]:
    """By NumPy alone: stamps of a unit rate, the first taken as 0, the last as count/rate."""
    stamps = np.cumsum(np.random.RandomState(seed).exponential(1.0, size=40_000))[:count]
    since_first = stamps - stamps[0]
    return list(since_first * (count / rate) / since_first[-1] * 1000)


@pytest.mark.parametrize(("count", "rate", "seed"), [(2, 1.0, 0), (50, 0.3, 0), (1000, 19.0, 7)])
def test_a_window_has_loongserve_s_instants(count: int, rate: float, seed: int) -> None:
    times = ArrivalProcess("window", seed=seed).times_ms(count, rate)
    assert times == pytest.approx(loongserve_s(count, rate, seed), rel=1e-12)
    assert (times[0], times[-1]) == (0.0, count / rate * 1000)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_a_window_of_one_and_of_no_time() -> None:
    assert ArrivalProcess("window").times_ms(1, 4.0) == [0.0]
    assert ArrivalProcess("window").times_ms(3, float("inf")) == [0.0] * 3


@pytest.mark.parametrize("cv", [0.0, -1.0, 1e-200, 1e200, float("nan"), float("inf")])
def test_gaps_vary_by_a_finite_number(cv: float) -> None:
    with pytest.raises(WorkloadError, match=r"cv must be from 0\.001 to 100"):
        ArrivalProcess("gamma", cv)


@pytest.mark.parametrize("cv", [0.001, 100.0])
def test_the_least_and_the_most_variation_can_be_drawn(cv: float) -> None:
    times = ArrivalProcess("gamma", cv).times_ms(100, 2.0)
    assert all(0 <= later - earlier < float("inf") for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("kind", ["poisson", "gamma", "window"])
def test_a_seed_is_one_that_can_be_drawn_from(kind: str) -> None:
    for seed in (-1, 2**32):
        with pytest.raises(WorkloadError, match=f"from 0 to 4294967295, got {seed}"):
            ArrivalProcess(kind, seed=seed)
    assert len(ArrivalProcess(kind, seed=2**32 - 1).times_ms(3, 1.0)) == 3
    assert ArrivalProcess("fixed", seed=-1).times_ms(2, 1.0) == [0, 1000]
