"""The report's tables: what each run and each system came to, for csv, JSON and the page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

from distserve.bench.analysis import (
    NOT_ITS_OWN,
    Crossing,
    Own,
    Run,
    Throughput,
    attainment,
    breakdown,
    classes,
    normalised,
    normalised_crossing,
    rate_crossing,
    rests_on,
    scale_crossing,
    throughput,
)
from distserve.bench.quantiles import quantile
from distserve.bench.slos import NONE, NormalisedSlo, Slo

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
    slo_source: str = "given"
    scale_rate: float | None = None
    """Requests per second per GPU at which the sweep over scales is wanted."""
    interrupted: Sequence[str] = ()
    equal_gaps: Sequence[str] = ()
    """Files of runs that are left out."""

    @cached_property
    def systems(self) -> dict[str, list[Run]]:
        return {name: list(runs) for name, runs in groupby(self.runs, key=lambda run: run.system)}

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Fields of Attainment that say something: those with an objective, anybody's."""
        owns = {sample.own for run in self.runs for sample in run.samples}
        there = {
            "ttft": self.slo.ttft != NONE or any(own.ttft is not None for own in owns),
            "tpot": self.slo.tpot != NONE or any(own.tpot is not None for own in owns),
        }
        return ("both", *(part for part, is_there in there.items() if is_there))

    @property
    def rate_of_sweep(self) -> float:
        """Where it is not said: the lowest rate per GPU that no system was asked more than."""
        if self.scale_rate is not None:
            return self.scale_rate
        return max(runs[0].rate_per_gpu for runs in self.systems.values())

    @cached_property
    def swept(self) -> dict[str, Run]:
        """Of each system the run whose objectives are scaled: at the rate next to that."""
        rate = self.rate_of_sweep

        def off(run: Run) -> float:  # two infinite rates are none apart
            return 0.0 if run.rate_per_gpu == rate else abs(run.rate_per_gpu - rate)

        return {system: min(runs, key=off) for system, runs in self.systems.items()}

    @cached_property
    def classes(self) -> list[Own]:
        """All objectives that requests had of their own; empty where none had any."""
        owns = {own for run in self.runs for own in classes(run)}
        return sorted(owns, key=_strictness) if owns != {NOT_ITS_OWN} else []


def _strictness(own: Own) -> tuple[float, float]:
    return (NONE if own.tpot is None else own.tpot, NONE if own.ttft is None else own.ttft)


def run_rows(question: Question) -> list[Row]:
    """One row a run: attainment, percentiles, rates, latencies per token, stages.

    Shares are of all asked requests; percentiles and latencies of the `completed` ones alone.
    """
    return [_run_row(run, question) for run in question.runs]


def _run_row(run: Run, question: Question) -> Row:
    speed, per_token = throughput(run, question.slo), normalised(run)
    row: Row = {
        "system": run.system, "requests": run.requests, "rate": run.rate, "gpus": run.gpus,
        "rate_per_gpu": run.rate_per_gpu, "completed": len(run.samples), "valid": run.valid,
        "dataset": run.about.get("parameters", {}).get("dataset"),
        **_attainment(run, question, question.slo), **_percentiles(run), **_goodput(run, speed),
    }  # fmt: skip
    row |= {
        "requests_per_second": speed.requests,
        "output_tokens_per_second": speed.output_tokens,
        "total_tokens_per_second": speed.total_tokens,
        "normalised_total_ms": per_token.total * 1000,
        "normalised_input_ms": per_token.input * 1000,
        "normalised_output_ms": per_token.output * 1000,
    }
    for stage, part in (breakdown(run) or {}).items():
        row[f"share_{stage.replace(' ', '_')}"] = part
    return row


def _attainment(run: Run, question: Question, slo: Slo) -> Row:
    """Empty where there is no objective of the kind."""
    share = attainment(run, slo)
    return {
        f"attainment_{part}": getattr(share, part) if part in question.parts else None
        for part in ("both", "ttft", "tpot")
    }


def _percentiles(run: Run) -> Row:
    ttft = [s.ttft * 1000 for s in run.samples if s.ttft is not None]
    tpot = [s.tpot * 1000 for s in run.samples if s.tpot is not None]
    row: Row = {}
    for percent in _PERCENTS:
        row[f"ttft_p{percent}_ms"] = quantile(ttft, percent)
        row[f"tpot_p{percent}_ms"] = quantile(tpot, percent)
    return row | {"tpot_mean_ms": fmean(tpot) if tpot else math.nan}


def _goodput(run: Run, speed: Throughput) -> Row:
    return {
        "goodput_per_second": speed.goodput,
        "goodput_per_second_per_gpu": speed.goodput / run.gpus,
        "goodput_tokens_per_second": speed.goodput_tokens,
        "goodput_tokens_per_second_per_gpu": speed.goodput_tokens / run.gpus,
    }


