"""How fast a machine is from second to second: who shares a host, or is throttled, is not always as
fast as in the mean, and a deployment's slowest tenth is made in its slow seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

INTERVAL_MS = 1000.0
_APART = 0.382
"""Of the series, between two instances: they lie on machines that are slow at other times."""


@dataclass(frozen=True)
class Pace:
    """Times as long as a step of each phase takes than its formula says, one interval after
    another; from the end it goes on at the beginning. Empty: the formula holds at every moment."""

    prefill: tuple[float, ...] = ()
    decode: tuple[float, ...] = ()
    """As many as of prefill."""

    def __bool__(self) -> bool:
        return bool(self.prefill)

    def at(self, now_ms: float, prefills: bool, instance: int = 0) -> float:
        """Of a step that begins now on the instance of this number."""
        series = self.prefill if prefills else self.decode
        if not series:
            return 1.0
        first = int(instance * _APART * len(series))
        return series[(first + int(now_ms / INTERVAL_MS)) % len(series)]

    def left_ms(self, now_ms: float) -> float:
        """Until it may be another."""
        return INTERVAL_MS - now_ms % INTERVAL_MS if self else inf

    def later(self, intervals: int) -> Pace:
        """The same, begun so much later."""
        first = intervals % max(1, len(self.prefill))
        return Pace(
            self.prefill[first:] + self.prefill[:first], self.decode[first:] + self.decode[:first]
        )

    def as_entry(self) -> dict[str, Any]:
        """`interval_ms`, and of each phase one value for each of them."""
        rounded = {
            phase: [float(f"{value:.4g}") for value in series]
            for phase, series in (("prefill", self.prefill), ("decode", self.decode))
        }
        return {"interval_ms": INTERVAL_MS, **rounded}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Pace:
        """Raises TypeError and ValueError for what is none."""
        if entry.keys() != {"interval_ms", "prefill", "decode"}:
            raise ValueError("serving's pace is interval_ms, prefill and decode")
        if entry["interval_ms"] != INTERVAL_MS:
            raise ValueError(f"serving's pace has other intervals than of {INTERVAL_MS:g} ms")
        pace = cls(*(tuple(map(float, entry[phase])) for phase in ("prefill", "decode")))
        if len(pace.prefill) != len(pace.decode):
            raise ValueError("serving's pace has not as many intervals of prefill as of decode")
        for value in (*pace.prefill, *pace.decode):
            if not (value > 0 and isfinite(value)):
                raise ValueError(f"serving's pace has {value:g}, which cannot be")
        return pace
