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
_PARTS = 20


@dataclass(frozen=True)
class Spread:
    """Means of equally many times each, from the least up, relative to the mean of all of them.
    Empty: each takes as long as the mean."""

    parts: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    def at(self, nth: int) -> float:
        """Of the nth: in any order, and evenly from all parts however few are asked for."""
        return self.parts[int(nth * GOLDEN % 1 * len(self.parts))] if self.parts else 1.0

    def as_entry(self) -> list[float]:
        return [float(f"{part:.4g}") for part in self.parts]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Empty where there are too few of them to tell."""
        if len(values) < _PARTS or not (mean := fmean(values)) > 0:
            return cls()
        ordered, count = sorted(values), len(values)
        cuts = (count * part // _PARTS for part in range(_PARTS + 1))
        means = [fmean(ordered[begin:end]) for begin, end in pairwise(cuts)]
        return cls(tuple(max(0.0, part / mean) for part in means))

    @classmethod
    def from_entry(cls, entry: Sequence[float]) -> Spread:
        """Raises TypeError and ValueError for what is none."""
        parts = tuple(map(float, entry))
        for part in parts:
            if not (part >= 0 and isfinite(part)):
                raise ValueError(f"serving's spread has {part:g}, which cannot be")
        return cls(parts)
