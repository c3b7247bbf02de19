"""The report's figures, several systems in one: attainment, distributions, stages. Draws only.

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes say the
same again. matplotlib is imported here and nowhere else in the room.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distserve.bench.analysis import Run, attainment, breakdown, normalised, throughput
from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import STAGES
from distserve.bench.tables import LEVELS, Question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_PARTS = (("both", "both", "-"), ("ttft", "TTFT", "--"), ("tpot", "TPOT", ":"))
_DECADE = 10
_CDF_RUNS = 4  # per system: lowest and highest rate and what lies evenly between


@dataclass(frozen=True)
class Picture:
    """One figure, drawn: the same in both formats."""

    name: str
    caption: str
    png: bytes
    svg: str


def _always(run: Run) -> bool:
    return True


@dataclass(frozen=True)
class Panel:
    """One pair of axes, and which runs have something to show there."""

    draw: Callable[[Axes, Question], None]
    needs: Callable[[Run], bool] = _always


def draw_all(question: Question) -> list[Picture]:
    """Those figures that the data has something for. Raises BenchError without matplotlib."""
    figure_class = _matplotlib()
    pictures = []
    for name, caption, panels in _FIGURES:
        drawn = [panel for panel in panels if any(map(panel.needs, question.runs))]
        if not drawn:
            continue
        figure = figure_class(figsize=(5.2 * len(drawn), 3.8), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axis, panel in zip(axes, drawn, strict=True):
            panel.draw(axis, question)
            axis.grid(alpha=0.3)
        pictures.append(_saved(name, caption, figure))
    return pictures


def _matplotlib() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError(
            "figures need matplotlib; pip install 'distserve[bench]', or --no-figures"
        ) from error
    return Figure


def _saved(name: str, caption: str, figure: Figure) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=120)
    # Without the date: the same data draw the same file.
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(name, caption, png.getvalue(), svg.getvalue())


def attainment_over_rate(axis: Axes, question: Question) -> None:
    for index, (system, runs) in enumerate(question.systems.items()):
        rates = [run.rate_per_gpu for run in runs]
        for part, words, dashes in _PARTS:
            shares = [100 * getattr(attainment(run, question.slo), part) for run in runs]
            _line(axis, index, rates, shares, f"{system}, {words}", dashes, faint=part != "both")
    _attainment_axis(axis, "requests per second per GPU")


def attainment_over_scale(axis: Axes, question: Question) -> None:
    scales = sorted(question.scales, reverse=True)
    for index, (system, runs) in enumerate(question.systems.items()):
        run = runs[0]
        for part, words, dashes in _PARTS:
            shares = [
                100 * getattr(attainment(run, question.slo.scaled(scale)), part) for scale in scales
            ]
            label = f"{system}, {words}, at {run.rate_per_gpu:.3g}/s/GPU"
            _line(axis, index, scales, shares, label, dashes, faint=part != "both")
    axis.invert_xaxis()
    _attainment_axis(axis, "scale of both objectives (tighter to the right)")


def _attainment_axis(axis: Axes, x: str) -> None:
    for level in LEVELS:
        axis.axhline(100 * level, color="grey", linewidth=0.6)
    axis.set(xlabel=x, ylabel="requests within SLO, %", ylim=(-3, 103))
    axis.legend(fontsize=7)


def _cdf(words: str, value: Callable[[Any], float | None]) -> Panel:
    def draw(axis: Axes, question: Question) -> None:
        for index, (system, runs) in enumerate(question.systems.items()):
            for step, run in enumerate(_some(runs)):
                values = sorted(v * 1000 for s in run.samples if (v := value(s)) is not None)
                if not values:
                    continue
                shares = [100 * (place + 1) / len(values) for place in range(len(values))]
                axis.step(
                    values, shares, where="post", color=COLOURS[index % len(COLOURS)],
                    alpha=1 - 0.2 * step, linestyle=("-", "--", "-.", ":")[step % 4],
                    linewidth=1.3, label=f"{system}, {run.rate_per_gpu:.3g}/s/GPU",
                )  # fmt: skip
        axis.set(xlabel=f"{words}, ms", ylabel="requests, %")
        _spread_axis(axis)
        axis.legend(fontsize=7)

    return Panel(draw, lambda run: any(value(s) is not None for s in run.samples))


def _spread_axis(axis: Axes) -> None:
    """Logarithmic where the values spread over more than a decade, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.dataLim.intervalx
    if low > 0 and high > _DECADE * low:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter("{x:g}")


