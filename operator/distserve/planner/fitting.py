"""Fits a hardware profile to the measurements of a profile database.

The database is the sqlite file that profilers of this family write: a table `records` with
tp_world_size, batch_size, input_len, avg_prefill_time_usage, avg_decoding_time_usage (ms) and tag,
one row for a batch of equal prompts. LoongServe's layout (with sp_world_size) is read as well.
The fit minimises the relative error, so that short steps count as much as long ones.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distserve.planner.errors import InvalidProfile
from distserve.strategies.time_model import Coefficients, TimeModel

LARGE_BATCH = 95


@dataclass(frozen=True)
class Record:
    """One measured batch: `batch_size` prompts of `input_tokens`, times in ms."""

    tp: int
    batch_size: int
    input_tokens: int
    prefill_ms: float
    decode_ms: float
    tag: str = ""


@dataclass(frozen=True)
class Fit:
    """A time model, and the mean relative error of its formulas on what they were fitted to."""

    times: TimeModel
    prefill_error: float
    decode_error: float
    records: int


def read_records(path: Path | str) -> list[Record]:
    """All usable rows; raises InvalidProfile when the file is no profile database."""
    path = Path(path)
    if not path.is_file():
        raise InvalidProfile(f"cannot read the profile database {path}: no such file")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            columns = {row[1] for row in database.execute("PRAGMA table_info(records)")}
            where = " WHERE sp_world_size = 1" if "sp_world_size" in columns else ""
            rows = database.execute(
                "SELECT tp_world_size, batch_size, input_len, avg_prefill_time_usage, "
                f"avg_decoding_time_usage, tag FROM records{where}"
            ).fetchall()
    except sqlite3.Error as error:
        raise InvalidProfile(f"{path} is not a profile database: {error}") from error
    return [
        Record(int(tp), int(batch), int(tokens), float(prefill), float(decode), str(tag or ""))
        for tp, batch, tokens, prefill, decode, tag in rows
        if prefill and decode and prefill > 0 and decode > 0
    ]


def fit(records: Sequence[Record], large_batch: int = LARGE_BATCH) -> Fit:
    """Fit one model at one TP degree. A batch range without records takes the fit of all."""
    if len(records) < 3:
        raise InvalidProfile(
            f"{len(records)} records are too few to fit; measure at least 3 batches"
        )
    prefill, prefill_error = _least_squares(
        [(1.0, r.batch_size * r.input_tokens, r.batch_size * r.input_tokens**2) for r in records],
        [r.prefill_ms for r in records],
    )
    small = [r for r in records if r.batch_size < large_batch]
    large = [r for r in records if r.batch_size >= large_batch]
    decode_small, small_error = _fit_decode(small if len(small) >= 3 else records)
    decode_large, large_error = _fit_decode(large if len(large) >= 3 else records)
    decode_error = (small_error * len(small) + large_error * len(large)) / len(records)
    return Fit(
        TimeModel(prefill, decode_small, decode_large, large_batch),
        prefill_error,
        decode_error,
        len(records),
    )


def _fit_decode(records: Sequence[Record]) -> tuple[Coefficients, float]:
    # The measured step attends to the prompt and the token that it generates.
    return _least_squares(
        [(1.0, r.batch_size * (r.input_tokens + 1), r.batch_size) for r in records],
        [r.decode_ms for r in records],
    )


def _least_squares(
    rows: Iterable[tuple[float, float, float]], times_ms: Sequence[float]
) -> tuple[Coefficients, float]:
    import numpy

    measured = numpy.asarray(times_ms)
    weighted = numpy.asarray(list(rows)) / measured[:, None]
    scale = numpy.abs(weighted).max(axis=0)  # columns differ by orders of magnitude
    solution, *_ = numpy.linalg.lstsq(weighted / scale, numpy.ones(len(measured)), rcond=None)
    coefficients = solution / scale
    error = float(numpy.abs(weighted @ coefficients - 1).mean())
    return Coefficients(*map(float, coefficients)), error


def write_profile(
    path: Path | str, fits: dict[tuple[str, int], Fit], accelerator: dict[str, Any] | None = None
) -> None:
    """Write fits by (model, TP) as a profile file that `load_profile` reads."""
    content: dict[str, Any] = {"accelerator": accelerator} if accelerator else {}
    for (model, tp), fitted in sorted(fits.items()):
        times = fitted.times
        content.setdefault(model, {})[str(tp)] = {
            "decoding_large_small_bs_threshold": times.large_batch,
            "prefill": list(times.prefill),
            "decoding_smallbs": list(times.decode_small),
            "decoding_largebs": list(times.decode_large),
        }
    Path(path).write_text(json.dumps(content, indent=2) + "\n")


def fit_database(path: Path | str, model: str) -> dict[tuple[str, int], Fit]:
    """Fit every tensor parallel degree that the database holds, under the name `model`."""
    by_degree: dict[int, list[Record]] = {}
    for record in read_records(path):
        by_degree.setdefault(record.tp, []).append(record)
    if not by_degree:
        raise InvalidProfile(f"{path} holds no usable records; run the profiler first")
    return {(model, tp): fit(records) for tp, records in sorted(by_degree.items())}
