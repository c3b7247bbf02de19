"""What several dashboards have: their variables, and a panel of a histogram's percentiles."""

from typing import Final

from distserve.observability.panels import Panel, Query, Unit, Variable
from distserve.observability.promql import quantile
from distserve.observability.selecting import DEPLOYMENT, REQUESTS, SHOWN

OF_DEPLOYMENT: Final = (
    Variable("namespace", REQUESTS, "namespace"),
    Variable("deployment", f'{REQUESTS}{{namespace="$namespace"}}', DEPLOYMENT),
)
NO_MIGRATORS: Final = "no migrators"
"""Instances that do both phases have none."""
PERCENTILES: Final = (0.5, 0.9, 0.99)


def percentiles(
    title: str,
    description: str,
    histogram: str,
    *targets: Query,
    matchers: tuple[str, ...] = SHOWN,
) -> Panel:
    found = (Query(quantile(q, histogram, matchers), f"p{q * 100:g}") for q in PERCENTILES)
    return Panel(title, f"{description} 0 while there was none.", (*found, *targets), Unit.SECONDS)


def by_label(
    title: str,
    description: str,
    share: float,
    histogram: str,
    label: str,
    *matchers: str,
    unit: Unit = Unit.SECONDS,
    width: int = Panel.width,
) -> Panel:
    """One percentile for each value of a label."""
    query = Query(quantile(share, histogram, (*SHOWN, *matchers), label), legend(label))
    return Panel(title, f"{description} 0 while there was none.", (query,), unit, width=width)


def legend(*labels: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)
