"""The Dialect over real sockets, with the engine's own thread; only the model is a fake."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
import uvicorn

from distserve.engine.batch import Span, SpanResult
from distserve.engine.blocks import BlockManager
from distserve.engine.commands import MigratorDown, MigratorUp
from distserve.engine.engine import Engine
from distserve.engine.hub import Hub
from distserve.engine.loop import EngineLoop
from distserve.engine.metrics import EngineMetrics
from distserve.engine.migrator_link import MigratorLink
from distserve.engine.process import _config
from distserve.engine.scheduler import Limits, Scheduler
from distserve.engine.server import Served
from distserve.engine.strategies.colocated import compose
from distserve.wire.auth import bearer
from distserve.wire.dialect import InstanceInfo, KvEvent, Leg, LegEvent
from distserve.wire.heads import MAX_HEAD_BYTES
from distserve.wire.tracing import PassingTracing

KEY = b"k" * 40
BLOCKS, BLOCK_TOKENS = 64, 4
_EVENTS = msgspec.json.Decoder(LegEvent)


class GatedRunner:
    """Runs the fake model, one step for each permit once it is gated."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._permits = threading.Semaphore(0)
        self.gated = False
        self.fatal = False

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        if self.gated:
            assert self._permits.acquire(timeout=20)
        if self.fatal:
            raise SystemExit("the device is lost")
        result: list[SpanResult] = self._runner.run(spans)
        return result

    def let(self, steps: int) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        self.gated = False
        self.let(1)


@dataclass
class Site:
    url: str
    http: aiohttp.ClientSession
    served: Served
    engine: Engine
    runner: GatedRunner
    fatal: list[BaseException]

    async def leg(self, leg: Leg) -> list[LegEvent]:
        async with self.http.post(f"{self.url}/legs", data=msgspec.json.encode(leg)) as answer:
            assert answer.status == 200, await answer.text()
            return [_EVENTS.decode(line) async for line in answer.content]


@pytest.fixture
async def site(make_bench: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "tokenizer.json").write_text("{}")
    bench = make_bench(blocks=BLOCKS)
    blocks = BlockManager(BLOCKS, BLOCK_TOKENS)
    runner, metrics, fatal = GatedRunner(bench.runner), EngineMetrics(), []
    parts = replace(
        bench.parts,
        runner=runner,
        blocks=blocks,
        scheduler=Scheduler(blocks, Limits(16, 64), compose),
        metrics=metrics,
        clock=time.monotonic,
    )
    events = asyncio.get_running_loop()
    hub = Hub(parts.epoch, lambda message: None)
    engine = Engine(parts, lambda output: events.call_soon_threadsafe(hub.receive, output) and None)
    loop = EngineLoop(engine, fatal.append)
    info = InstanceInfo(
        instance="i0", role="hybrid", epoch=parts.epoch, fingerprint="f", model="m",
        strategy="Colocated", block_tokens=BLOCK_TOKENS, total_blocks=BLOCKS, max_model_len=200,
        max_num_seqs=16, max_num_batched_tokens=64, vocab_size=100, bos_token_id=None,
        eos_token_ids=[0], chat_template=None, files={"tokenizer.json": "sha"},
    )  # fmt: skip
    served = Served(info, tmp_path, KEY, loop, hub, None, metrics, PassingTracing())
    bound = socket.create_server(("127.0.0.1", 0))
    config = _config(served)
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    loop.start()
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    headers = {"Authorization": bearer(KEY)}
    timeout = aiohttp.ClientTimeout(30)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        host, port = bound.getsockname()
        site = Site(f"http://{host}:{port}", http, served, engine, runner, fatal)
        yield site
        runner.open()
        ended = await asyncio.to_thread(loop.stop, 10)
        hub.close()
        server.should_exit = True
        await serving
    assert ended
    if not fatal:
        engine.check_integrity()
        assert blocks.available == blocks.total


async def test_a_leg_is_a_stream_of_events(site: Site, make_leg: Any, reference: Any) -> None:
    leg = make_leg(range(1, 10), 6, choices=[0, 1])
    *events, end = await site.leg(leg)
    for choice in (0, 1):
        tokens = [e for e in events if getattr(e, "choice", None) == choice and hasattr(e, "id")]
        assert [t.id for t in tokens] == reference.continuation(range(1, 10), 6, choice)
    assert end.lifecycle.decoding_end_ms >= end.lifecycle.context_end_ms > 0


