"""A request's connection is there before the request is due."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web

from distserve.bench.client import Client, Target
from distserve.bench.connections import held
from distserve.bench.openloop import offer
from distserve.bench.outcome import Outcome, Planned


class Server:
    """Counts connections, and how many there were when each request came."""

    def __init__(self) -> None:
        self.connections = 0
        self.at_request: list[int] = []

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        assert runner.server is not None
        make = runner.server

        def counted() -> asyncio.Protocol:
            self.connections += 1
            return make()

        server = await asyncio.get_running_loop().create_server(counted, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.at_request.append(self.connections)
        await request.read()
        return web.Response(text="no event stream")


def test_what_was_held_is_used() -> None:
    async def check() -> None:
        server = Server()
        async with server.serve() as url, aiohttp.ClientSession() as http:
            for _ in range(2):  # the second time it is the idle one of the first
                async with held(http, url, 10):
                    pass
                async with http.post(url) as answer:
                    await answer.read()
            assert server.at_request == [1, 1]
            async with held(http, url, 10), held(http, url, 10), http.post(url) as answer:
                await answer.read()
            assert server.at_request == [1, 1, 3]

    asyncio.run(asyncio.wait_for(check(), 30))


def test_where_none_is_had_the_request_is_left_to_it() -> None:
    async def check() -> None:
        server = Server()
        async with aiohttp.ClientSession() as http:
            async with server.serve() as url:
                async with held(http, url, 0.0):  # no time for it
                    pass
                async with http.post(url) as answer:
                    assert answer.status == 200
            async with held(http, url, 10):  # nobody listens
                pass
        async with held(http, url, 10):  # the session is over
            pass

    asyncio.run(asyncio.wait_for(check(), 30))


def test_each_request_of_a_run_finds_its_connection_made() -> None:
    happened: list[str] = []

    class Holding(Client):
        @contextlib.asynccontextmanager
        async def _holding(self, seconds: float) -> AsyncIterator[None]:
            assert 0 < seconds < 1
            happened.append("held")
            yield
            happened.append("let go")

        def connection_held(self, seconds: float) -> contextlib.AbstractAsyncContextManager[None]:
            return self._holding(seconds)

        async def send(self, request: Planned, body: bytes, planned: float) -> Outcome:
            happened.append("sent")
            return Outcome(request.index, 1, 1, planned, planned, planned)

    async def check() -> None:
        async with aiohttp.ClientSession() as http:
            client = Holding(http, Target("http://127.0.0.1:9", "m"))
            await offer([Planned(0, 0.0, "x", 1, 1)], client)

    asyncio.run(asyncio.wait_for(check(), 30))
    assert happened == ["held", "let go", "sent"]


def test_the_table_of_descriptors_is_made_once() -> None:
    """In a process of its own: a table does not shrink."""
    status = Path("/proc/self/status")
    program = f"""
from pathlib import Path
from distserve.bench.connections import allow_many_connections
allow_many_connections()
print(*[line for line in Path({str(status)!r}).read_text().splitlines() if "FDSize" in line])
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(told.stdout.split()[1]) >= 8192
