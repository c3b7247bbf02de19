"""Where a run's requests come from: a user's file, or a labelled synthetic stand-in."""

from __future__ import annotations

from distserve.bench.synthetic import synthetic
from distserve.workload import RequestSet, read_requests

_SYNTHETIC = "synthetic:"


def load(name: str, count: int, seed: int) -> RequestSet:
    """The set that `--dataset` names. A synthetic one is made `count` long.

    Raises BenchError or WorkloadError with the cure.
    """
    if name.startswith(_SYNTHETIC):
        return synthetic(name.removeprefix(_SYNTHETIC), count, seed)
    return read_requests(name)
