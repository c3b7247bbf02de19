"""Expressions that have a value also while nothing is asked: no hole in a graph, no 0/0."""

from typing import Final

WINDOW: Final = "$__rate_interval"
"""Grafana's word for four scrapes or more."""
SHOWN_TIME: Final = "$__range"
"""Grafana's word for all the time that is shown."""
LEAST: Final = "1e-9"
"""Below every rate that a counter can have, so that it only ever replaces a zero."""


def series(metric: str, *matchers: str) -> str:
    return f"{metric}{{{', '.join(matchers)}}}" if matchers else metric


def equals(label: str, value: str) -> str:
    return f'{label}="{value}"'


def total(counter: str, by: str = "", window: str = WINDOW) -> str:
    """Per second, summed."""
    return f"sum{_by(by)}(rate({counter}[{window}]))"


def ratio(part: str, whole: str) -> str:
    """0 while the whole is 0."""
    return f"{part} / clamp_min({whole}, {LEAST})"


def ratios(parts: str, whole: str) -> str:
    """Of parts with labels that the whole, which is one number, lacks; 0 while that is 0."""
    return f"{parts} / on () group_left () clamp_min({whole}, {LEAST})"


def mean(histogram: str, matchers: tuple[str, ...], by: str = "", window: str = WINDOW) -> str:
    """Of what a histogram observed; 0 while it observed nothing."""
    observed = total(series(f"{histogram}_sum", *matchers), by, window)
    return ratio(observed, total(series(f"{histogram}_count", *matchers), by, window))


def quantile(
    share: float, histogram: str, matchers: tuple[str, ...], by: str = "", window: str = WINDOW
) -> str:
    """Of what a histogram observed; 0 while it observed nothing.

    The comparison drops the NaN of an empty histogram; the count then has the same labels.
    """
    buckets = total(series(f"{histogram}_bucket", *matchers), f"le, {by}" if by else "le", window)
    observed = total(series(f"{histogram}_count", *matchers), by, window)
    return f"(histogram_quantile({share:g}, {buckets}) >= 0) or 0 * {observed}"


def attained(met: str, asked: str, by: str = "", window: str = WINDOW) -> str:
    """Share of the asked that met; 1 while nothing was asked.

    `by` are labels that `met` has and `asked` lacks. A request is counted in both at once, so no
    scrape comes between. Yet Prometheus extrapolates each counter's rate to the window's ends by
    itself, which can make the share a little more than all.
    """
    part, whole = total(met, by, window), total(asked, "", window)
    return f"clamp_max(({part} + {LEAST}) / on () group_left () ({whole} + {LEAST}), 1)"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
