"""What is copied to serve more, how often it fits a machine, and how well it answers a question.

`copies` never falls when accelerators are added to a node or a node to the machine: the searches
rely on it, since a plan must not get worse with more hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from distserve.planner.goodput import Goodput
from distserve.planner.machine import Machine
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet


@dataclass(frozen=True)
class Unit:
    """Instances of each role, cut into `segments` of one node each.

    `segments` is 0 where instances, and with `Machine.span_nodes` their pipeline stages, may lie
    on any nodes.
    """

    fleet: Fleet
    segments: int = 1

    @property
    def accelerators(self) -> int:
        return self.fleet.accelerators

    def copies(self, machine: Machine) -> int:
        if self.segments:
            return machine.copies(self.accelerators // self.segments, self.segments)
        fleet = self.fleet
        parts: dict[int, int] = {}
        for spec, instances in (
            (fleet.prefill, fleet.prefill_instances),
            (fleet.decode, fleet.decode_instances),
        ):
            if spec is not None:
                size, count = _parts(spec, machine.span_nodes)
                parts[size] = parts.get(size, 0) + count * instances
        return machine.scattered(parts)


def _parts(spec: InstanceSpec, span_nodes: bool) -> tuple[int, int]:
    """Accelerators of an instance that need one node, and how many such parts it has."""
    return (spec.tp, spec.pp) if span_nodes else (spec.accelerators, 1)


@dataclass(frozen=True)
class Judged:
    """A unit and its goodput; `reason` says why it has none.

    `settled` says that a long run holds it, or lowered it to what it holds; none is made where
    another unit is better already.
    """

    unit: Unit
    goodput: Goodput | None
    reason: str | None = None
    settled: bool = False

    @property
    def rate(self) -> float:
        return self.goodput.rate if self.goodput else 0.0

    @property
    def per_accelerator(self) -> float:
        return self.rate / self.unit.accelerators


class Score(NamedTuple):
    """Higher is better: meets the question; then the total rate that was asked to be large, or
    the accelerators that were asked to be few (negative); then goodput per accelerator."""

    meets: int
    amount: float
    efficiency: float

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts the best first."""
        return tuple(-part for part in self)
