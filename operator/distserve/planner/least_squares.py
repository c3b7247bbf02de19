"""Least squares on the relative error, over coefficients that are not negative.

A step of 2 ms matters as much as one of 200, and more work never makes a step shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = Sequence[float]

_ROUNDS = 3
_LEAST = 0.1
"""Of a time, where next to nothing is expected."""
_STEPS, _TOLERANCE = 3, 1e-12


def relative(
    rows: Sequence[Row],
    measured: Sequence[float],
    expected: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Coefficients of each column.

    Errors are relative to `expected`, by default to what was `measured`; both are above 0. Of times
    that scatter those that came out short would count for more than the long ones, relative to
    themselves. A row of weight 2 counts as two rows.
    """
    import numpy

    scales = numpy.asarray(measured if expected is None else expected, dtype=float)
    if weights is not None:
        scales = scales / numpy.sqrt(numpy.asarray(weights, dtype=float))
    wanted = numpy.asarray(measured, dtype=float) / scales
    weighted = numpy.asarray(rows, dtype=float) / scales[:, None]
    scale = numpy.abs(weighted).max(axis=0)  # columns differ by orders of magnitude
    scale[scale == 0] = 1.0
    return tuple(map(float, _not_negative(weighted / scale, wanted) / scale))


def _not_negative(rows: Any, wanted: Any) -> Any:
    """Lawson and Hanson's: one column more at a time, and out with those that fall below 0."""
    import numpy

    found = numpy.zeros(rows.shape[1])
    chosen = numpy.zeros(rows.shape[1], dtype=bool)
    for _ in range(_STEPS * len(found)):
        gain = rows.T @ (wanted - rows @ found)
        gain[chosen] = 0.0
        if gain.max(initial=0.0) <= _TOLERANCE * len(wanted):
            break
        chosen[gain.argmax()] = True
        while chosen.any():
            best = numpy.zeros_like(found)
            best[chosen] = numpy.linalg.lstsq(rows[:, chosen], wanted, rcond=None)[0]
            below = chosen & (best <= 0)
            if not below.any():
                found = best
                break
            part = (found[below] / (found[below] - best[below])).min()
            found = found + part * (best - found)
            chosen &= found > _TOLERANCE
            found[~chosen] = 0.0
    return found


def scattered(
    rows: Sequence[Row], measured: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, ...]:
    """The same of single times, not medians: relative to what is expected of them."""
    found = relative(rows, measured, weights=weights)
    for _ in range(_ROUNDS):
        predicted = [sum(c * x for c, x in zip(found, row, strict=True)) for row in rows]
        expected = [max(ms, _LEAST * time) for ms, time in zip(predicted, measured, strict=True)]
        found = relative(rows, measured, expected, weights)
    return found
