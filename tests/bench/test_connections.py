"""A request's connection is there before the request is due."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from distserve.bench.client import Client, Target
from distserve.bench.connections import IDLE_SECONDS, Spare, open_session
from distserve.bench.openloop import offer
from distserve.bench.outcome import Outcome, Planned


class Server:
    """Counts connections, and how many there were when each request came."""

    def __init__(self) -> None:
        self.connections = 0
        self.at_request: list[int] = []
        self.now = 0.0
        """By which it knows how long each request's connection had been idle, in seconds."""
        self.idle: list[float] = []
        self._answered: dict[asyncio.BaseTransport, float] = {}

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
        assert request.transport
        self.idle.append(self.now - self._answered.get(request.transport, self.now))
        self._answered[request.transport] = self.now
        return web.Response(text="no event stream")


@pytest.fixture
def plan() -> list[Planned]:
    return [Planned(index, 0.0, "x", 1, 1) for index in range(3)]


async def ask(http: aiohttp.ClientSession, url: str, spare: Spare | None = None) -> None:
    if spare is not None:
        await spare.ready()
    async with http.post(url) as answer:
        await answer.read()


def within_bound(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(check, 30))


def test_a_request_uses_what_is_spare() -> None:
    async def check() -> None:
        server = Server()
        async with server.serve() as url, open_session(30) as http:
            for _ in range(2):  # the second time it is the idle one of the first
                spare = Spare(http, url)
                await ask(http, url, spare)
                spare.drop()
            assert server.at_request == [1, 1]
            spares = [Spare(http, url) for _ in range(3)]
            for spare in spares:
                await spare.ready()
            await asyncio.gather(*(ask(http, url, spare) for spare in spares))
            assert server.at_request[2:] == [3, 3, 3]
            await asyncio.gather(*(ask(http, url) for _ in spares))
            assert server.at_request[5:] == [3, 3, 3], "used ones are there for others"

    within_bound(check())


@pytest.mark.parametrize("held", [True, False], ids=["held", "left"])
@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_no_connection_is_used_that_a_server_may_be_closing(
    monkeypatch: pytest.MonkeyPatch, every: int, held: bool
) -> None:
    """Nor where it was held meanwhile for a request that then did not come."""
    server = Server()
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: server.now)

    async def check() -> None:
        async with server.serve() as url, open_session(30) as http:
            for step in range(24):
                used = step % every == 0
                spares = [Spare(http, url) for _ in range(2 * (used or held))]
                for spare in spares:
                    await spare.ready()
                if used:
                    await asyncio.gather(*(ask(http, url, spare) for spare in spares))
                for spare in spares:
                    spare.drop()
                server.now += 0.7 * IDLE_SECONDS

    within_bound(check())
    assert max(server.idle) <= IDLE_SECONDS
    assert (server.connections == 2) == (every == 1), "what is used often enough is kept"


def test_a_connection_that_was_closed_meanwhile_is_no_request_s() -> None:
    async def check() -> None:
        server = Server()
        async with server.serve() as url, open_session(30) as http:
            spare = Spare(http, url)
            await spare.ready()
            transport = spare._making.result().transport
            assert transport is not None
            transport.abort()
            await ask(http, url, spare)
            spare.drop()
            assert server.connections == 2

    within_bound(check())


def test_what_cannot_be_had_is_left_to_the_request() -> None:
    async def check() -> None:
        async with open_session(30) as http:
            async with Server().serve() as url:
                pass
            nobody_listens = Spare(http, url)
            with pytest.raises(aiohttp.ClientConnectorError):
                await ask(http, url, nobody_listens)
            nobody_listens.drop()
        closed = Spare(http, url)
        await closed.ready()
        closed.drop()

    within_bound(check())


def test_a_session_that_makes_none_ahead_is_no_client_s(plan: list[Planned]) -> None:
    async def check() -> None:
        async with Server().serve() as url, aiohttp.ClientSession() as http:
            with pytest.raises(TypeError, match="take `open_session`"):
                await offer(plan, Client(http, Target(url, "m")))

    within_bound(check())


def test_a_connection_that_is_not_made_in_time_is_no_request(plan: list[Planned]) -> None:
    """Of a server that accepts, and says nothing to a client that begins with TLS."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()  # all of it: until the client has given up
        ended.set()
        writer.close()

    async def check() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, open_session(30) as http:
            target = Target(url, "m", timeout_seconds=0.01)
            observed = await offer(plan[:1], Client(http, target))
            assert [o.failure for o in observed.outcomes] == ["timed out after 0.01 s"]
            await ended.wait()

    within_bound(check())


def test_the_connections_of_a_run_are_there_when_its_requests_are_due(plan: list[Planned]) -> None:
    there: list[int] = []

    class Watching(Client):
        async def send(self, *args: Any) -> Outcome:
            there.append(server.connections)
            return await super().send(*args)

    server = Server()

    async def check() -> None:
        async with server.serve() as url, open_session(30) as http:
            observed = await offer(plan, Watching(http, Target(url, "m")))
        assert len(observed.outcomes) == 3

    within_bound(check())
    assert there == [3, 3, 3]
    assert server.connections == 3


def test_a_run_can_end_before_its_requests_are_due(plan: list[Planned]) -> None:
    async def check() -> None:
        server = Server()
        async with server.serve() as url, open_session(30) as http:
            # When the first is there, the second has its connection, and the third is far off.
            due = zip(plan, (0.0, 0.2, 3600.0), strict=True)
            later = [replace(request, at_seconds=at) for request, at in due]
            run = asyncio.create_task(offer(later, Client(http, Target(url, "m"))))
            while not server.at_request:
                await asyncio.sleep(0.001)
            run.cancel()
            observed = await run
            assert observed.interrupted
            assert len(observed.outcomes) <= 1

    within_bound(check())


def test_what_is_no_fault_of_the_server_ends_the_run(plan: list[Planned]) -> None:
    class Broken(Client):
        async def send(self, *args: Any) -> Outcome:
            raise RuntimeError("not the server's")

    async def check() -> None:
        async with Server().serve() as url, open_session(30) as http:
            with pytest.raises(RuntimeError, match="not the server's"):
                await offer(plan, Broken(http, Target(url, "m")))

    within_bound(check())


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
