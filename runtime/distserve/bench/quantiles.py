"""Quantiles as the papers' scripts take them: linear between order statistics, NumPy's default."""

from __future__ import annotations

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], percent: float) -> float:
    """The `percent` quantile; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
