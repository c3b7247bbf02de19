"""The round-robin front: whose turn it is, what passes through, and what a broken replica does."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from distserve.bench.errors import BenchError
from distserve.bench.front import open_front

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def one(handler: Handler) -> str:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        yield one


def named(name: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        body = await request.text()
        told = f"{name} {request.method} {request.path_qs} {request.headers.get('x-slo')} {body}"
        return web.Response(text=told, status=201, headers={"x-by": name})

    return answer


async def test_each_in_turn_and_everything_passes(serve: Serve) -> None:
    replicas = [await serve(named("a")), await serve(named("b")) + "/v1"]
    async with open_front(replicas, 0) as url, aiohttp.ClientSession() as http:
        told = []
        for _ in range(4):
            async with http.post(f"{url}/v1/x?y=1", data="hi", headers={"x-slo": "5"}) as answer:
                assert (answer.status, answer.headers["x-by"]) == (201, (await answer.text())[0])
                told.append(await answer.text())
    assert told == [f"{name} POST /v1/x?y=1 5 hi" for name in "abab"]


async def test_what_cannot_be_reached_is_passed_over(serve: Serve, unused_tcp_port: int) -> None:
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    async with (
        open_front([dead, await serve(named("b"))], 0) as url,
        aiohttp.ClientSession() as http,
    ):
        for _ in range(3):
            async with http.get(f"{url}/v1/models") as answer:
                assert answer.headers["x-by"] == "b"
    async with (
        open_front([dead, dead], 0) as url,
        aiohttp.ClientSession() as http,
        http.get(f"{url}/v1/models") as answer,
    ):
        assert answer.status == 502
        error = (await answer.json())["error"]
        assert error["message"].startswith("no replica can be reached")


async def test_a_stream_passes_as_it_comes(serve: Serve) -> None:
    more = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        await more.wait()
        await answer.write(b"data: 2\n\n")
        return answer

    async with (
        open_front([await serve(stream)], 0) as url,
        aiohttp.ClientSession() as http,
        asyncio.timeout(30),
        http.get(url) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readany() == b"data: 1\n\n"
        more.set()
        assert await answer.content.read() == b"data: 2\n\n"


async def test_a_broken_stream_does_not_end_well(serve: Serve) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport
        request.transport.abort()
        return answer

    async with open_front([await serve(breaks)], 0) as url, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(30), http.get(url) as answer:
                await answer.read()


async def test_a_client_that_goes_takes_its_request_along(serve: Serve) -> None:
    gone = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first")
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()
        return answer

    async with open_front([await serve(waits)], 0) as url:
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            await answer.content.readany()
        async with asyncio.timeout(30):
            await gone.wait()


async def test_a_port_that_is_taken(serve: Serve) -> None:
    port = int((await serve(named("a"))).rpartition(":")[2])
    with pytest.raises(BenchError, match=f"port {port} .* give another"):
        async with open_front(["http://127.0.0.1:1"], port):
            pass


def test_as_a_command() -> None:
    command = [sys.executable, "-m", "distserve.cli.main", "bench", "front", "--port", "0"]
    refused = subprocess.run(
        [*command, "--url", "here"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2 and "no URL" in refused.stderr
    with subprocess.Popen(
        [*command, "--url", "http://127.0.0.1:1"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready http://127.0.0.1:")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
