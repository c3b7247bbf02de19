"""A round-robin front for several replicas: the baseline of systems that choose by load.

`distserve bench front`; also before vLLM or any other server. Each request goes to the next
replica, whatever its load. What a replica sends is passed on as it comes, so first tokens are seen
when they are there; what it breaks off is broken off, so nobody takes half an answer for a whole.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web

from distserve.bench.connections import IDLE_SECONDS
from distserve.bench.errors import BenchError

MAX_BODY_BYTES = 64 << 20
CONNECT_SECONDS = 5.0
_OF_ONE_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
     "transfer-encoding", "upgrade", "host", "content-length")
)  # fmt: skip


class Front:
    def __init__(self, http: aiohttp.ClientSession, replicas: Sequence[str]) -> None:
        self._http = http
        self._replicas = [replica.rstrip("/").removesuffix("/v1") for replica in replicas]
        self._next = itertools.cycle(range(len(self._replicas)))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One that cannot be reached is passed over; a request that got through is not repeated."""
        body = await request.read()
        reason = ""
        for replica in self._order():
            try:
                answer = await self._http.request(
                    request.method, replica + request.path_qs, data=body or None,
                    headers=_kept(request.headers), allow_redirects=False,
                )  # fmt: skip
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                reason = str(error)
                continue
            except (aiohttp.ClientError, OSError) as error:
                shown = replica.rpartition("@")[2]  # without a user and password
                return _bad_gateway(f"{shown} broke off: {error or type(error).__name__}")
            async with answer:
                return await _pass_on(answer, request)
        return _bad_gateway(f"no replica can be reached: {reason}")

    def _order(self) -> Iterator[str]:
        first = next(self._next)
        return (self._replicas[(first + n) % len(self._replicas)] for n in range(len(self)))

    def __len__(self) -> int:
        return len(self._replicas)


async def _pass_on(answer: aiohttp.ClientResponse, request: web.Request) -> web.StreamResponse:
    passed = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_kept(answer.headers)
    )
    await passed.prepare(request)
    try:
        async for data in answer.content.iter_any():
            await passed.write(data)
    except (aiohttp.ClientError, OSError):
        # A regular end would make a whole answer of it.
        if request.transport is not None:
            request.transport.abort()
        return passed
    await passed.write_eof()
    return passed


def _kept(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(k, v) for k, v in headers.items() if k.lower() not in _OF_ONE_CONNECTION]


def _bad_gateway(message: str) -> web.Response:
    error = {"message": message, "type": "bad_gateway", "param": None, "code": None}
    return web.json_response({"error": error}, status=502)


@asynccontextmanager
async def open_front(replicas: Sequence[str], port: int) -> AsyncIterator[str]:
    """Its URL, while it serves. Raises BenchError where the port is taken."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, trust_env=False
    ) as http:
        front = Front(http, replicas)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", front.handle)
        # A client that goes takes its request at the replica with it.
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True,
            shutdown_timeout=1.0,
        )  # fmt: skip
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            try:
                await site.start()
            except OSError as error:
                raise BenchError(
                    f"port {port} of 127.0.0.1 cannot be used: {error.strerror}; give another"
                ) from error
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def serve_until_signal(replicas: Sequence[str], port: int) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_front(replicas, port) as url:
        with suppress(BrokenPipeError):
            print(f"ready {url}/v1", flush=True)
        await stop.wait()
