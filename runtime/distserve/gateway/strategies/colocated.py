"""Colocated: one instance does both phases, and the policy says which."""

from collections.abc import Sequence
from dataclasses import dataclass

from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.routing import (
    Policy,
    Route,
    RoutingOptions,
    Stop,
    Wait,
    Waiting,
    first_come,
    fitting,
    preferring,
)
from distserve.wire.dialect import Phases


@dataclass(frozen=True)
class SingleInstanceRouter:
    """The whole request runs where it is sent; the options speak of transfers and have no use."""

    policy: Policy
    options: RoutingOptions

    def choose(self, waiting: Waiting, members: list[Member]) -> Route | Wait:
        generation = waiting.generation
        hybrids = [m for m in fitting(members, generation.tokenizer) if m.role == "hybrid"]
        if not hybrids:
            return Wait("no hybrid instance is ready")
        best = self.policy.pick(preferring(hybrids, waiting.avoid), generation, Phases.BOTH)
        return Route((Stop(best, Phases.BOTH),))

    def order(self, waiting: Sequence[Waiting], fleet: Fleet) -> Sequence[Waiting]:
        return first_come(waiting, fleet)

    def complete(self, ready: list[Member]) -> bool:
        return any(m.role == "hybrid" for m in ready)


make_router = SingleInstanceRouter
