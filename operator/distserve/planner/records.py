"""Reads profile databases: what profilers measured, for the fit. Any of three layouts is known.

DistServe's profiler writes a table `records` with tp_world_size, batch_size, input_len,
avg_prefill_time_usage, avg_decoding_time_usage (ms) and tag, one row for a batch of equal prompts
of the model that the tag stands for; LoongServe's adds sp_world_size. `distserve profile` writes
the same columns and says besides what was measured on what; its tables `serving` and `loads` have
what clients of a whole deployment saw, idle and busy (`distserve.planner.loads` reads the latter).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from distserve.planner.errors import InvalidProfile

ORIGIN = ("dtype", "device", "engine_version", "tag")
"""Columns that say what a time belongs to, besides model and parallelism."""
_COLUMNS = {
    "records": (
        "tp_world_size", "batch_size", "input_len", "avg_prefill_time_usage",
        "avg_decoding_time_usage", "tag",
    ),
    "serving": (
        "tp_world_size", "streams", "input_len", "context_len", "ttft", "handover", "step",
        "migrated",
    ),
    "loads": ("tp_world_size", "clients", "requests"),
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where times were measured; empty where the database does not say."""

    model: str = ""
    dtype: str = ""
    device: str = ""
    engine_version: str = ""
    tag: str = ""
    """Other profilers' word for the model, the folder that it was in; empty where it has a name."""


@dataclass(frozen=True)
class Record:
    """One measured batch of equal prompts; a time of None was not measured."""

    tp: int
    batch_size: int
    input_tokens: int
    prefill_ms: float | None
    decode_ms: float | None
    context_tokens: float | None = None
    """Of each request in the decode step that `decode_ms` is the time of."""
    origin: Origin = Origin()

    @property
    def decode_context_tokens(self) -> float:
        """Of the whole batch. Where nothing is said, the step attends to the prompt and the token
        that it adds."""
        context = self.input_tokens + 1 if self.context_tokens is None else self.context_tokens
        return self.batch_size * context


@dataclass(frozen=True)
class ServingRecord:
    """What clients of an otherwise idle deployment saw of `streams` equal requests at a time."""

    tp: int
    streams: int
    input_tokens: int
    context_tokens: float
    ttft_ms: float
    handover_ms: float
    """From the first token to the second."""
    step_ms: float
    """From one token to the next, thereafter."""
    migrated: bool
    """Whether the requests changed their instance after the first token."""
    longest_tokens: int | None = None
    """Of unequal prompts, whose mean `input_tokens` is."""
    origin: Origin = Origin()

    @property
    def padding_tokens(self) -> float:
        """By which all contexts are shorter than if each were as long as the longest."""
        longest = self.input_tokens if self.longest_tokens is None else self.longest_tokens
        return self.streams * (longest - self.input_tokens)


def read_records(path: Path | str) -> list[Record]:
    """All rows with a time, of tensor parallelism alone; raises InvalidProfile when the file is no
    profile database."""
    records = [
        Record(
            int(row.required("tp_world_size", least=1)),
            int(row.required("batch_size", least=1)),
            int(row.required("input_len", least=1)),
            row.time_ms("avg_prefill_time_usage"),
            row.time_ms("avg_decoding_time_usage"),
            row.number("decode_context_len"),
            origin_of(row.columns),
        )
        for row in _rows(path, "records")
        if row.of_tp_alone
    ]
    return [record for record in records if record.prefill_ms or record.decode_ms]


def left_out(path: Path | str) -> str:
    """Which rows `read_records` passes over, in words; empty where it takes all."""
    taken = [row.of_tp_alone for row in _rows(path, "records")]
    if all(taken):
        return ""
    return (
        f"{taken.count(False)} of {len(taken)} rows are left out: their sp_world_size or "
        "pp_world_size is not 1, and times are fitted by tensor parallelism alone"
    )


def read_serving(path: Path | str) -> list[ServingRecord]:
    """Empty where no deployment was measured. Raises InvalidProfile."""
    return [
        ServingRecord(
            int(row.required("tp_world_size", least=1)),
            int(row.required("streams", least=1)),
            int(row.required("input_len", least=1)),
            row.required("context_len"),
            row.required("ttft"),
            row.required("handover"),
            row.required("step"),
            bool(row.columns["migrated"]),
            row.columns.get("longest_len"),
            origin_of(row.columns),
        )
        for row in _rows(path, "serving", optional=True)
    ]


@dataclass(frozen=True)
class _Row:
    """One row of a file that anybody may have written: SQLite keeps any type in any column."""

    place: str
    columns: Mapping[str, Any]

    @property
    def of_tp_alone(self) -> bool:
        return all(self.columns.get(name, 1) == 1 for name in ("sp_world_size", "pp_world_size"))

    def number(self, column: str) -> float | None:
        """None where there is none. Raises InvalidProfile where something else is."""
        value = self.columns.get(column)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = nan
        if not isfinite(number):
            raise self._refusal(column)
        return number

    def required(self, column: str, least: float = 0.0) -> float:
        number = self.number(column)
        if number is None or number < least:
            raise self._refusal(column)
        return number

    def time_ms(self, column: str) -> float | None:
        """None where it was not measured, for which other profilers also write 0 or less."""
        number = self.number(column)
        return number if number is not None and number > 0 else None

    def _refusal(self, column: str) -> InvalidProfile:
        return InvalidProfile(
            f"{self.place} is no measurement: {column} is {self.columns.get(column)!r}; "
            "delete it, or measure it anew"
        )


def _rows(path: Path | str, table: str, optional: bool = False) -> Iterator[_Row]:
    for number, columns in enumerate(rows_of(Path(path), table, optional), start=1):
        yield _Row(f"{path}: row {number} of `{table}`", columns)


def rows_of(path: Path, table: str, optional: bool = False) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InvalidProfile(f"cannot read the profile database {path}: no such file")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            known = database.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
            ).fetchone()
            if optional and not known:
                return []
            rows = [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY rowid")]
    except sqlite3.Error as error:
        raise InvalidProfile(f"{path} is not a profile database: {error}") from error
    if rows and (missing := set(_COLUMNS[table]) - rows[0].keys()):
        raise InvalidProfile(
            f"{path} is not a profile database: `{table}` lacks {', '.join(sorted(missing))}"
        )
    return rows


def origin_of(row: Mapping[str, Any]) -> Origin:
    said = {name: str(row.get(name) or "") for name in ("model", *ORIGIN)}
    return Origin(**(said | {"tag": ""} if said["model"] else said))


def of_one_origin(origins: Sequence[Origin], wanted: Mapping[str, str]) -> set[Origin]:
    """Those that `wanted` (a field's name and value) leaves, one for each model.

    Raises InvalidProfile where none is left, or where a model was measured in several places.
    """
    left = {
        origin
        for origin in origins
        if all(getattr(origin, name) == value for name, value in wanted.items())
    }
    if not left:
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
        there = "; ".join(sorted({_words(origin) for origin in origins})) or "nothing"
        raise InvalidProfile(f"no records of {asked or 'any model'}; the database has: {there}")
    for model in {origin.model for origin in left}:
        several = [origin for origin in left if origin.model == model]
        for name in ORIGIN:
            values = sorted({getattr(origin, name) for origin in several})
            if len(values) > 1:
                flag = "--" + name.replace("_", "-")
                raise InvalidProfile(
                    f"{model or 'a model without a name'} was measured with several "
                    f"{name.replace('_', ' ')}s; choose one with {flag}: "
                    f"{', '.join(map(repr, values))}"
                )
    return left


def _words(origin: Origin) -> str:
    return " ".join(part for part in vars(origin).values() if part)
