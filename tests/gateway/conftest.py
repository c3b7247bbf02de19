"""A house: engines that write the alphabet, and a gateway before them, over real sockets."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import uvicorn
from tests.gateway.api_stub import INSTANCES, ApiStub, endpoint
from tests.gateway.fake_engine import KEY, FakeEngine, Transfers
from tests.gateway.follower import QUICK, Follower

from distserve.api.gateway import RoutingPolicy
from distserve.api.strategies import StrategyName
from distserve.gateway.app import make_app
from distserve.gateway.service import Gateway
from distserve.gateway.settings import Settings
from distserve.gateway.slice_discovery import Pace, SliceDiscovery
from distserve.wire.heads import BoundedHeads
from distserve.wire.tracing import PassingTracing, Tracing

WAIT_SECONDS = 20.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """The test's process keeps its own."""
        yield


@dataclass(eq=False)
class House:
    """Engines and a gateway."""

    engines: list[FakeEngine]
    folder: Path
    gateway: Gateway
    url: str = ""

    @property
    def prefills(self) -> list[FakeEngine]:
        return [e for e in self.engines if e.role == "prefill"]

    @property
    def decodes(self) -> list[FakeEngine]:
        return [e for e in self.engines if e.role == "decode"]

    def publish(self, *gone: str, **changes: dict[str, Any]) -> None:
        endpoints = [
            {"name": e.name, "url": e.url, "role": e.role, "unit": "u0", "revision": e.revision,
             "domain": "", "ready": True, "terminating": False} | changes.get(e.name, {})
            for e in self.engines
            if e.name not in gone
        ]  # fmt: skip
        new = self.folder / "endpoints.new"
        new.write_text(json.dumps({"endpoints": endpoints}))
        new.rename(self.folder / "endpoints.json")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_quiet(self) -> None:
        await self.until(lambda: all(e.quiet for e in self.engines))
        await self.until(lambda: not any(m.flights for m in self.gateway.fleet.members.values()))
        await self.until(lambda: self.gateway.admission.waiting == 0)

    async def metrics(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    async def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed body, headers in lower case."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.url + path, json=body, headers=headers) as answer,
        ):
            parsed = json.loads(await answer.text())
            return answer.status, parsed, {k.lower(): v for k, v in answer.headers.items()}

    async def complete(self, **body: Any) -> tuple[int, Any]:
        asked = {"model": "test", "prompt": "hello", "max_tokens": 8} | body
        status, parsed, _ = await self.post("/v1/completions", asked)
        return status, parsed

    async def stream(self, path: str = "/v1/completions", **body: Any) -> list[Any]:
        """All events; the last one is the text [DONE]."""
        asked = {"model": "test", "stream": True} | body
        if path == "/v1/completions":
            asked = {"prompt": "hello", "max_tokens": 8} | asked
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.url + path, json=asked) as answer,
        ):
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            text = await answer.text()
        parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]


async def serve(app: Any, stack: contextlib.AsyncExitStack, **options: Any) -> str:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(512)
    config = uvicorn.Config(
        app, http=BoundedHeads, ws="none", log_config=None, access_log=False,
        timeout_graceful_shutdown=5, **options,
    )  # fmt: skip
    server = _Server(config)
    task = asyncio.create_task(server.serve([bound]))

    async def stop() -> None:
        server.should_exit = True
        await asyncio.wait_for(task, WAIT_SECONDS)

    stack.push_async_callback(stop)
    async with asyncio.timeout(WAIT_SECONDS):
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.005)
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
async def houses(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """make(prefill=1, decode=1, hybrid=0, engine={...}, **settings) -> a House that is ready."""
    async with contextlib.AsyncExitStack() as stack:
        made = 0

        async def make(
            *,
            prefill: int = 1,
            decode: int = 1,
            hybrid: int = 0,
            strategy: str = "Disaggregated",
            engine: dict[str, Any] | None = None,
            change: Callable[[list[FakeEngine]], None] = lambda engines: None,
            tracing: Tracing | None = None,
            ready: bool = True,
            names: str = "{role}-{index}",
            policy: str = "LeastOutstanding",
            **settings: Any,
        ) -> House:
            nonlocal made
            made += 1
            folder = tmp_path / f"house{made}"
            folder.mkdir()
            transfers = Transfers()
            engines = [
                FakeEngine(
                    names.format(role=role, index=i), role, transfers, strategy, **(engine or {})
                )
                for role, count in (("prefill", prefill), ("decode", decode), ("hybrid", hybrid))
                for i in range(count)
            ]
            transfers.engines = engines
            change(engines)
            for one in engines:
                await one.start()
                stack.push_async_callback(one.stop)
            gateway = Gateway(
                Settings(
                    model="test", key=KEY, discovery=f"file:{folder}/endpoints.json",
                    strategy=StrategyName(strategy), routing_policy=RoutingPolicy(policy),
                    **settings,
                )
            )  # fmt: skip
            house = House(engines, folder, gateway)
            house.publish()
            house.url = await serve(make_app(gateway, tracing or PassingTracing()), stack)
            if ready:
                await house.until(lambda: gateway.ready)
                await house.until(lambda: len(gateway.fleet.ready()) == len(engines))
            return house

        yield make


@pytest.fixture
async def house(houses: Callable[..., Any]) -> House:
    made: House = await houses()
    return made


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{house.url}/v1", api_key="any", max_retries=0, timeout=30
    ) as made:
        yield made


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[ApiStub]:
    made = ApiStub(tmp_path)
    await made.start()
    made.put("s1", endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"))
    yield made
    await made.stop()


@pytest.fixture
async def follow(stub: ApiStub) -> AsyncIterator[Callable[..., Any]]:
    """follow(pace=QUICK) -> a Follower that has seen the list and watches."""
    tasks: list[asyncio.Task[None]] = []

    async def start(pace: Pace = QUICK, gateways: str = "") -> Follower:
        draw = random.Random(1)
        follower = Follower(SliceDiscovery(stub.api, "n", INSTANCES, gateways, pace, draw))
        tasks.append(asyncio.create_task(follower.follow()))
        await follower.until_ready("a", "b")
        await follower.until(lambda: stub.watching == 1)
        return follower

    yield start
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
