"""How long moving KV cache takes: measured send/recv times of a fabric level.

A network table is a csv of size_bytes,intra_node_ms,inter_node_ms; the shipped ones are medians of
public measurements, a user's own probe writes the same columns.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import inf
from pathlib import Path

from distserve.planner.errors import InvalidProfile

LEVELS = ("intra_node", "inter_node")
DEFAULT_NETWORK = "a100-dgx"


@dataclass(frozen=True)
class Link:
    """Transfer times between two accelerators, interpolated; linear beyond the largest size."""

    name: str
    size_bytes: Sequence[float]
    time_ms: Sequence[float]

    @property
    def bytes_per_ms(self) -> float:
        """Bandwidth at the largest measured size."""
        return self.size_bytes[-1] / self.time_ms[-1]

    def transfer_ms(self, payload_bytes: float) -> float:
        sizes, times = self.size_bytes, self.time_ms
        if payload_bytes <= sizes[0]:
            return times[0]
        if payload_bytes >= sizes[-1]:
            return times[-1] + (payload_bytes - sizes[-1]) / self.bytes_per_ms
        at = bisect_left(sizes, payload_bytes)
        part = (payload_bytes - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return times[at - 1] + part * (times[at] - times[at - 1])


def load_link(network: str = DEFAULT_NETWORK, level: str = "intra_node") -> Link:
    """One level of a shipped network table by name, or of a user's by the path of its csv."""
    if level not in LEVELS:
        raise InvalidProfile(f"unknown fabric level {level}; choose one of {', '.join(LEVELS)}")
    shipped = files("distserve.planner") / "data" / "network" / f"{network}.csv"
    source = Path(network) if Path(network).suffix == ".csv" else shipped
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InvalidProfile(
            f"unknown network {network}; give a shipped name such as {DEFAULT_NETWORK} or a csv of "
            "size_bytes,intra_node_ms,inter_node_ms"
        ) from error
    return _link(network, level, content)


@lru_cache(maxsize=16)
def _link(network: str, level: str, content: bytes) -> Link:
    """By its content, which may change under one name; every candidate of a search has the same."""
    try:
        rows = sorted(
            (float(row["size_bytes"] or "nan"), float(row[f"{level}_ms"] or "nan"))
            for row in csv.DictReader(content.decode("utf-8-sig").splitlines())
        )
    except (KeyError, ValueError, csv.Error) as error:
        raise InvalidProfile(
            f"{network} is not a network table: {error!r}; "
            "its columns must be size_bytes,intra_node_ms,inter_node_ms"
        ) from error
    usable = all(0 < size < inf and 0 < time_ms < inf for size, time_ms in rows)
    if not usable or len(dict(rows)) < 2:
        raise InvalidProfile(
            f"{network} needs at least two sizes, and in each row a size and {level}_ms above 0"
        )
    sizes, times = zip(*rows, strict=True)
    return Link(f"{network} {level}", sizes, times)
