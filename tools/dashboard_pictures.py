"""Pictures of the dashboards from a Prometheus, for documentation, without a Grafana.

python -m tools.dashboard_pictures --prometheus URL --output-dir docs/images

The layout is the JSON's own; times, units and colours are matplotlib's.
"""

import argparse
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distserve.observability.dashboards import DASHBOARDS
from distserve.observability.dashboards.operator import OPERATOR
from distserve.observability.grafana import dashboard_json
from distserve.observability.panels import Dashboard, Form, Panel, Query, Unit

STEPS = 120
Series = Sequence[tuple[str, list[float], list[float]]]
"""Legend, seconds since the begin, values."""
Ask = Callable[[Query], Series]


def asker(url: str, variables: Mapping[str, str], seconds: float, scrape_seconds: float) -> Ask:
    """Asks for the last `seconds`."""
    end = time.time()
    words = {
        **variables, "__rate_interval": f"{4 * scrape_seconds:g}s", "__range": f"{seconds:g}s",
    }  # fmt: skip

    def ask(query: Query) -> Series:
        expression = query.expression
        for name, value in words.items():
            expression = expression.replace(f"${name}", value)
        span = {"start": end - seconds, "end": end, "step": max(seconds / STEPS, 1)}
        asked = urllib.parse.urlencode({"query": expression, **span})
        with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return [_series(query.legend, one, end - seconds) for one in found]

    return ask


def _series(legend: str, found: Any, start: float) -> tuple[str, list[float], list[float]]:
    name = re.sub(r"\{\{(\w+)\}\}", lambda m: found["metric"].get(m[1], ""), legend).strip()
    times, values = zip(*found["values"], strict=True)
    return name or "-", [at - start for at in times], [float(value) for value in values]


def draw(dashboard: Dashboard, ask: Ask, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    placed = [p for p in json.loads(dashboard_json(dashboard))["panels"] if p["type"] != "row"]
    bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in placed)
    figure = Figure(figsize=(15, bottom * 0.36), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(dashboard.title)
    grid = figure.add_gridspec(bottom, 24)
    for panel, place in zip(dashboard.panels, placed, strict=True):
        at = place["gridPos"]
        cell = grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]]
        _panel(figure.add_subplot(cell), panel, ask)
    figure.savefig(file, dpi=70)


def _panel(axes: Any, panel: Panel, ask: Ask) -> None:
    scale = 100 if panel.unit is Unit.SHARE else 1
    unit = "%" if panel.unit is Unit.SHARE else panel.unit.value.replace("short", "")
    axes.set_title(f"{panel.title} [{unit}]" if unit else panel.title, fontsize=9)
    axes.tick_params(labelsize=7)
    found = [(query, series) for query in panel.queries for series in ask(query)]
    if panel.form is Form.NUMBER and found:
        axes.set_axis_off()
        value = f"{found[0][1][2][-1] * scale:.4g} {unit}"
        axes.text(0.5, 0.5, value, ha="center", va="center", fontsize=24)
        return
    for query, (name, times, values) in found:
        style = {"linestyle": "--", "color": "grey"} if query.target else {}
        axes.plot(times, [value * scale for value in values], label=name, linewidth=1, **style)
    # A line at 0 is seen too.
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    if found:
        names = axes.legend(fontsize=6, loc="upper left", ncols=1 + len(found) // 9)
        # Many lines: rather names over lines than no room for lines.
        names.set_in_layout(False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.dashboard_pictures", description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--deployment", help="none: the operator's dashboard alone")
    parser.add_argument("--seconds", type=float, default=900, help="how far back (default: 900)")
    parser.add_argument("--scrape-seconds", type=float, default=15, help="Prometheus' interval")
    args = parser.parse_args(argv)
    variables = {
        "namespace": args.namespace, "operator_namespace": args.namespace,
        "deployment": args.deployment or "",
    }  # fmt: skip
    ask = asker(args.prometheus, variables, args.seconds, args.scrape_seconds)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        if (dashboard is OPERATOR) == (args.deployment is None):
            file = args.output_dir / f"{dashboard.uid}.png"
            draw(dashboard, ask, file)
            print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
