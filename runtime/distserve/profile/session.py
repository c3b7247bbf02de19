"""Measures what a grid asks and the database lacks: the main loop of `distserve profile`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distserve.profile.database import Subject, open_database
from distserve.profile.grid import Point, within
from distserve.profile.progress import Progress
from distserve.profile.subject import Asked, loaded


@dataclass(frozen=True)
class Profiled:
    """What a call left in the database."""

    subject: Subject
    kept: int
    """Points that an earlier call had measured."""
    measured: int
    left_out: int
    """Points of the grid that the engine does not hold."""
    wanted: int

    @property
    def complete(self) -> bool:
        return self.kept + self.measured == self.wanted


def profile(asked: Asked, points: Sequence[Point], database_path: Path) -> Profiled:
    """Ctrl-C ends it after what is committed. Raises ProfileError, EngineError."""
    with loaded(asked) as engine:
        feasible = within(points, engine.bounds, asked.output_tokens)
        with open_database(database_path, engine.subject) as database:
            there = database.measured()
            missing = [point for point in feasible if point not in there]
            kept, done = len(feasible) - len(missing), 0
            progress = Progress(missing, kept, sys.stderr)
            try:
                for point in missing:
                    progress.begin(point)
                    database.add(engine.measure(point))
                    progress.ended(point)
                    done += 1
            except KeyboardInterrupt:
                pass
            finally:
                progress.close()
            return Profiled(engine.subject, kept, done, len(points) - len(feasible), len(feasible))