async def test_only_with_the_deployment_key(site: Site) -> None:
    calls = [("POST", "/legs"), ("POST", "/abort"), ("POST", "/release"), ("GET", "/state"),
             ("GET", "/kv-events"), ("GET", "/instance"), ("GET", "/instance/files/tokenizer.json"),
             ("POST", "/drain"), ("GET", "/drain")]  # fmt: skip
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY!r}"}):
        async with aiohttp.ClientSession(headers=header) as stranger:
            for method, path in calls:
                async with stranger.request(method, site.url + path) as answer:
                    assert answer.status == 401, (method, path)
            for path in ("/healthz", "/readyz", "/metrics"):
                async with stranger.get(site.url + path) as answer:
                    assert answer.status == 200
            for path in ("/docs", "/redoc", "/openapi.json"):
                async with stranger.get(site.url + path) as answer:
                    assert answer.status == 404


async def test_no_leg_is_passed_to_another_thread(
    site: Site, make_leg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait there for the thread that steps, once to get on and once to come back."""

    async def run_sync(*_: object, **__: object) -> None:
        raise AssertionError("a leg went to a pool of threads")

    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)
    assert await site.leg(make_leg(range(1, 10), 2))


async def test_a_strangers_head_is_bounded(site: Site) -> None:
    parts = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"POST /legs HTTP/1.1\r\nauthorization: ".ljust(MAX_HEAD_BYTES + 1, b"x"))
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
    writer.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff", 400), (b"[]", 422), (b"{}", 422), (b'{"leg": 1}', 422)],
)
async def test_bodies_that_are_none(site: Site, body: bytes, status: int) -> None:
    for path in ("/legs", "/abort", "/release"):
        async with site.http.post(site.url + path, data=body) as answer:
            assert answer.status == status
            assert (await answer.json())["detail"]


async def test_legs_that_cannot_run_are_refused_in_json(site: Site, make_leg: Any) -> None:
    async with site.http.post(
        f"{site.url}/legs", data=msgspec.json.encode(make_leg([1000], 5))
    ) as answer:
        refused = await answer.json()
    assert (answer.status, refused["type"], refused["retryable"]) == (400, "error", False)
    assert "token ids" in refused["message"]


async def test_one_leg_of_an_id_at_a_time(site: Site, make_leg: Any) -> None:
    site.runner.gated = True
    leg = make_leg([1, 2], 3)
    running = asyncio.create_task(site.leg(leg))
    async with asyncio.timeout(10):
        while not site.served.hub._legs:
            await asyncio.sleep(0.005)
    async with site.http.post(f"{site.url}/legs", data=msgspec.json.encode(leg)) as answer:
        assert answer.status == 409
    site.runner.open()
    assert len(await running) == 5


async def test_an_instance_tells_for_how_long_it_is_idle(site: Site, make_leg: Any) -> None:
    async def idle_seconds() -> float:
        async with site.http.get(f"{site.url}/instance") as answer:
            return float((await answer.json())["idle_seconds"])

    assert await idle_seconds() > 0, "since it began to serve"
    site.runner.gated = True
    leg = msgspec.json.encode(make_leg([1, 2], 3))
    async with site.http.post(f"{site.url}/legs", data=leg) as answer:
        assert await idle_seconds() == 0
        site.runner.open()
        assert len((await answer.text()).splitlines()) == 5
    async with asyncio.timeout(10):
        while not await idle_seconds():
            await asyncio.sleep(0.005)


async def test_a_client_that_leaves_aborts_its_leg(site: Site, make_leg: Any) -> None:
    site.runner.gated = True
    leg = make_leg([1, 2], 100)
    async with site.http.post(f"{site.url}/legs", data=msgspec.json.encode(leg)) as answer:
        site.runner.let(3)
        await answer.content.readline()
        answer.close()
    async with asyncio.timeout(10):
        while site.served.hub._legs:
            await asyncio.sleep(0.005)
    site.runner.open()
    async with asyncio.timeout(10):
        while 'finished_reason="abort"} 1.0' not in site.served.metrics.render().decode():
            await asyncio.sleep(0.005)


async def test_abort_ends_the_stream(site: Site, make_leg: Any) -> None:
    site.runner.gated = True
    leg = make_leg([1, 2], 100)
    running = asyncio.create_task(site.leg(leg))
    async with asyncio.timeout(10):
        while not site.served.hub._legs:
            await asyncio.sleep(0.005)
    for _ in range(2):
        async with site.http.post(f"{site.url}/abort", json={"leg": leg.id}) as answer:
            assert answer.status == 204
    site.runner.open()
    assert (await running)[-1].message == "aborted"


async def test_state_comes_on_change_and_at_least_every_second(site: Site, make_leg: Any) -> None:
    async with site.http.get(f"{site.url}/state") as answer:
        first = json.loads(await answer.content.readline())
        again = json.loads(await answer.content.readline())  # nothing has changed
        assert first["free_blocks"] == again["free_blocks"] == BLOCKS
        site.runner.gated = True
        running = asyncio.create_task(site.leg(make_leg(range(1, 10), 5)))
        while True:
            state = json.loads(await answer.content.readline())
            if state["requests"]:
                break
        assert state["free_blocks"] < BLOCKS
        site.runner.open()
        await running
        while json.loads(await answer.content.readline())["requests"]:
            pass


async def test_state_says_at_once_when_the_migrator_is_gone(site: Site, tmp_path: Path) -> None:
    loop = site.served.loop
    link = site.served.link = MigratorLink(tmp_path / "none.sock", None, [], loop.tell)  # type: ignore[arg-type]

    async def until(answer: aiohttp.ClientResponse, ready: bool) -> dict[str, Any]:
        while (state := json.loads(await answer.content.readline()))["ready"] is not ready:
            pass
        return dict(state)

    async with site.http.get(f"{site.url}/state") as answer:
        before = await until(answer, False)
        link.address = "127.0.0.1:8101"
        loop.tell(MigratorUp(link.address))
        up = await until(answer, True)
        link.address = ""
        loop.tell(MigratorDown())
        down = await until(answer, False)
    # On the change, not with the line that is repeated each second.
    assert before["sequence"] < up["sequence"] < down["sequence"]
    async with site.http.get(f"{site.url}/readyz") as answer:
        assert answer.status == 503


async def test_cache_events_start_with_all_hashes(site: Site, make_leg: Any) -> None:
    await site.leg(make_leg(range(1, 10), 1))
    decode = msgspec.json.Decoder(KvEvent).decode
    async with site.http.get(f"{site.url}/kv-events") as answer:
        first = decode(await answer.content.readline())
        assert first.reset
        assert len(first.stored) == 2
        await site.leg(make_leg(range(20, 30), 1))
        second = decode(await answer.content.readline())
        assert second.sequence == first.sequence + 1
        assert len(second.stored) == 2
        assert not set(first.stored) & set(second.stored)


async def test_instance_and_its_files(site: Site) -> None:
    async with site.http.get(f"{site.url}/instance") as answer:
        said = msgspec.json.decode(await answer.read(), type=InstanceInfo)
        assert msgspec.structs.replace(said, idle_seconds=0.0) == site.served.info
    async with site.http.get(f"{site.url}/instance/files/tokenizer.json") as answer:
        assert await answer.text() == "{}"
    for name in ("config.json", "..%2Fsecret", "%2Fetc%2Fpasswd"):
        async with site.http.get(f"{site.url}/instance/files/{name}") as answer:
            assert answer.status == 404


async def test_drain_takes_nothing_new_and_waits_for_the_rest(site: Site, make_leg: Any) -> None:
    site.runner.gated = True
    running = asyncio.create_task(site.leg(make_leg([1, 2], 3)))
    async with asyncio.timeout(10):
        while not site.served.hub._legs:
            await asyncio.sleep(0.005)
    async with site.http.post(f"{site.url}/drain") as answer:
        assert not (await answer.json())["empty"]
    async with site.http.get(f"{site.url}/readyz") as answer:
        assert answer.status == 503
    late = msgspec.json.encode(make_leg([1, 2], 3))
    async with site.http.post(f"{site.url}/legs", data=late) as answer:
        assert answer.status == 503
        assert (await answer.json())["retryable"]
    site.runner.open()
    assert len(await running) == 5
    async with asyncio.timeout(10):
        while True:
            async with site.http.get(f"{site.url}/drain") as answer:
                report = await answer.json()
            if report["empty"]:
                break
            await asyncio.sleep(0.02)
    assert report == {"draining": True, "requests": 0, "empty": True}


async def test_an_engine_that_breaks_tells_every_leg(site: Site, make_leg: Any) -> None:
    site.runner.gated = site.runner.fatal = True
    legs = [asyncio.create_task(site.leg(make_leg([1, i], 5))) for i in range(1, 4)]
    async with asyncio.timeout(10):
        while len(site.served.hub._legs) < 3:
            await asyncio.sleep(0.005)
    site.runner.open()
    for events in await asyncio.gather(*legs):
        assert events[-1].retryable
        assert "the device is lost" in events[-1].message
    async with asyncio.timeout(10):
        while not site.fatal:  # The legs hear of it first.
            await asyncio.sleep(0.005)
    assert len(site.fatal) == 1
    async with site.http.get(f"{site.url}/healthz") as answer:
        assert answer.status == 503
