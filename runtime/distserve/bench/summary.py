"""The table that `distserve bench run` ends with: one line a run, read back from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distserve.bench.analysis import Run, attainment
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _row(run: Run, ran: Ran) -> list[str]:
    ttft = [s.ttft * 1000 for s in run.samples if s.ttft is not None]
    tpot = [s.tpot * 1000 for s in run.samples if s.tpot is not None]
    asked = ran.about["parameters"]
    shares = ["-"] * 3
    if asked["slo_ttft"] is not None and asked["slo_tpot"] is not None and not asked["no_stream"]:
        found = attainment(run, Slo(asked["slo_ttft"], asked["slo_tpot"]))
        shares = [f"{100 * share:.1f}%" for share in (found.both, found.ttft, found.tpot)]
    return [
        str(run.requests),
        f"{run.rate:g}",
        str(len(run.samples)),
        *(_number(quantile(ttft, percent)) for percent in (50, 90, 99)),
        *(_number(quantile(tpot, percent)) for percent in (50, 90, 99)),
        *shares,
        f"{ran.about['lag']['send_p99_ms']:.1f}",
        "yes" if ran.about["valid"] else "NO",
    ]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"
