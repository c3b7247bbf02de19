"""Where a run's requests come from: a user's file, or a labelled synthetic stand-in."""

from __future__ import annotations

from distserve.bench.synthetic import synthetic
from distserve.workload import RequestSet, read_requests

_SYNTHETIC = "synthetic:"


def is_synthetic(name: str) -> bool:
    """Whether `--dataset` names a set that is drawn, not a file."""
    return name.startswith(_SYNTHETIC)


def load(name: str, count: int, seed: int, limit_tokens: int | None = None) -> RequestSet:
    """The set that `--dataset` names, without requests that are longer together than the limit.

    A synthetic one is made `count` long. Raises BenchError or WorkloadError with the cure.
    """
    if is_synthetic(name):
        return synthetic(name.removeprefix(_SYNTHETIC), count, seed, limit_tokens)
    requests = read_requests(name)
    return requests if limit_tokens is None else requests.within(limit_tokens)
