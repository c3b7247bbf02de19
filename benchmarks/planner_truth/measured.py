"""What was measured of a setup, kept as JSON: another fit can be judged on it without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from benchmarks.planner_truth.deployment import Failed

from distserve.bench.openloop import Observed
from distserve.bench.outcome import Planned
from distserve.planner.loads import LoadRecord

OTHERS_AT_MOST = 0.05
"""Cores that other work may take: beside more, it is another machine that is measured."""


@dataclass(frozen=True)
class Run:
    """One rate with one seed, as it was seen."""

    share: float
    rate: float
    seed: int
    plan: Sequence[Planned]
    observed: Observed
    others_cpu: float
    """Cores that processes of others took meanwhile."""

    @property
    def at_rest(self) -> bool:
        return self.others_cpu <= OTHERS_AT_MOST


@dataclass
class Measured:
    """Of one setup: loads, and between each two of them a run."""

    overloads: list[list[Planned]] = field(default_factory=list)
    capacity: float = 0.0
    """Requests a second, as the overloads showed it in the mean."""
    loads: list[list[LoadRecord]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def loads_at_rest(self) -> list[list[LoadRecord]]:
        """Those with no run beside them that met other work."""
        return [
            load
            for nth, load in enumerate(self.loads)
            if all(run.at_rest for run in self.runs[max(0, nth - 1) : nth + 1])
        ]


def keep(measured: Measured, scratch: Path, model: str, strategy: str) -> None:
    _path(scratch, model, strategy).write_bytes(msgspec.json.encode(measured))


def held(scratch: Path, model: str, strategy: str) -> bool:
    return _path(scratch, model, strategy).exists()


def kept(scratch: Path, model: str, strategy: str) -> Measured:
    """Raises Failed where there is nothing, or something else."""
    path = _path(scratch, model, strategy)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError) as error:
        raise Failed(f"{path} holds no measurement: {error}; measure without --again") from error


def _path(scratch: Path, model: str, strategy: str) -> Path:
    return scratch / f"{model}-{strategy}.measured.json"
