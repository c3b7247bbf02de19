"""The paper's ablation figure: attainment over rate and over SLO scale for four systems.

Each curve shows one configuration of its system: on the rate panel the one that attains most at
the highest rate, on the SLO panel the one that attains most at the tightest SLO.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from distserve.planner.commands.run import SUMMARY_COLUMNS
from distserve.planner.errors import InvalidRequest

Row = dict[str, Any]
Point = tuple[float, float]


def draw_ablation(args: argparse.Namespace, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write `args.figure` and, beside it, the plotted points as JSON."""
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidRequest("--figure needs matplotlib: pip install distserve[bench]") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = ablation_curves(args, rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    labels = ("rate per GPU (requests/s)", "SLO scale")
    for axis, label, curves in zip(axes, labels, panels.values(), strict=True):
        for name, points in curves.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.axhline(90, color="grey", linewidth=0.5)
        axis.set_xlabel(label)
    axes[0].set_ylabel("requests within both SLOs (%)")
    axes[1].invert_xaxis()
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(args.figure)
    pyplot.close(figure)
    args.figure.with_suffix(".json").write_text(json.dumps(panels, indent=1))


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
        raise InvalidRequest(
            "the figure needs 1.0 among --slo-scales and --figure-rate among --per-gpu-rate"
        )
    tightest = min(row["scale"] for row in fixed)
    highest = max(row["per_gpu_rate"] for row in full)
    return {
        "rate": _curves(args, full, "per_gpu_rate", lambda row: row["per_gpu_rate"] == highest),
        "slo": _curves(args, fixed, "scale", lambda row: row["scale"] == tightest),
    }


def _curves(
    args: argparse.Namespace, rows: list[Row], axis: str, decides: Callable[[Row], bool]
) -> dict[str, list[Point]]:
    systems: dict[str, Callable[[Row], bool]] = {
        "dist++": lambda row: row["backend"] == "distserve",
        "dist": lambda row: row["backend"] == "distserve" and fits_nodes(args, row),
        "vllm++": lambda row: row["backend"] == "vllm",
        "vllm": lambda row: row["backend"] == "vllm" and row["pp_prefill"] == 1,
    }
    curves = {}
    for name, belongs in systems.items():
        own = [row for row in rows if belongs(row)]
        if not own:
            continue
        best = max(filter(decides, own), key=lambda row: row["attainment"])
        curves[name] = sorted(
            (row[axis], row["attainment"]) for row in own if _degrees(row) == _degrees(best)
        )
    return curves


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
