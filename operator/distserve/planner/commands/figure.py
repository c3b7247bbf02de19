"""The paper's ablation figure: attainment over rate and over SLO scale for four systems.

Each curve shows one configuration of its system: the one with the best goodput, that is with the
highest rate at which the asked share of requests (90 %) is within both SLOs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from distserve.planner.commands.arguments import writing
from distserve.planner.commands.run import SUMMARY_COLUMNS
from distserve.planner.errors import InvalidRequest

ATTAINMENT = 90.0
Row = dict[str, Any]
Point = tuple[float, float]


def refuse_undrawable(args: argparse.Namespace) -> None:
    """Raises InvalidRequest where the sweep would have nothing for one of the panels."""
    if not (_holds(args.slo_scales, 1.0) and _holds(args.per_gpu_rate, args.figure_rate)):
        raise InvalidRequest(
            "the figure needs 1.0 among --slo-scales and --figure-rate among --per-gpu-rate"
        )


def _holds(values: Sequence[float], wanted: float) -> bool:
    return any(abs(value - wanted) < 1e-9 for value in values)


def draw_ablation(args: argparse.Namespace, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write `args.figure`, and the plotted points as JSON where `args.output_points` asks."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = ablation_curves(args, rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    labels = ("rate per GPU (requests/s)", "SLO scale")
    for axis, label, curves in zip(axes, labels, panels.values(), strict=True):
        for name, points in curves.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.axhline(ATTAINMENT, color="grey", linewidth=0.5)
        axis.set_xlabel(label)
    axes[0].set_ylabel("requests within both SLOs (%)")
    axes[1].invert_xaxis()
    axes[0].legend()
    figure.tight_layout()
    with writing(args.figure):
        figure.savefig(args.figure)
    pyplot.close(figure)
    if args.output_points:
        with writing(args.output_points):
            args.output_points.write_text(json.dumps(panels, indent=1))


def ablation_curves(
    args: argparse.Namespace, rows: Sequence[tuple[Any, ...]]
) -> dict[str, dict[str, list[Point]]]:
    """{"rate": {system: [(rate, attainment)]}, "slo": {system: [(scale, attainment)]}}."""
    judged = [dict(zip(SUMMARY_COLUMNS, row, strict=True)) for row in rows if row[2] == "both"]
    for row in judged:
        gpus = row["tp_prefill"] * row["pp_prefill"] + row["tp_decode"] * row["pp_decode"]
        row["per_gpu_rate"] = row["rate"] / gpus
        row["scale"] = row["target"][0] / args.prefill_target
    full = [row for row in judged if abs(row["scale"] - 1) < 1e-9]
    fixed = [row for row in judged if abs(row["per_gpu_rate"] - args.figure_rate) < 1e-9]
    if not full or not fixed:
        raise InvalidRequest("every configuration was left out: there is nothing to draw")
    panels: dict[str, dict[str, list[Point]]] = {"rate": {}, "slo": {}}
    systems: dict[str, Callable[[Row], bool]] = {
        "dist++": lambda row: row["backend"] == "distserve",
        "dist": lambda row: row["backend"] == "distserve" and fits_nodes(args, row),
        "vllm++": lambda row: row["backend"] == "vllm",
        "vllm": lambda row: row["backend"] == "vllm" and row["pp_prefill"] == 1,
    }
    for name, belongs in systems.items():
        curves: dict[tuple[int, ...], list[Point]] = {}
        for row in filter(belongs, full):
            curves.setdefault(_degrees(row), []).append((row["per_gpu_rate"], row["attainment"]))
        if not curves:
            continue
        best = max(curves, key=lambda degrees: goodput(curves[degrees]))
        panels["rate"][name] = sorted(curves[best])
        panels["slo"][name] = sorted(
            (row["scale"], row["attainment"])
            for row in filter(belongs, fixed)
            if _degrees(row) == best
        )
    return panels


def goodput(curve: Sequence[Point]) -> tuple[float, float]:
    """The rate at which a curve of (rate, attainment) falls below ATTAINMENT, interpolated between
    its points; then, for curves that never reach it, their best attainment."""
    points = sorted(curve)
    most = max(attainment for _, attainment in points)
    holds = [index for index, (_, attainment) in enumerate(points) if attainment >= ATTAINMENT]
    if not holds:
        return 0.0, most
    rate, attainment = points[holds[-1]]
    if holds[-1] + 1 == len(points):
        return rate, most
    next_rate, below = points[holds[-1] + 1]
    return rate + (next_rate - rate) * (attainment - ATTAINMENT) / (attainment - below), most


def _degrees(row: Row) -> tuple[int, ...]:
    return tuple(
        row[f"{degree}_{role}"] for role in ("prefill", "decode") for degree in ("tp", "pp")
    )


def fits_nodes(args: argparse.Namespace, row: Row) -> bool:
    """Whether the pipelines can be cut into equal segments that each fit one node."""
    return any(
        row["pp_prefill"] % cut == 0
        and row["pp_decode"] % cut == 0
        and row["tp_prefill"] * row["pp_prefill"] // cut
        + row["tp_decode"] * row["pp_decode"] // cut
        <= args.ngpu_per_node
        for cut in range(1, args.num_node + 1)
    )
