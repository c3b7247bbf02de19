"""Reads result files back: DistServe's and LoongServe's `.exp`, from this client or from theirs."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from distserve.bench.analysis import Own, Run, Sample
from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import stages

_NAME = re.compile(
    r"(?P<system>.+)-(?P<requests>[0-9]+)-(?P<rate>recorded|inf|[0-9.]+(e[+-]?[0-9]+)?)"
)
_EQUAL_GAPS = re.compile(_NAME.pattern + "-uniform")  # LoongServe's name for them

_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError,
    msgspec.ValidationError,
)  # fmt: skip


def read_folder(folder: Path, gpus: Mapping[str, int] | None = None) -> list[Run]:
    """Every `.exp` in the folder and its subfolders, by system and rate; not of `interrupted`, nor
    of `equal_gaps`.

    A system is called after the files' prefix, in a subfolder with the folder's name before it.
    `gpus` overrules what the runs say of their accelerators. Raises BenchError.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder} is no folder; give the --output-dir of `distserve bench run`")
    runs = []
    cut_short = {folder / name for name in interrupted(folder)}
    no_points = {folder / name for name in equal_gaps(folder)}
    left_out = cut_short | no_points
    for path in sorted(folder.rglob("*.exp")):
        if path.with_suffix("") in left_out:
            continue
        run = read_run(path)
        inside = path.parent.relative_to(folder).as_posix()
        if inside != ".":
            run = replace(run, system=f"{inside}/{run.system}")
        runs.append(run)
    if not runs and cut_short:
        raise BenchError(f"{folder} holds interrupted runs only; repeat `distserve bench run`")
    if not runs and no_points:
        raise BenchError(f"{folder} holds runs of equal gaps only; drop -uniform from their names")
    if not runs:
        raise BenchError(f"{folder} holds no .exp files; run `distserve bench run` first")
    known = {run.system for run in runs}
    if unknown := sorted((gpus or {}).keys() - known):
        raise BenchError(
            f"--gpus: no system {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    runs = [replace(run, gpus=(gpus or {}).get(run.system, run.gpus)) for run in runs]
    return sorted(runs, key=lambda run: (run.system, run.rate, run.requests))


def interrupted(folder: Path) -> list[str]:
    """PREFIX-COUNT-RATE, below the folder, of runs that were cut short. Raises BenchError.

    An `.exp` beside such a `.run.json` is of an earlier run, and nothing says how good that was.
    """
    return [
        path.relative_to(folder).as_posix().removesuffix(".run.json")
        for path in sorted(folder.rglob("*.run.json"))
        if not _about(path).get("complete", True)
    ]


def equal_gaps(folder: Path) -> list[str]:
    """LoongServe's PREFIX-COUNT-RATE-uniform, below the folder: no points of a Poisson curve, so
    its plots leave them out too."""
    return [
        path.relative_to(folder).with_suffix("").as_posix()
        for path in sorted(folder.rglob("*.exp"))
        if _EQUAL_GAPS.fullmatch(path.stem)
    ]


def _about(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is damaged: {error}; delete it, or run anew") from error
    if not isinstance(about, dict):
        raise BenchError(f"{path} is damaged: no object; delete it, or run anew")
    return about


def read_run(path: Path) -> Run:
    """One file and, beside it, what its client said about the run. Raises BenchError."""
    name = _NAME.fullmatch(path.stem)
    if name is None:
        raise BenchError(f"{path}: the name is not PREFIX-COUNT-RATE.exp; rename it")
    about, told = _about(path.with_suffix(".run.json")), _told(path, int(name["requests"]))
    try:
        rows = _rows(path.read_text())
        samples = list(_samples(rows))
        if name["rate"] != "recorded":
            rate = float(name["rate"])
        elif told.rate is not None:
            rate = told.rate
        else:
            rate = _measured_rate([sample.start for sample in samples])
        run = Run(
            name["system"], int(name["requests"]), rate, samples,
            about.get("parameters", {}).get("gpus", 1), about, told.own, told.span,
            len(rows) - len(samples),
        )  # fmt: skip
    except (OSError, *_MALFORMED) as error:
        raise BenchError(f"{path} is no result file: {error}; delete it or run anew") from error
    if len(samples) > run.requests or run.requests < 1:
        raise BenchError(f"{path} has {len(samples)} records, its name says {run.requests}")
    return run


@dataclass(frozen=True)
class _Told:
    """What a `.csv` tells of all requests, failed ones too; None where it does not."""

    own: Sequence[Own] = ()
    span: float | None = None
    """Seconds from the first planned instant to the last end."""
    rate: float | None = None
    """Requests per second, as planned."""


_INSTANTS = ("planned", "start_time", "end_time")


def _told(exp: Path, requests: int) -> _Told:
    """By the client's `.csv` beside its `.exp`; somebody else's, or of another run, tells less."""
    path = exp.with_suffix(".csv")
    if not path.exists():
        return _Told()
    try:
        with path.open(newline="") as text:
            reader = csv.DictReader(text)
            rows, columns = list(reader), {*(reader.fieldnames or ())}
        own = [
            Own(_number(row["slo_ttft"]), _number(row["slo_tpot"]))
            for row in rows
            if {"slo_ttft", "slo_tpot"} <= columns
        ]
        if len(rows) != requests or not rows or not {*_INSTANTS} <= columns:
            return _Told(own)
        planned = [float(row["planned"]) for row in rows]
        instants = [float(row[name]) for row in rows for name in _INSTANTS if row[name]]
        return _Told(own, max(instants) - min(instants), _measured_rate(planned))
    except (OSError, csv.Error, *_MALFORMED) as error:
        raise BenchError(f"{path} is damaged: {error}; delete it, or run anew") from error


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def _rows(text: str) -> list[dict[str, Any]]:
    # JSON cannot tell LoongServe's first line from a list of its own, except by its quotes.
    try:
        rows = json.loads(text)
    except ValueError:
        rows = ast.literal_eval(text.partition("\n")[0])
    if not isinstance(rows, list):
        raise ValueError("no list of requests")
    return rows


class LifecycleEvent(msgspec.Struct):
    event_type: str
    timestamp: float


class DistServeRecord(msgspec.Struct):
    """One request of DistServe's file, in seconds; other fields are passed over."""

    prompt_len: int
    output_len: int
    start_time: float
    end_time: float
    token_timestamps: list[float] | None
    latency: float
    ftl: float | None = None
    tpot: float | None = None
    lifecycle_events: list[LifecycleEvent] | None = None
    slo_ttft: float | None = None
    slo_tpot: float | None = None

    @property
    def sample(self) -> Sample | None:
        """None of a request that was cut off: fewer token times than tokens."""
        times, ttft, tpot = self.token_timestamps, self.ftl, self.tpot
        if times and len(times) < self.output_len:
            return None
        if times and ttft is None:
            ttft = times[0] - self.start_time
        if times and tpot is None:
            alone = self.output_len <= 1
            tpot = 0.0 if alone else (times[-1] - times[0]) / (self.output_len - 1)
        return Sample(
            self.prompt_len, self.output_len, self.start_time, self.end_time, self.latency,
            ttft if times else None, tpot if times else None,
            stages({event.event_type: event.timestamp for event in self.lifecycle_events or ()}),
            Own(self.slo_ttft, self.slo_tpot),
        )  # fmt: skip


class LoongServeRecord(msgspec.Struct):
    prompt_len: int
    output_len: int
    issue_time: float
    complete_time: float
    latency: float
    ttft: float | None
    tpot: float | None
    slo_ttft: float | None = None
    slo_tpot: float | None = None

    @property
    def sample(self) -> Sample:
        return Sample(
            self.prompt_len, self.output_len, self.issue_time, self.complete_time, self.latency,
            self.ttft, self.tpot, own=Own(self.slo_ttft, self.slo_tpot),
        )  # fmt: skip


def _samples(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    for row in rows:
        if "issue_time" in row:
            yield msgspec.convert(row, LoongServeRecord).sample
        elif (sample := msgspec.convert(row, DistServeRecord).sample) is not None:
            yield sample


def _measured_rate(instants: Sequence[float]) -> float:
    """Requests per second between the first and the last; infinite at one instant."""
    span = max(instants, default=0.0) - min(instants, default=0.0)
    return (len(instants) - 1) / span if span else math.inf
