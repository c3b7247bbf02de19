"""A gateway before engines of several strategies, as a rollout from one to another has them."""

from typing import Any

import pytest


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
