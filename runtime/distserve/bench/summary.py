"""The tables that `distserve bench` prints: one line a run, or one a system and level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distserve.bench.analysis import Crossing, Run, attainment
from distserve.bench.quantiles import quantile
from distserve.bench.reading import read_run
from distserve.bench.session import Ran
from distserve.bench.slos import Slo

_HEAD = ("requests", "rate", "done", "TTFT ms p50", "p90", "p99", "TPOT ms p50", "p90", "p99")


def table(folder: Path, prefix: str, done: Sequence[Ran]) -> str:
    rows = [[*_HEAD, "both", "TTFT", "TPOT", "lag p99 ms", "valid"]]
    for ran in done:
        path = folder / f"{prefix}-{ran.pair.label}.exp"
        if ran.about["complete"]:
            rows.append(_row(read_run(path), ran))
    return _aligned(rows)


def crossings_table(crossings: Sequence[dict[str, Any]]) -> str:
    """Where each system's attainment of both objectives falls below each level.

    A star marks what rests on an INVALID run.
    """
    rows = [["system", "GPUs", "level", "rate per GPU", "SLO scale", "at rate per GPU"]]
    for row in crossings:
        rate = Crossing(row["rate_per_gpu"], row["rate_per_gpu_is"])
        scale = Crossing(row["slo_scale"], row["slo_scale_is"], falling=True)
        rows.append(
            [
                row["system"],
                str(row["gpus"]),
                f"{100 * row['level']:g}%",
                _marked(rate, row["rate_per_gpu_valid"]),
                _marked(scale, row["slo_scale_valid"]),
                f"{row['slo_scale_at_rate_per_gpu']:.3g}",
            ]
        )
    if all(row["rate_per_gpu_valid"] and row["slo_scale_valid"] for row in crossings):
        return _aligned(rows)
    return f"{_aligned(rows)}\n* rests on an INVALID run"


def _marked(found: Crossing, valid: bool) -> str:
    return str(found) if valid else f"{found}*"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _row(run: Run, ran: Ran) -> list[str]:
    ttft = [s.ttft * 1000 for s in run.samples if s.ttft is not None]
    tpot = [s.tpot * 1000 for s in run.samples if s.tpot is not None]
    asked = ran.about["parameters"]
    told = {part: asked[f"slo_{part}"] for part in ("ttft", "tpot")}
    limits = {part: seconds for part, seconds in told.items() if seconds is not None}
    owns = {*run.asked, *(sample.own for sample in run.samples)}
    parts = [p for p in told if p in limits or any(getattr(own, p) is not None for own in owns)]
    shares = {"both": "-", "ttft": "-", "tpot": "-"}
    if parts and not asked["no_stream"]:
        found = attainment(run, Slo(**limits))
        shares |= {part: f"{100 * getattr(found, part):.1f}%" for part in ("both", *parts)}
    return [
        str(run.requests),
        f"{run.rate:g}",
        str(len(run.samples)),
        *(_number(quantile(ttft, percent)) for percent in (50, 90, 99)),
        *(_number(quantile(tpot, percent)) for percent in (50, 90, 99)),
        *shares.values(),
        f"{ran.about['lag']['send_p99_ms']:.1f}",
        "yes" if ran.about["valid"] else "NO",
    ]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"
