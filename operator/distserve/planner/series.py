"""Times of many decode steps at once: an arithmetic series, since the context grows evenly."""

from __future__ import annotations

import math


def steps_until(span_ms: float, first_ms: float, growth_ms: float) -> int:
    """Steps of an arithmetic series after which at least `span_ms` have passed (at least one)."""
    if span_ms <= first_ms:
        return 1
    # The positive root of  growth/2 * n^2 + (first - growth/2) * n - span, free of cancellation.
    slope = first_ms - growth_ms / 2
    root = math.sqrt(slope * slope + 2 * growth_ms * span_ms)
    steps = math.ceil(2 * span_ms / (slope + root))
    while series_ms(steps, first_ms, growth_ms) < span_ms:
        steps += 1
    while steps > 1 and series_ms(steps - 1, first_ms, growth_ms) >= span_ms:
        steps -= 1
    return steps


def series_ms(steps: int, first_ms: float, growth_ms: float) -> float:
    return steps * first_ms + growth_ms * (steps * (steps - 1) / 2)
