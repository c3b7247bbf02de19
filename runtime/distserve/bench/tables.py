"""The report's tables: what each run and each system came to, for csv, JSON and the page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from distserve.bench.analysis import (
    Run,
    attainment,
    breakdown,
    normalised,
    normalised_crossing,
    rate_crossing,
    scale_crossing,
    throughput,
)
from distserve.bench.quantiles import quantile
from distserve.bench.slos import NormalisedSlo, Slo

Row = dict[str, Any]
LEVELS = (0.9, 0.99)
_PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Question:
    """What a report is about: runs, and the objectives they are held against."""

    runs: Sequence[Run]
    """Sorted by system and rate."""
    slo: Slo
    scales: Sequence[float]
    slo_name: str = "given"

    @property
    def systems(self) -> dict[str, list[Run]]:
        return {name: list(runs) for name, runs in groupby(self.runs, key=lambda run: run.system)}


def run_rows(question: Question) -> list[Row]:
    """One row a run: attainment, percentiles, rates, latencies per token, stages."""
    return [_run_row(run, question.slo) for run in question.runs]


def _run_row(run: Run, slo: Slo) -> Row:
    share, speed, per_token = attainment(run, slo), throughput(run, slo), normalised(run)
    ttft = [s.ttft * 1000 for s in run.samples if s.ttft is not None]
    tpot = [s.tpot * 1000 for s in run.samples if s.tpot is not None]
    row: Row = {
        "system": run.system, "requests": run.requests, "rate": run.rate, "gpus": run.gpus,
        "rate_per_gpu": run.rate_per_gpu, "completed": len(run.samples), "valid": run.valid,
        "dataset": run.about.get("parameters", {}).get("dataset"),
        "attainment_both": share.both, "attainment_ttft": share.ttft,
        "attainment_tpot": share.tpot,
    }  # fmt: skip
    for percent in _PERCENTS:
        row[f"ttft_p{percent}_ms"] = quantile(ttft, percent)
        row[f"tpot_p{percent}_ms"] = quantile(tpot, percent)
    row |= {
        "requests_per_second": speed.requests,
        "goodput_per_second": speed.goodput,
        "goodput_per_second_per_gpu": speed.goodput / run.gpus,
        "output_tokens_per_second": speed.output_tokens,
        "total_tokens_per_second": speed.total_tokens,
        "normalised_total_ms": per_token.total * 1000,
        "normalised_input_ms": per_token.input * 1000,
        "normalised_output_ms": per_token.output * 1000,
    }
    for stage, part in (breakdown(run) or {}).items():
        row[f"share_{stage.replace(' ', '_')}"] = part
    return row


def request_rows(question: Question) -> list[Row]:
    """One row a completed request of every run: for who wants to work the figures out anew."""
    return [
        {
            "system": run.system, "rate": run.rate, "gpus": run.gpus,
            "prompt_tokens": s.prompt_tokens, "output_tokens": s.output_tokens,
            "start": s.start, "end": s.end, "latency": s.latency, "ttft": s.ttft, "tpot": s.tpot,
            "met_ttft": s.meets_ttft(question.slo), "met_tpot": s.meets_tpot(question.slo),
            **{stage.replace(" ", "_"): value for stage, value in (s.stages or {}).items()},
        }
        for run in question.runs
        for s in run.samples
    ]  # fmt: skip


def crossing_rows(question: Question) -> list[Row]:
    """One row a system and level: the highest rate per GPU that attains it, and the tightest SLO.

    The scale is taken at the system's lowest rate, where the papers' sweeps have theirs.
    """
    rows = []
    for system, runs in question.systems.items():
        for level in LEVELS:
            rate = rate_crossing(runs, question.slo, level)
            scale = scale_crossing(runs[0], question.slo, question.scales, level)
            rows.append(
                {
                    "system": system, "level": level, "gpus": runs[0].gpus,
                    "rate_per_gpu": rate.at, "rate_per_gpu_is": rate.kind,
                    "slo_scale": scale.at, "slo_scale_is": scale.kind,
                    "slo_scale_at_rate_per_gpu": runs[0].rate_per_gpu,
                }
            )  # fmt: skip
    return rows


def normalised_rows(question: Question, slo: NormalisedSlo) -> list[Row]:
    """One row a system and limit: LoongServe's throughput, the rate per GPU that keeps it."""
    limits = {"total": slo.total_ms, "input": slo.input_ms, "output": slo.output_ms}
    return [
        {
            "system": system, "latency": part, "limit_ms": limit_ms,
            "rate_per_gpu": found.at, "rate_per_gpu_is": found.kind,
        }
        for system, runs in question.systems.items()
        for part, limit_ms in limits.items()
        for found in [normalised_crossing(runs, part, limit_ms / 1000)]
    ]  # fmt: skip


def scale_rows(question: Question) -> list[Row]:
    """Attainment of each run under scaled objectives."""
    return [
        {
            "system": run.system, "rate_per_gpu": run.rate_per_gpu, "slo_scale": scale,
            "attainment_both": share.both, "attainment_ttft": share.ttft,
            "attainment_tpot": share.tpot,
        }
        for run in question.runs
        for scale in question.scales
        for share in [attainment(run, question.slo.scaled(scale))]
    ]  # fmt: skip


def csv_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(rows))
    return text.getvalue()


def json_text(**tables: Sequence[Row]) -> str:
    return json.dumps({name: _plain(rows) for name, rows in tables.items()}, indent=1) + "\n"


def columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _plain(rows: Iterable[Row]) -> list[Row]:
    """NaN, the quantile of nothing, is no JSON: it becomes an empty cell."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]