def class_rows(question: Question) -> list[Row]:
    """One row a run and class of requests with the same objectives of their own, if any had."""
    return [
        {
            "system": run.system, "rate": run.rate, "rate_per_gpu": run.rate_per_gpu,
            "slo_ttft_ms": own.ttft_limit(question.slo) * 1000,
            "slo_tpot_ms": own.tpot_limit(question.slo) * 1000,
            "requests": part.requests, "completed": len(part.samples), "valid": run.valid,
            **_attainment(part, question, question.slo), **_percentiles(part),
            **_goodput(part, throughput(part, question.slo)),
        }
        for run in question.runs
        for parts in [classes(run)]
        for own in question.classes
        if (part := parts.get(own)) is not None
    ]  # fmt: skip


def request_rows(question: Question) -> list[Row]:
    """One row a completed request of every run: for who wants to work the figures out anew."""
    return [
        {
            "system": run.system, "requests": run.requests, "rate": run.rate, "gpus": run.gpus,
            "valid": run.valid,
            "prompt_tokens": s.prompt_tokens, "output_tokens": s.output_tokens,
            "start": s.start, "end": s.end, "latency": s.latency, "ttft": s.ttft, "tpot": s.tpot,
            "slo_ttft": s.own.ttft_limit(question.slo),
            "slo_tpot": s.own.tpot_limit(question.slo),
            "met_ttft": s.meets_ttft(question.slo), "met_tpot": s.meets_tpot(question.slo),
            **{stage.replace(" ", "_"): value for stage, value in (s.stages or {}).items()},
        }
        for run in question.runs
        for s in run.samples
    ]  # fmt: skip


def crossing_rows(question: Question) -> list[Row]:
    """One row a system and level: the highest rate per GPU that attains it, and the tightest SLO.

    `valid` where every run that the figure rests on is.
    """
    rows = []
    for system, runs in question.systems.items():
        swept = question.swept[system]
        for level in LEVELS:
            rate = rate_crossing(runs, question.slo, level)
            scale = scale_crossing(swept, question.slo, question.scales, level)
            rows.append(
                {
                    "system": system, "level": level, "gpus": runs[0].gpus,
                    "rate_per_gpu": rate.at, "rate_per_gpu_is": rate.kind,
                    "rate_per_gpu_valid": all(run.valid for run in rests_on(runs, rate)),
                    "slo_scale": scale.at, "slo_scale_is": scale.kind,
                    "slo_scale_valid": swept.valid,
                    "slo_scale_at_rate_per_gpu": swept.rate_per_gpu,
                }
            )  # fmt: skip
    return rows


def normalised_rows(question: Question, slo: NormalisedSlo) -> list[Row]:
    """One row a system and limit: LoongServe's throughput, the rate per GPU that keeps it.

    The latencies are of completed requests, so `completed_share` is the least share of them in the
    runs that the rate follows from: where it is small, the limit was kept by refusing. A run
    without any has no latency, and no share here.
    """
    limits = {"total": slo.total_ms, "input": slo.input_ms, "output": slo.output_ms}
    return [
        {
            "system": system, "latency": part, "limit_ms": limit_ms,
            "rate_per_gpu": found.at, "rate_per_gpu_is": found.kind,
            "rate_per_gpu_valid": all(run.valid for run in rests_on(runs, found)),
            "completed_share": _completed_share(runs, found),
        }
        for system, runs in question.systems.items()
        for part, limit_ms in limits.items()
        for found in [normalised_crossing(runs, part, limit_ms / 1000)]
    ]  # fmt: skip


def _completed_share(runs: Sequence[Run], found: Crossing) -> float | None:
    if found.at is None:
        return None
    kept = [run for run in runs if run.rate_per_gpu <= found.at]
    rested = rests_on(runs, found) if found.kind == "exact" else kept
    return min((len(run.samples) / run.requests for run in rested if run.samples), default=None)


def scale_rows(question: Question) -> list[Row]:
    """Attainment of each run under scaled objectives."""
    return [
        {
            "system": run.system, "rate_per_gpu": run.rate_per_gpu, "valid": run.valid,
            "slo_scale": scale, **_attainment(run, question, question.slo.scaled(scale)),
        }
        for run in question.runs
        for scale in question.scales
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


def plain(value: Any) -> Any:
    """A cell as every table has it: empty for NaN, the quantile of nothing, and for infinity, an
    objective that is not there or the rate of requests that all leave at once."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(rows: Iterable[Row]) -> list[Row]:
    return [{name: plain(value) for name, value in row.items()} for row in rows]
