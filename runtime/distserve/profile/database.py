"""The profile database: batches are committed as they are measured, so that none is measured twice;
what a deployment adds, which belongs together, all at once.

A batch's times in each round over the grid are in `samples`, what they come to in `records`, which
has the columns of DistServe's profiler, read by its fitter and ours, and says besides what was
measured on what. Times are milliseconds; `avg` columns hold medians.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median, pstdev
from typing import Any

from distserve.profile.errors import ProfileError
from distserve.profile.grid import Bounds, Point, Visit

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
class Sampled:
    """One row of `samples`: a batch in one round."""

    batch_size: int
    input_len: int
    output_len: int
    round: int
    prefill: float | None
    """None where the engine does not do it in one step."""
    decode: float
    """Median of its steps."""
    context_len: float
    """Of each request, in the mean of these."""


@dataclass(frozen=True)
class Measured:
    """One row of `records`: medians over the rounds, and their spread."""

    batch_size: int
    input_len: int
    output_len: int
    avg_prefill_time_usage: float | None
    avg_decoding_time_usage: float | None
    prefill_time_stddev: float | None
    decoding_time_stddev: float | None
    decode_context_len: float | None
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[Sampled]) -> Measured:
        """All of one batch."""
        first = samples[0]
        prefills = [sample.prefill for sample in samples if sample.prefill is not None]
        decodes = [sample.decode for sample in samples]
        return cls(
            first.batch_size,
            first.input_len,
            first.output_len,
            median(prefills) if prefills else None,
            median(decodes),
            pstdev(prefills) if prefills else None,
            pstdev(decodes),
            first.context_len,
            len(samples),
        )


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
class Loaded:
    """One row of `loads`: what so many clients saw of a deployment."""

    clients: int
    round: int
    requests: str
    """As `distserve.planner.loads` has them, in JSON."""


Row = Sampled | Measured | Served | Loaded

_KEYS = {
    "samples": "batch_size, input_len, round",
    "records": "batch_size, input_len",
    "serving": "streams, input_len, migrated",
    "loads": "clients, round",
}
_ROWS: dict[str, Any] = {
    "samples": Sampled,
    "records": Measured,
    "serving": Served,
    "loads": Loaded,
}
_TYPES = {"str": "TEXT", "int": "INTEGER", "bool": "INTEGER"}


class Database:
    """Of one subject: it sees and writes no other's rows."""

    def __init__(self, connection: sqlite3.Connection, subject: Subject) -> None:
        self._connection = connection
        self._subject = subject

    def sampled(self, output_len: int, bounds: Bounds) -> set[Visit]:
        """With outputs of this length: others' contexts are others. A prefill that took several
        steps then, and takes one now, is still to be measured."""
        rows = self._connection.execute(
            "SELECT batch_size, input_len, round, prefill FROM samples "
            f"WHERE {_WHERE} AND output_len = ?",
            (*astuple(self._subject), output_len),
        )
        visits = ((Point(*point), nth, prefill) for *point, nth, prefill in rows)
        return {
            (point, nth)
            for point, nth, prefill in visits
            if prefill is not None or not bounds.prefills_at_once(point)
        }

    def recorded(self) -> dict[Point, bool]:
        """What a fit has already, whatever the length of its outputs: whether with a prefill."""
        rows = self._connection.execute(
            "SELECT batch_size, input_len, avg_prefill_time_usage IS NOT NULL FROM records "
            f"WHERE {_WHERE}",
            astuple(self._subject),
        )
        return {Point(*point): bool(prefilled) for *point, prefilled in rows}

    def replace_deployment(self, rows: Sequence[Served | Loaded]) -> None:
        """What another layout added is of no use beside what this one does. All at once: half a
        measurement is worse than the former one."""
        with self._connection:
            for table in ("serving", "loads"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE {_WHERE}", astuple(self._subject)
                )
            for row in rows:
                self._write(row)

    def add(self, row: Row) -> None:
        """Write and commit; a row of the same key is replaced, a batch's record brought along."""
        with self._connection:
            self._write(row)
            if isinstance(row, Sampled):
                self._write(Measured.of(self._samples_like(row)))

    def _samples_like(self, row: Sampled) -> list[Sampled]:
        """All rounds of its batch."""
        names = ", ".join(field.name for field in fields(Sampled))
        rows = self._connection.execute(
            f"SELECT {names} FROM samples WHERE {_WHERE} "
            "AND batch_size = ? AND input_len = ? AND output_len = ?",
            (*astuple(self._subject), row.batch_size, row.input_len, row.output_len),
        )
        return [Sampled(*found) for found in rows]

    def _write(self, row: Row) -> None:
        names = [field.name for field in (*fields(self._subject), *fields(row))]
        values = [*astuple(self._subject), *astuple(row)]
        table = next(table for table, of in _ROWS.items() if isinstance(row, of))
        if table == "records":
            names.append("tag")
            values.append(f"{self._subject.model},{self._subject.device}")
        places = ", ".join("?" * len(names))
        self._connection.execute(
            f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({places})", values
        )


_SUBJECT = tuple(field.name for field in fields(Subject))
_WHERE = " AND ".join(f"{name} = ?" for name in _SUBJECT)


@contextmanager
def open_database(path: Path, subject: Subject) -> Iterator[Database]:
    """Raises ProfileError where the file is something else, or cannot be written."""
    with _prepared(path) as connection:
        yield Database(connection, subject)


def refuse_unusable(path: Path) -> None:
    """As `open_database` does, before a model is loaded for nothing. Makes no file."""
    if path.exists() or not path.parent.is_dir():
        with _prepared(path):
            pass


@contextmanager
def _prepared(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.parent.is_dir():
        raise ProfileError(f"{path}: there is no folder {path.parent}; make it, or correct --db")
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
            _prepare(connection, path)
            yield connection
    except sqlite3.Error as error:
        raise ProfileError(
            f"{path} cannot be used as a profile database: {error}; give another --db"
        ) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    tables = {table: [*_columns(Subject), *_columns(row)] for table, row in _ROWS.items()}
    tables["records"].append("tag TEXT")
    for table, columns in tables.items():
        there = {found[1] for found in connection.execute(f"PRAGMA table_info({table})")}
        if there and not {column.split()[0] for column in columns} <= there:
            raise ProfileError(
                f"{path} is another profiler's database, or another release's; give --db a file "
                "of its own (`distserve profile fit` reads both)"
            )
    with connection:
        for table, columns in tables.items():
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, "
                f"{', '.join(columns)}, UNIQUE ({', '.join(_SUBJECT)}, {_KEYS[table]}))"
            )


def _columns(row: Any) -> list[str]:
    return [
        f"{field.name} {_TYPES.get(str(field.type), 'REAL')}"
        + ("" if "None" in str(field.type) else " NOT NULL")
        for field in fields(row)
    ]
