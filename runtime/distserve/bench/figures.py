"""The report's figures, several systems in one: attainment, distributions, stages. Draws only.

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes say the
same again. matplotlib is imported here and nowhere else in the room.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from distserve.bench.analysis import (
    NOT_ITS_OWN,
    Own,
    Run,
    attainment,
    breakdown,
    classes,
    normalised,
    throughput,
)
from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import STAGES
from distserve.bench.tables import LEVELS, Question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*"  # one more than colours: no two of 56 systems have the same of both
_PARTS = (("both", "both", "-"), ("ttft", "TTFT", "--"), ("tpot", "TPOT", ":"))
_DECADE = 10
_CDF_RUNS = 4  # per system: lowest and highest rate and what lies evenly between
_HOLLOW = "hollow: INVALID"
_HEIGHT, _LINE, _LEGEND_COLUMNS = 3.8, 0.16, 2  # inches, of a figure and a line of its legend
_DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Picture:
    """One figure, drawn: the same in both formats."""

    name: str
    caption: str
    png: bytes
    svg: str


def _always(question: Question) -> bool:
    return True


def _some_run(test: Callable[[Run], bool]) -> Callable[[Question], bool]:
    return lambda question: any(map(test, question.runs))


@dataclass(frozen=True)
class Panel:
    """One pair of axes, and whether there is something to show on them."""

    draw: Callable[[Axes, Question], None]
    has_something: Callable[[Question], bool] = _always


def draw_all(question: Question, on_each: Callable[[], None] = lambda: None) -> list[Picture]:
    """Those figures that the data has something for; `on_each` is called after each. Raises
    BenchError without matplotlib."""
    figure_class = _matplotlib()
    pictures = []
    for name, caption, panels in _FIGURES:
        drawn = [panel for panel in panels if panel.has_something(question)]
        if not drawn:
            continue
        figure = figure_class(figsize=(5.2 * len(drawn), _HEIGHT), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axis, panel in zip(axes, drawn, strict=True):
            panel.draw(axis, question)
            axis.grid(alpha=0.3)
        pictures.append(_saved(name, caption, figure))
        on_each()
    return pictures


def _matplotlib() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError(
            "figures need matplotlib, in a checkout: pip install '.[bench]'; or --no-figures"
        ) from error
    return Figure


def _saved(name: str, caption: str, figure: Figure) -> Picture:
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=120)
    # Without the date, and with ids that are not made up anew: the same data draw the same file.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return Picture(name, caption, png.getvalue(), svg.getvalue())


def attainment_over_rate(axis: Axes, question: Question) -> None:
    for index, (system, runs) in enumerate(question.systems.items()):
        for part, words, dashes in _parts(question):
            shares = [100 * getattr(attainment(run, question.slo), part) for run in runs]
            _over_rate(axis, index, runs, shares, f"{system}, {words}", dashes, faint=dashes != "-")
    _attainment_axis(axis, "requests per second per GPU")


def attainment_over_scale(axis: Axes, question: Question) -> None:
    scales = sorted(question.scales, reverse=True)
    for index, run in enumerate(question.swept.values()):
        for part, words, dashes in _parts(question):
            shares = [
                100 * getattr(attainment(run, question.slo.scaled(scale)), part) for scale in scales
            ]
            _line(
                axis, index, scales, shares, f"{_at_rate(run, question)}, {words}", dashes,
                faint=dashes != "-", hollow=[not run.valid] * len(scales),
            )  # fmt: skip
    axis.invert_xaxis()
    _attainment_axis(axis, "scale of the objectives (tighter to the right)")


def _parts(question: Question) -> Sequence[tuple[str, str, str]]:
    """Where there is one objective only, `both` is that one."""
    if set(question.parts) == {part for part, _, _ in _PARTS}:
        return _PARTS
    return [("both", question.parts[-1].upper(), "-")]


def _at_rate(run: Run, question: Question) -> str:
    """Names a run, of several at one rate with their counts."""

    def rate(of: Run) -> str:
        return f"{of.rate_per_gpu:.3g}/s/GPU"

    alone = [rate(other) for other in question.systems[run.system]].count(rate(run)) == 1
    count = "" if alone else f", {run.requests} requests"
    return f"{run.system}, {rate(run)}{count}{'' if run.valid else ', INVALID'}"


def _attainment_axis(axis: Axes, x: str) -> None:
    for level in LEVELS:
        axis.axhline(100 * level, color="grey", linewidth=0.6)
    axis.set(xlabel=x, ylabel="requests within SLO, %", ylim=(-3, 103))
    _legend(axis)


def distribution(words: str, value: Callable[[Any], float | None]) -> Panel:
    """Of all asked requests: a curve ends at the share that was completed and measured."""

    def draw(axis: Axes, question: Question) -> None:
        for index, runs in enumerate(question.systems.values()):
            for step, run in enumerate(_some(runs)):
                values = sorted(v * 1000 for s in run.samples if (v := value(s)) is not None)
                if not values:
                    continue
                shares = [100 * (place + 1) / run.requests for place in range(len(values))]
                axis.step(
                    values, shares, where="post", color=COLOURS[index % len(COLOURS)],
                    marker=_MARKERS[index % len(_MARKERS)] if index >= len(COLOURS) else None,
                    markevery=0.1, markersize=4, alpha=1 - 0.2 * step, linestyle=_DASHES[step % 4],
                    linewidth=1.3, label=_at_rate(run, question),
                )  # fmt: skip
        axis.set(xlabel=f"{words}, ms", ylabel="of all asked requests, %", ylim=(-3, 103))
        _spread_axis(axis)
        _legend(axis)

    return Panel(draw, _some_run(lambda run: any(value(s) is not None for s in run.samples)))


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
    left, places = [0.0] * len(told), range(len(told))  # by place: equal names would share a bar
    for index, stage in enumerate(STAGES):
        widths = [100 * parts[stage] for _, parts in told]
        axis.barh(places, widths, left=left, color=COLOURS[index], label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(places, [_at_rate(run, question) for run, _ in told])
    axis.set(xlabel="mean share of a request's time, %")
    axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _per_token(part: str, words: str) -> Panel:
    def draw(axis: Axes, question: Question) -> None:
        for index, (system, runs) in enumerate(question.systems.items()):
            values = [1000 * getattr(normalised(run), part) for run in runs]
            _over_rate(axis, index, runs, values, system)
        axis.set(xlabel="requests per second per GPU", ylabel=f"mean {words}, ms per token")
        _legend(axis)

    return Panel(draw)


def _speed(all_of: str, good_of: str, words: str) -> Panel:
    """`all_of` and `good_of` are fields of Throughput."""

    def draw(axis: Axes, question: Question) -> None:
        for index, (system, runs) in enumerate(question.systems.items()):
            speeds = [throughput(run, question.slo) for run in runs]
            for field, label, dashes in ((good_of, "within SLO", "-"), (all_of, "all", "--")):
                values = [
                    getattr(speed, field) / run.gpus
                    for speed, run in zip(speeds, runs, strict=True)
                ]
                _over_rate(
                    axis, index, runs, values, f"{system}, {label}", dashes, faint=dashes != "-"
                )
        axis.set(xlabel="requests per second per GPU", ylabel=f"{words} per second per GPU")
        _legend(axis)

    return Panel(draw)


def _by_class(words: str, value: Callable[[Run, Question], float]) -> Panel:
    """A line a system and class; with more classes than kinds of dashes nobody could tell them."""

    def draw(axis: Axes, question: Question) -> None:
        for index, (system, runs) in enumerate(question.systems.items()):
            divided = [classes(run) for run in runs]
            for own, dashes in zip(question.classes, _DASHES, strict=False):
                parts = [parts[own] for parts in divided if own in parts]
                values = [value(part, question) for part in parts]
                _over_rate(axis, index, parts, values, f"{system}, {_promise(own)}", dashes)
        axis.set(xlabel="requests per second per GPU", ylabel=words)
        _legend(axis)

    return Panel(draw, lambda question: 0 < len(question.classes) <= len(_DASHES))


def _promise(own: Own) -> str:
    if own == NOT_ITS_OWN:
        return "the others"
    told = {"TTFT": own.ttft, "TPOT": own.tpot}
    return ", ".join(f"{name} {s * 1000:.4g} ms" for name, s in told.items() if s is not None)


def _percent_attained(run: Run, question: Question) -> float:
    return 100 * attainment(run, question.slo).both


def _mean_tpot_ms(run: Run, question: Question) -> float:
    tpot = [s.tpot * 1000 for s in run.samples if s.tpot is not None]
    return fmean(tpot) if tpot else math.nan


def _over_rate(
    axis: Axes, index: int, runs: Sequence[Run], ys: Sequence[float], label: str,
    dashes: str = "-", faint: bool = False,
) -> None:  # fmt: skip
    xs = [run.rate_per_gpu for run in runs]
    _line(axis, index, xs, ys, label, dashes, faint, [not run.valid for run in runs])


def _line(
    axis: Axes, index: int, xs: Sequence[float], ys: Sequence[float], label: str,
    dashes: str = "-", faint: bool = False, hollow: Sequence[bool] = (),
) -> None:  # fmt: skip
    colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
    alpha = 0.6 if faint else 1.0
    axis.plot(
        xs, ys, dashes, color=colour, marker=marker, markersize=4,
        linewidth=1.0 if faint else 1.8, alpha=alpha, label=label,
    )  # fmt: skip
    points = [(x, y) for x, y, empty in zip(xs, ys, hollow, strict=False) if empty]
    if points:
        told = _HOLLOW in axis.get_legend_handles_labels()[1]
        axis.plot(
            *zip(*points, strict=True), marker, color=colour, markersize=6,
            markerfacecolor="white", zorder=3, label=None if told else _HOLLOW,
        )  # fmt: skip


def _legend(axis: Axes) -> None:
    """Below the axes, where it hides nothing; the figure grows by it."""
    found = list(zip(*axis.get_legend_handles_labels(), strict=True))
    found.sort(key=lambda pair: pair[1] == _HOLLOW)
    if not found:
        return
    handles, labels = zip(*found, strict=True)
    axis.legend(
        handles, labels, fontsize=7, handlelength=3.5, ncols=_LEGEND_COLUMNS,
        loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False,
    )  # fmt: skip
    figure, lines = axis.get_figure(root=True), math.ceil(len(labels) / _LEGEND_COLUMNS)
    assert figure is not None
    figure.set_figheight(max(figure.get_figheight(), _HEIGHT + _LINE * lines))


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
        "Distribution of time to first token and of time per output token over all asked requests: "
        "a curve ends at the share that was completed.",
        (distribution("TTFT", lambda s: s.ttft), distribution("TPOT", lambda s: s.tpot)),
    ),
    (
        "stages",
        "Where the time of a request goes, and how long its KV cache travels.",
        (
            Panel(stages_of_runs, _some_run(lambda run: breakdown(run) is not None)),
            distribution("transmission", _stage("transmission")),
            distribution("queueing", _queueing),
        ),
    ),
    (
        "normalised",
        "Mean latency per token of the whole request, of its input and of its output; of completed "
        "requests.",
        (
            _per_token("total", "latency"),
            _per_token("input", "TTFT"),
            _per_token("output", "TPOT"),
        ),
    ),
    (
        "goodput",
        "Completed requests and tokens, and those within all objectives.",
        (
            _speed("requests", "goodput", "requests"),
            _speed("output_tokens", "goodput_tokens", "output tokens"),
        ),
    ),
    (
        "classes",
        "Requests by the objectives of their own: within them, and the mean TPOT of the completed.",
        (
            _by_class("requests within SLO, %", _percent_attained),
            _by_class("mean TPOT, ms", _mean_tpot_ms),
        ),
    ),
)
