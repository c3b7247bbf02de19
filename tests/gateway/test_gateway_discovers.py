"""A whole gateway and what it makes of discovery's word, or of its silence."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from tests.gateway.api_stub import ApiStub, endpoint

from distserve.gateway import service
from distserve.gateway.discovery import Endpoint
from distserve.gateway.slice_discovery import Pace, SliceDiscovery

WAIT_SECONDS = 20.0
QUICK = Pace(first_pause_seconds=0.01, max_pause_seconds=0.05, quick_seconds=0.0)
PODS = "tiny-{role}-{index}-0"
"""Of an instance's pods the first one."""


async def test_a_blind_gateway_says_so_in_its_metrics(house: Any) -> None:
    async def age_is(condition: Callable[[float], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition((await house.metrics())["distserve_gateway_discovery_age_seconds"]):
                await asyncio.sleep(0.05)

    await age_is(lambda age: age < 1)
    (house.folder / "endpoints.json").unlink()
    await age_is(lambda age: age > 1)
    assert (await house.complete())[0] == 200
    house.publish()
    await age_is(lambda age: age < 1)


async def test_a_defect_in_discovery_is_told_to_the_kubelet(
    houses: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        heard_at = 0.0

        async def watch(self) -> AsyncIterator[list[Endpoint]]:
            raise ZeroDivisionError("a defect")
            yield []

    monkeypatch.setattr(service, "make_discovery", lambda location: Broken())
    house = await houses(ready=False)
    await house.until(lambda: not house.gateway.alive)
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/health") as answer:
        assert answer.status == 503
    assert "a defect" in caplog.text


# ---- the gateway --------------------------------------------------------------------------------


async def test_requests_are_served_by_what_slices_and_instances_say(
    stub: ApiStub, houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles, units and revisions come from the engines: slices carry no labels of pods."""
    discovery = SliceDiscovery(stub.api, "n", "tiny-instances", pace=QUICK)
    monkeypatch.setattr(service, "make_discovery", lambda location: discovery)
    slow = {"token_seconds": 0.01}
    house = await houses(prefill=2, decode=2, ready=False, engine=slow, names=PODS)

    def publish(**conditions: dict[str, bool]) -> None:
        for engine in house.engines:
            said = endpoint(engine.name, **conditions.get(engine.name, {}))
            stub.put(engine.name, said, port=int(engine.url.rpartition(":")[2]))

    publish()
    fleet = house.gateway.fleet
    await house.until(lambda: len(fleet.ready()) == 4)
    assert [m.role for m in fleet.ready()] == ["decode", "decode", "prefill", "prefill"]
    assert {(m.unit, m.revision) for m in fleet.ready()} == {("u0", "r0")}

    running = asyncio.create_task(house.complete(max_tokens=50))
    await house.until(lambda: any(e.live for e in house.decodes))
    (busy,) = (e for e in house.decodes if e.live)
    publish(**{busy.name: {"serving": False, "terminating": True}})
    await house.until(lambda: len(fleet.ready()) == 3)
    await stub.stop()
    before = len(busy.legs)
    for _ in range(4):
        assert (await house.complete())[0] == 200
    assert len(busy.legs) == before, "a terminating instance gets no new work"
    status, answer = await running
    assert status == 200 and answer["usage"]["completion_tokens"] == 50


async def test_an_address_that_went_to_another_instance_is_not_used_twice(
    stub: ApiStub, houses: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = SliceDiscovery(stub.api, "n", "tiny-instances", pace=QUICK)
    monkeypatch.setattr(service, "make_discovery", lambda location: discovery)
    house = await houses(ready=False, names=PODS)
    for engine in house.engines:
        stub.put(engine.name, endpoint(engine.name), port=int(engine.url.rpartition(":")[2]))
    decode = house.decodes[0]
    stub.put("old", endpoint("tiny-decode-9-0"), port=int(decode.url.rpartition(":")[2]))
    await house.until(lambda: "answers 'tiny-decode-0-0'" in caplog.text)
    await house.until(lambda: house.gateway.ready)
    ready = [m.name for m in house.gateway.fleet.ready()]
    assert ready == ["tiny-decode-0-0", "tiny-prefill-0-0"]
