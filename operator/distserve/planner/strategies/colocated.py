"""Colocated: every instance does both phases, prefill first (continuous batching as in vLLM).

A waiting prompt that fits the memory is prefilled before the running requests decode on; it is
admitted when its whole context fits, so nothing is preempted.
"""

from __future__ import annotations

from distserve.planner.simulator import Instance, Step
from distserve.planner.strategies.fleet import SimulatedStrategy
from distserve.strategies.colocated import grant_whole


class Colocated(SimulatedStrategy):
    disaggregated = False

    def build(self) -> list[Instance]:
        fleet = self.fleet
        return [
            Instance(self.simulation, "hybrid", i, fleet.prefill, self.choose, self.prefilled)
            for i in range(fleet.prefill_instances)
        ]

    def arrive(self, request: int) -> None:
        chosen = min(self.instances, key=lambda instance: (instance.load, instance.decoding))
        chosen.submit(request, streams=chosen.decoding)

    def choose(self, instance: Instance) -> Step | None:
        spec = instance.spec
        chunks = instance.take(
            grant_whole, spec.max_batched_tokens, instance.seats, self.whole_context
        )
        if chunks:
            return Step(chunks)
        batch = instance.take_ready()
        return Step(decode=batch) if batch else None

    def prefilled(self, request: int, instance: Instance) -> None:
        instance.join(request)
