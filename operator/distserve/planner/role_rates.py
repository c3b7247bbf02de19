"""What one role does when the other costs nothing: the first half of the paper's Algorithm 1.

Called by the placement search, which takes each role's best instances from here and never lets a
mix of both have more than its roles have apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from distserve.planner.capacity import capacity
from distserve.planner.errors import OversizedRequest
from distserve.planner.goodput import Evaluator, Goodput
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.workload import RequestSet

INSTANT = TimeModel(Coefficients(0, 0, 0), Coefficients(0, 0, 0), Coefficients(0, 0, 0))


@dataclass(frozen=True)
class RoleRates:
    """Goodputs of `prefill` and `decode` instances by themselves, each simulated once."""

    evaluator: Evaluator
    template: InstanceSpec
    progress: Callable[[], None]
    _known: dict[tuple[str, InstanceSpec, int], Goodput | None] = field(default_factory=dict)

    def goodput(self, role: str, spec: InstanceSpec, instances: int = 1) -> Goodput | None:
        """None where an instance cannot hold a request at all."""
        key = role, spec, instances
        if key not in self._known:
            self.progress()
            try:
                self._known[key] = self._evaluator(role).goodput(self._fleet(*key))
            except OversizedRequest:
                self._known[key] = None
        return self._known[key]

    def rate(self, role: str, spec: InstanceSpec) -> float:
        found = self.goodput(role, spec)
        return found.rate if found else 0.0

    def capacity(self, role: str, spec: InstanceSpec, instances: int = 1) -> float:
        """What no simulation exceeds."""
        return capacity(self._fleet(role, spec, instances), self._evaluator(role).mean)

    def candidates(self, role: str, specs: Iterable[InstanceSpec]) -> list[InstanceSpec]:
        """Of each tensor degree the shallowest pipeline, and every deeper one that does more per
        accelerator than all shallower ones.

        What is added to `specs` later, deeper or of another tensor degree, takes none away.
        """
        chosen: list[InstanceSpec] = []
        best: dict[int, float] = {}
        for spec in sorted(specs, key=lambda spec: spec.accelerators):
            efficiency = self.rate(role, spec) / spec.accelerators
            if spec.tp not in best or efficiency > best[spec.tp]:
                chosen.append(spec)
                best[spec.tp] = efficiency
        return chosen

    def limit(self, fleet: Fleet) -> float:
        """The lowest rate at which one of the fleet's roles is known to miss by itself."""
        assert fleet.decode is not None
        return min(
            self._limit("prefill", fleet.prefill, fleet.prefill_instances),
            self._limit("decode", fleet.decode, fleet.decode_instances),
        )

    def _limit(self, role: str, spec: InstanceSpec, instances: int) -> float:
        found = self.goodput(role, spec, instances)
        if found is None:
            return math.inf  # the fleet's own simulation says which request is too large
        if found.next is not None:
            return found.next.rate
        return self.capacity(role, spec, instances)

    def _fleet(self, role: str, spec: InstanceSpec, instances: int) -> Fleet:
        free = replace(self.template, times=INSTANT, tp=1)
        if role == "prefill":
            return Fleet(spec, free, instances, 1)
        return Fleet(free, spec, 1, instances)

    def _evaluator(self, role: str) -> Evaluator:
        if role == "decode":
            return self.evaluator
        return replace(
            self.evaluator,
            requests=_without_decode(self.evaluator.requests),
            population=_without_decode(self.evaluator.population),
        )


def _without_decode(requests: RequestSet) -> RequestSet:
    """The same prompts, each with the one token that its prefill gives."""
    return replace(requests, output_tokens=[1] * len(requests))
