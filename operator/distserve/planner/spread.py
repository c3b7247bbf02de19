"""How far single times lie from their mean: a tenth of a service's requests is made slow by its
slowest steps and ways as much as by its longest prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from statistics import fmean

GOLDEN = 0.618034
"""Whose multiples lie evenly between two whole numbers, however many there are."""
WAYS, PREFILLS = 0.754878, 0.569840
"""The same of pairs: whatever way a request has, its prefill may be as short or as long."""
_APART = 0.382
"""Of all parts, between two instances."""
_PARTS = 20
_ROUNDED = 0.01


@dataclass(frozen=True)
class Spread:
    """Means of equally many times each, from the least up, relative to the mean of all of them.
    Empty: each takes as long as the mean."""

    parts: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    def at(self, nth: int, step: float, instance: int = 0) -> float:
        """Of the nth on the instance of this number, evenly from all parts however few are asked
        for. `step` is one for all that is drawn together."""
        if not self.parts:
            return 1.0
        return self.parts[int((0.5 + nth * step + instance * _APART) % 1 * len(self.parts))]

    def as_entry(self) -> list[float]:
        return [float(f"{part:.4g}") for part in self.parts]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Empty where there are too few of them to tell."""
        if len(values) < _PARTS or not fmean(values) > 0:
            return cls()
        ordered, count = sorted(values), len(values)
        cuts = (count * part // _PARTS for part in range(_PARTS + 1))
        means = [fmean(ordered[begin:end]) for begin, end in pairwise(cuts)]
        mean = fmean(means)
        return cls(tuple(max(0.0, part / mean) for part in means))

    @classmethod
    def from_entry(cls, entry: Sequence[float]) -> Spread:
        """Raises TypeError and ValueError for what is none."""
        parts = tuple(map(float, entry))
        for part in parts:
            if not (part >= 0 and isfinite(part)):
                raise ValueError(f"serving's spread has {part:g}, which cannot be")
        if parts and abs(fmean(parts) - 1) > _ROUNDED:
            raise ValueError(f"serving's spread has a mean of {fmean(parts):g} and not of 1")
        return cls(parts)
