"""The profile database: rows are committed as they are measured, so that nothing is measured twice.

The table `records` has the columns of DistServe's profiler, which its fitter and ours read, and
says besides what was measured on what. Times are milliseconds; `avg` columns hold medians.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from distserve.profile.errors import ProfileError
from distserve.profile.grid import Point

_BUSY_SECONDS = 30.0
"""For another profiler's commit."""


@dataclass(frozen=True)
class Subject:
    """What is measured; a row belongs to exactly one."""

    model: str
    dtype: str
    device: str
    engine_version: str
    tp_world_size: int = 1
    pp_world_size: int = 1


@dataclass(frozen=True)
class Measured:
    """One row of `records`; None where the engine does not do it in one step."""

    batch_size: int
    input_len: int
    output_len: int
    avg_prefill_time_usage: float | None
    avg_decoding_time_usage: float | None
    prefill_time_stddev: float | None
    decoding_time_stddev: float | None
    decode_context_len: float | None
    repeats: int


@dataclass(frozen=True)
class Served:
    """One row of `serving`: what clients of an idle deployment saw of equal requests at a time."""

    streams: int
    input_len: int
    """Mean of the prompts."""
    longest_len: int
    output_len: int
    context_len: float
    ttft: float
    handover: float
    step: float
    migrated: bool


@dataclass(frozen=True)
class Beside:
    """One row of `beside`: requests that came while streams decoded."""

    streams: int
    input_len: int
    """Of the requests."""
    context_len: float
    """Of the streams."""
    step: float
    """Of the streams alone."""
    lost: float
    """By which the streams' tokens came later for each request."""
    ttft_alone: float
    ttft: float
    prefill_alone: float | None
    """The stage, where the server tells of it."""
    prefill: float | None
    handover_alone: float
    """From the first token to the second, without streams."""
    handover: float
    migrated: bool


Row = Measured | Served | Beside

_KEYS = {
    "records": "batch_size, input_len",
    "serving": "streams, input_len, migrated",
    "beside": "streams, input_len, migrated",
}
_ROWS: dict[str, Any] = {"records": Measured, "serving": Served, "beside": Beside}
_TYPES = {"str": "TEXT", "int": "INTEGER", "bool": "INTEGER"}


class Database:
    """Of one subject: it sees and writes no other's rows."""

    def __init__(self, connection: sqlite3.Connection, subject: Subject) -> None:
        self._connection = connection
        self._subject = subject

    def measured(self) -> set[Point]:
        rows = self._connection.execute(
            f"SELECT batch_size, input_len FROM records WHERE {_WHERE}", astuple(self._subject)
        )
        return {Point(*row) for row in rows}

    def add(self, row: Row) -> None:
        """Write and commit; a row of the same key is replaced."""
        names = [field.name for field in (*fields(self._subject), *fields(row))]
        values = [*astuple(self._subject), *astuple(row)]
        table = next(table for table, of in _ROWS.items() if isinstance(row, of))
        if table == "records":
            names.append("tag")
            values.append(f"{self._subject.model},{self._subject.device}")
        places = ", ".join("?" * len(names))
        with self._connection:
            self._connection.execute(
                f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({places})", values
            )


_SUBJECT = tuple(field.name for field in fields(Subject))
_WHERE = " AND ".join(f"{name} = ?" for name in _SUBJECT)


@contextmanager
def open_database(path: Path, subject: Subject) -> Iterator[Database]:
    """Raises ProfileError where the file is something else, or cannot be written."""
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
            _prepare(connection, path)
            yield Database(connection, subject)
    except sqlite3.Error as error:
        raise ProfileError(
            f"{path} cannot be used as a profile database: {error}; give another --db"
        ) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    with connection:
        for table, row in _ROWS.items():
            columns = [*_columns(Subject), *_columns(row)]
            if table == "records":
                columns.append("tag TEXT")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, "
                f"{', '.join(columns)}, UNIQUE ({', '.join(_SUBJECT)}, {_KEYS[table]}))"
            )
            there = {found[1] for found in connection.execute(f"PRAGMA table_info({table})")}
            if not {column.split()[0] for column in columns} <= there:
                raise ProfileError(
                    f"{path} is another profiler's database; give --db a file of its own "
                    "(`distserve profile fit` reads both)"
                )


def _columns(row: Any) -> Sequence[str]:
    return [
        f"{field.name} {_TYPES.get(str(field.type), 'REAL')}"
        + ("" if "None" in str(field.type) else " NOT NULL")
        for field in fields(row)
    ]
