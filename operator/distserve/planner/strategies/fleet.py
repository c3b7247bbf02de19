"""What is simulated: instances by role, the link between them, and the strategy's options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distserve.planner.links import Link
from distserve.planner.simulator import Instance, InstanceSpec, Simulation


@dataclass(frozen=True)
class Fleet:
    """All instances that serve one trace.

    A strategy that does both phases on the same instances uses `prefill` alone.
    """

    prefill: InstanceSpec
    decode: InstanceSpec | None = None
    prefill_instances: int = 1
    decode_instances: int = 1
    link: Link | None = None
    """Between a prefill and a decode instance; None means that migration takes no time."""
    lanes: int = 1
    """Parallel connections of one migration: each carries its share of the bytes."""
    kv_bytes_per_token: float = 0.0
    shared_machines: bool = False
    """Whether prefill and decode instances lie on the same machines: then they slow each other, by
    the shares in their specs' `serving`."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accelerators(self) -> int:
        decode = self.decode.accelerators * self.decode_instances if self.decode else 0
        return self.prefill.accelerators * self.prefill_instances + decode

    def migration_ms(self, tokens: int) -> float:
        if self.link is None:
            return 0.0
        return self.link.transfer_ms(tokens * self.kv_bytes_per_token / self.lanes)


class SimulatedStrategy(ABC):
    """Builds the instances of a fleet in a simulation and steers them."""

    disaggregated: bool
    """Whether prefill and decode have instances of their own."""

    def __init__(self, simulation: Simulation, fleet: Fleet) -> None:
        self.simulation = simulation
        self.fleet = fleet
        self.trace = simulation.trace
        self.instances = self.build()
        longest = max(
            map(sum, zip(self.trace.prompt_tokens, self.trace.output_tokens, strict=True))
        )
        for instance in self.instances:
            instance.memory.must_hold(longest)

    @abstractmethod
    def build(self) -> list[Instance]: ...

    @abstractmethod
    def arrive(self, request: int) -> None:
        """Queue a request that has just arrived."""

    @abstractmethod
    def prefilled(self, request: int, instance: Instance) -> None:
        """Send on a request whose prompt `instance` has prefilled and that has tokens left."""

    def whole_context(self, request: int) -> int:
        """Tokens that a request holds when it ends."""
        return self.trace.prompt_tokens[request] + self.trace.output_tokens[request]
