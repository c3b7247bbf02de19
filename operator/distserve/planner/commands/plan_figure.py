"""Attainment over rate for a plan: where it holds, and how it fails beyond."""

from __future__ import annotations

from pathlib import Path

from distserve.planner.commands.arguments import writing
from distserve.planner.errors import InvalidRequest
from distserve.planner.plan import FORECAST_REQUESTS, Plan, PlanRequest, attainment_at

SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)


def draw_attainment(path: Path, request: PlanRequest, plan: Plan) -> None:
    """Draw the share of requests within the SLO at rates around the plan's goodput."""
    import matplotlib

    if not plan.total_goodput or plan.unit is None:
        raise InvalidRequest("there is nothing to draw: the plan has no units that meet the SLO")
    matplotlib.use("agg")
    from matplotlib import pyplot

    rates = [share * plan.total_goodput for share in SHARES]
    attained = [
        attainment_at(request, plan.unit, rate / plan.units, FORECAST_REQUESTS) for rate in rates
    ]
    figure, axis = pyplot.subplots(figsize=(5, 3.2))
    axis.plot(rates, attained, marker="o")
    axis.axhline(request.slo.ttft_percent, color="grey", linewidth=0.5)
    if request.rate is not None:
        axis.axvline(request.rate, color="grey", linewidth=0.5, linestyle=":")
    axis.set_xlabel("requests/s")
    axis.set_ylabel("requests within the SLO (%)")
    figure.tight_layout()
    with writing(path):
        figure.savefig(path)
    pyplot.close(figure)
