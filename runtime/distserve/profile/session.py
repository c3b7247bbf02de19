"""Measures what a grid asks and the database lacks: the main loop of `distserve profile`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distserve.profile.database import Subject, open_database, refuse_unusable
from distserve.profile.grid import Point, Visit, refuse_too_few, within
from distserve.profile.progress import Progress
from distserve.profile.subject import Asked, loaded


@dataclass(frozen=True)
class Profiled:
    """What a call left in the database."""

    subject: Subject
    kept: int
    """Points that an earlier call had measured, in any round."""
    measured: int
    """Further points."""
    left_out: int
    """Points of the grid that the engine does not hold."""
    wanted: int
    rounds_left: int
    """Not whole yet."""


def profile(asked: Asked, points: Sequence[Point], database_path: Path) -> Profiled:
    """Round after round over the grid, so that a slow minute of the machine is one sample of many
    points and not all samples of a few.

    Ctrl-C ends it after what is committed. Raises ProfileError, EngineError.
    """
    refuse_unusable(database_path)
    with loaded(asked) as engine:
        feasible = within(points, engine.bounds, asked.output_tokens)
        if not database_path.exists():  # nor is a file made for what is refused
            refuse_too_few(feasible, engine.bounds)
        with open_database(database_path, engine.subject) as database:
            refuse_too_few(feasible, engine.bounds, database.recorded())
            there = database.sampled(asked.output_tokens, engine.bounds)
            kept = {point for point, _ in there} & set(feasible)
            every = [(point, nth) for nth in range(asked.repeats) for point in feasible]
            missing = [visit for visit in every if visit not in there]
            done: list[Visit] = []
            progress = Progress(missing, len(every) - len(missing), sys.stderr)
            try:
                for visit in missing:
                    progress.begin(visit)
                    database.add(engine.measure(*visit))
                    progress.ended(visit)
                    done.append(visit)
            except KeyboardInterrupt:
                pass
            finally:
                progress.close()
            return Profiled(
                engine.subject,
                kept=len(kept),
                measured=len({point for point, _ in done} - kept),
                left_out=len(points) - len(feasible),
                wanted=len(feasible),
                rounds_left=len({nth for _, nth in missing[len(done) :]}),
            )
