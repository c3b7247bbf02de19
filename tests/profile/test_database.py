"""Rounds over the grid, and what they come to."""

import platform
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from distserve.models.builtin import builtin_path
from distserve.planner.records import read_records
from distserve.profile.database import Database, Sampled, Subject, open_database
from distserve.profile.errors import ProfileError
from distserve.profile.grid import Bounds, Point
from distserve.profile.progress import Progress
from distserve.profile.session import profile
from distserve.profile.subject import Asked, device_name

BOUNDS = Bounds(sequences=8, step_tokens=64, model_tokens=99, blocks=99, block_tokens=16)
SUBJECT = Subject("tiny", "float32", "a CPU", "distserve 1")
SAMPLE = Sampled(2, 16, 4, round=0, prefill=3.0, decode=1.0, context_len=18.0)


def rounds(database: Database, *decodes: float) -> None:
    for nth, decode_ms in enumerate(decodes):
        database.add(replace(SAMPLE, round=nth, decode=decode_ms, prefill=3 * decode_ms))


def test_a_slow_round_does_not_move_the_median(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    with open_database(path, SUBJECT) as database:
        rounds(database, 1.0, 9.0, 1.1)
        assert database.sampled(4, BOUNDS) == {(Point(2, 16), nth) for nth in range(3)}
    (record,) = read_records(path)
    assert (record.decode_ms, record.prefill_ms, record.context_tokens) == (1.1, 3 * 1.1, 18.0)
    with closing(sqlite3.connect(path)) as plain:
        told = plain.execute("SELECT repeats, decoding_time_stddev FROM records").fetchall()
    assert told == [(3, pytest.approx(3.748, abs=1e-3))]


def test_other_outputs_are_measured_anew(tmp_path: Path) -> None:
    """Their steps have other contexts: medians over both would be of neither."""
    path = tmp_path / "p.sqlite"
    with open_database(path, SUBJECT) as database:
        rounds(database, 5.0, 5.0, 5.0)
        assert database.sampled(8, BOUNDS) == set()
        database.add(replace(SAMPLE, output_len=8, decode=7.0, context_len=20.0))
    (record,) = read_records(path)
    assert (record.decode_ms, record.context_tokens) == (7.0, 20.0)


def test_what_one_step_does_not_prefill_has_no_time(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    with open_database(path, SUBJECT) as database:
        database.add(replace(SAMPLE, prefill=None))
    (record,) = read_records(path)
    assert (record.prefill_ms, record.decode_ms) == (None, 1.0)


def test_a_prefill_that_a_larger_step_takes_is_measured_then(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    small = Asked(
        model=builtin_path("tiny"), served_name="tiny", output_tokens=2, repeats=1, warm_ups=0,
        max_num_batched_tokens=16,
    )  # fmt: skip
    large = replace(small, max_num_batched_tokens=64)
    grid = [Point(1, 4), Point(1, 8), Point(2, 4), Point(4, 8), Point(4, 32)]

    def prefills() -> list[Point]:
        return sorted(
            Point(r.batch_size, r.input_tokens) for r in read_records(path) if r.prefill_ms
        )

    for asked, kept, measured, timed in (
        (small, 0, 5, grid[:3]),
        (small, 5, 0, grid[:3]),
        (large, 4, 1, grid[:4]),
        (large, 5, 0, grid[:4]),
        (small, 5, 0, grid[:4]),
    ):
        found = profile(asked, grid, path)
        assert (found.kept, found.measured, found.wanted) == (kept, measured, 5)
        assert prefills() == timed


def test_what_is_another_s_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE loads (id INTEGER, clients INTEGER)")
        plain.commit()
    with pytest.raises(ProfileError, match="or another release's"), open_database(path, SUBJECT):
        pass
    with closing(sqlite3.connect(path)) as plain:
        tables = plain.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("loads",)]


def test_every_round_goes_over_the_whole_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a call that was interrupted goes on in the round where it was."""
    visited: list[tuple[Point, int]] = []

    class Stopping(Progress):
        def begin(self, visit: tuple[Point, int]) -> None:
            visited.append(visit)
            if len(visited) == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr("distserve.profile.session.Progress", Stopping)
    asked = Asked(
        model=builtin_path("tiny"), served_name="tiny", output_tokens=2, repeats=2, warm_ups=0
    )
    grid = [Point(1, 8), Point(2, 8), Point(1, 16)]
    found = profile(asked, grid, tmp_path / "p.sqlite")
    assert (found.kept, found.measured, found.wanted, found.rounds_left) == (0, 3, 3, 1)
    found = profile(asked, grid, tmp_path / "p.sqlite")
    assert (found.kept, found.measured, found.wanted, found.rounds_left) == (3, 0, 3, 0)
    first, second = [(point, 0) for point in grid], [(point, 1) for point in grid]
    assert visited == [*first, *second, second[-1]]


def test_processors_without_a_name_are_told_apart() -> None:
    named = "processor\t: 0\nmodel name\t: A Fast CPU\nprocessor\t: 1\nmodel name\t: Another\n"
    assert device_name(2, named) == "A Fast CPU x 2 threads"
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: {}\nCPU revision\t: 1\n"
    one, other = (device_name(1, arm.format(part)) for part in ("0xd0c", "0xd40"))
    assert one == f"{platform.machine()} 0x41 0xd0c x 1 thread" and other != one
    assert device_name(1, "processor\t: 0\n") == f"{platform.machine()} x 1 thread"
