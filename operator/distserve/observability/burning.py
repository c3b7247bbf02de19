"""How fast an error budget may burn before somebody is called: several windows, several speeds.

After the SRE workbook's "Alerting on SLOs", chapter 5: an alert needs a long window, so that it
means something, and a short one, so that it ends soon after the trouble does.

Their factors are for budgets of a percent and less. A budget of 10 % cannot burn 14.4 times as
fast as allowed: at 10 times every request misses. So a threshold ends halfway between the budget
and everything, and of windows that then have the same threshold the shortest stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Window:
    long: str
    short: str
    factor: float
    severity: str


WINDOWS: Final = (
    Window("1h", "5m", 14.4, "critical"),
    Window("6h", "30m", 6, "critical"),
    Window("1d", "2h", 3, "warning"),
    Window("3d", "6h", 1, "warning"),
)
"""2 % of a month's budget within the hour, 5 % within six; 10 % within a day or three."""


@dataclass(frozen=True)
class Threshold:
    window: Window
    missed: float
    """Share of requests above which both windows must lie."""


def thresholds(attainment_percent: int) -> Iterator[Threshold]:
    """Of an objective that this share of the requests is to meet. 100: no miss is allowed, so each
    one is reported."""
    budget = 1 - attainment_percent / 100
    most = (1 + budget) / 2 if budget else 0.0
    seen: set[float] = set()
    for window in WINDOWS:
        missed = round(min(window.factor * budget, most), 6)
        if missed not in seen:
            seen.add(missed)
            yield Threshold(window, missed)
