"""A gateway before engines of several strategies, as a rollout from one to another has them."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from tests.gateway.fleets import generation, member

from distserve.gateway.fleet import Member
from distserve.gateway.mixture import Mixture
from distserve.gateway.routing import Route, Stop, Waiting
from distserve.wire.dialect import Phases


@pytest.mark.parametrize("told", ["Disaggregated", "Colocated", "ChunkedPrefill"])
async def test_engines_of_every_strategy_serve_whatever_it_was_told(houses: Any, told: str) -> None:
    def each_its_own(engines: list[Any]) -> None:
        strategies = ("Disaggregated", "Disaggregated", "Colocated", "ChunkedPrefill")
        for engine, strategy in zip(engines, strategies, strict=True):
            engine.strategy = strategy

    house = await houses(hybrid=2, strategy=told, change=each_its_own)
    for up in (house.engines[:2], house.engines[2:3], house.engines[3:]):
        for engine in house.engines:
            engine.draining = engine not in up
            engine.changed()
        await until_ready(house, {engine.name for engine in up})
        assert house.gateway.ready
        assert (await house.complete())[0] == 200
        assert all(engine.legs for engine in up)


async def until_ready(house: Any, names: set[str]) -> None:
    await house.until(lambda: {member.name for member in house.gateway.fleet.ready()} == names)


@dataclass
class Always:
    """A router that knows one route."""

    route: Route

    def choose(self, waiting: Waiting, members: list[Member]) -> Route:
        return self.route


def alone(name: str, step_tokens: int, outstanding: int) -> Route:
    """On one instance, which takes so many tokens a step and has so many before it."""
    made = member(name, "hybrid", requests=[("r", "waiting", outstanding, 0)], free=100_000)
    assert made.info is not None
    made.info = msgspec.structs.replace(made.info, max_num_batched_tokens=step_tokens)
    return Route((Stop(made, Phases.BOTH),))


@pytest.mark.parametrize(("small", "large"), [(512, 4096), (4096, 512)])
def test_tokens_that_wait_weigh_the_same_in_small_steps(small: int, large: int) -> None:
    routes = alone("small", 512, small), alone("large", 8192, large)
    mixture = Mixture(tuple(Always(route) for route in routes))  # type: ignore[arg-type]
    chosen = mixture.choose(Waiting(generation(), 0.0), [])
    assert chosen == routes[small > large]