def _stage(name: str) -> Callable[[Any], float | None]:
    return lambda sample: sample.stages[name] if sample.stages else None


def _queueing(sample: Any) -> float | None:
    stages = sample.stages
    return stages["prefill queueing"] + stages["decode queueing"] if stages else None


def stages_of_runs(axis: Axes, question: Question) -> None:
    told = [(run, parts) for run in question.runs if (parts := breakdown(run)) is not None]
    left = [0.0] * len(told)
    names = [f"{run.system}, {run.rate_per_gpu:.3g}/s/GPU" for run, _ in told]
    for index, stage in enumerate(STAGES):
        widths = [100 * parts[stage] for _, parts in told]
        axis.barh(names, widths, left=left, color=COLOURS[index], label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(xlabel="mean share of a request's time, %")
    axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _per_token(part: str, words: str) -> Panel:
    def draw(axis: Axes, question: Question) -> None:
        for index, (system, runs) in enumerate(question.systems.items()):
            rates = [run.rate_per_gpu for run in runs]
            values = [1000 * getattr(normalised(run), part) for run in runs]
            _line(axis, index, rates, values, system)
        axis.set(xlabel="requests per second per GPU", ylabel=f"mean {words}, ms per token")
        axis.legend(fontsize=7)

    return Panel(draw)


def goodput_over_rate(axis: Axes, question: Question) -> None:
    for index, (system, runs) in enumerate(question.systems.items()):
        rates = [run.rate_per_gpu for run in runs]
        speeds = [throughput(run, question.slo) for run in runs]
        done = [speed.requests / run.gpus for speed, run in zip(speeds, runs, strict=True)]
        good = [speed.goodput / run.gpus for speed, run in zip(speeds, runs, strict=True)]
        _line(axis, index, rates, good, f"{system}, within SLO")
        _line(axis, index, rates, done, f"{system}, all", "--", faint=True)
    axis.set(xlabel="requests per second per GPU", ylabel="completed per second per GPU")
    axis.legend(fontsize=7)


def _line(
    axis: Axes, index: int, xs: list[float], ys: list[float], label: str,
    dashes: str = "-", faint: bool = False,
) -> None:  # fmt: skip
    axis.plot(
        xs, ys, dashes, color=COLOURS[index % len(COLOURS)], marker=_MARKERS[index % 7],
        markersize=4, linewidth=1.0 if faint else 1.8, alpha=0.6 if faint else 1.0, label=label,
    )  # fmt: skip


def _some(runs: list[Run]) -> Iterable[Run]:
    if len(runs) <= _CDF_RUNS:
        return runs
    last = len(runs) - 1
    return [runs[place * last // (_CDF_RUNS - 1)] for place in range(_CDF_RUNS)]


_FIGURES: tuple[tuple[str, str, tuple[Panel, ...]], ...] = (
    (
        "attainment",
        "Share of all asked requests that met the objectives, over rate and over their scale.",
        (Panel(attainment_over_rate), Panel(attainment_over_scale)),
    ),
    (
        "latency",
        "Distribution of time to first token and of time per output token.",
        (_cdf("TTFT", lambda s: s.ttft), _cdf("TPOT", lambda s: s.tpot)),
    ),
    (
        "stages",
        "Where the time of a request goes, and how long its KV cache travels.",
        (
            Panel(stages_of_runs, lambda run: breakdown(run) is not None),
            _cdf("transmission", _stage("transmission")),
            _cdf("queueing", _queueing),
        ),
    ),
    (
        "normalised",
        "Mean latency per token of the whole request, of its input and of its output.",
        (
            _per_token("total", "latency"),
            _per_token("input", "TTFT"),
            _per_token("output", "TPOT"),
        ),
    ),
    (
        "goodput",
        "Completed requests, and those within both objectives.",
        (Panel(goodput_over_rate),),
    ),
)
