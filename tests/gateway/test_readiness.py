"""When a gateway says that it is ready, and so is in its Service."""

from typing import Any

import aiohttp
import pytest

from distserve.gateway.dispatch import NO_ROUTE_SECONDS


async def probe(house: Any) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/readyz") as answer:
        return answer.status


async def lose_all(house: Any) -> None:
    house.publish(*(engine.name for engine in house.engines))
    await house.until(lambda: not house.gateway.ready)


async def test_it_stays_in_its_service_while_it_holds_requests_for_a_route(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their clients could not connect, where a short wait would do."""
    now = house.gateway.clock()
    monkeypatch.setattr(house.gateway, "clock", lambda: now)
    assert await probe(house) == 200
    await lose_all(house)
    assert await probe(house) == 200
    now += NO_ROUTE_SECONDS - 1
    assert await probe(house) == 200
    now += 1
    assert await probe(house) == 503
    house.publish()
    await house.until(lambda: house.gateway.ready)
    assert await probe(house) == 200


async def test_before_there_was_a_route_it_is_not_ready(houses: Any) -> None:
    house = await houses(prefill=0, ready=False)
    await house.until(lambda: house.gateway.fleet.ready())
    assert await probe(house) == 503


@pytest.mark.parametrize("has_route", [True, False])
async def test_a_gateway_that_ends_leaves_at_once(house: Any, has_route: bool) -> None:
    assert await probe(house) == 200
    if not has_route:
        await lose_all(house)
    house.gateway.begin_shutdown()
    assert await probe(house) == 503
