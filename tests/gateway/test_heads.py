"""Heads of requests: bounded in length and time, while bodies and answers take what they take."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.conftest import WAIT_SECONDS, serve

from distserve.gateway import server
from distserve.gateway.settings import Settings
from distserve.wire import heads
from distserve.wire.heads import MAX_AHEAD, MAX_HEAD_BYTES, BoundedHeads
from distserve.wire.tracing import PassingTracing

HEAD_SECONDS = 0.3
IDLE_SECONDS = 1.5
GET = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
HALF, OTHER_HALF = b"GET /after HTTP/1.1\r\nho", b"st: x\r\n\r\n"
CHUNKED = b"POST /%s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
"""Of an answer: of its last chunk."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says how long the body was. /early does not wait for it, /slow pauses amid its answer."""
    count, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await send({"type": "http.response.body", "body": b"slow", "more_body": True})
        await asyncio.sleep(3 * HEAD_SECONDS)
    told = f"{scope['path']} {count}.".encode()
    await send({"type": "http.response.body", "body": told})


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._reader.readuntil(end)

    async def rest(self) -> bytes:
        """All that comes before the server closes."""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await self._reader.read()
            except ConnectionError:  # it did not read all that was sent
                return b""


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(heads, "HEAD_SECONDS", HEAD_SECONDS)
    async with contextlib.AsyncExitStack() as stack:
        url = await serve(app, stack, lifespan="off", timeout_keep_alive=IDLE_SECONDS)
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        stack.callback(writer.close)
        yield Client(reader, writer)


@pytest.mark.parametrize("first", [b"", GET % b"first"], ids=["new", "used"])
@pytest.mark.parametrize(
    "begun",
    [b"GET /", b"GET / HTTP/1.1\r\nhost: ", b"GET / HTTP/1.1\r\n"],
    ids=["path", "value", "name"],
)
async def test_a_head_without_an_end_is_refused(client: Client, first: bytes, begun: bytes) -> None:
    if first:
        await client.send(first)
        await client.until(END)
    await client.send(begun.ljust(MAX_HEAD_BYTES + 1, b"x"))
    assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


async def test_a_long_head_is_served(client: Client) -> None:
    head = GET % b"long"
    filled = b"x: ".ljust(MAX_HEAD_BYTES - len(head) - 2, b"x") + b"\r\n"
    await client.send(head.replace(b"host: x\r\n", b"host: x\r\n" + filled))
    assert b"/long 0." in await client.until(END)


@pytest.mark.parametrize("begun", [b"0\r\nx: ", b"1;"], ids=["trailer", "extension"])
async def test_nor_may_what_is_around_chunks_be_endless(client: Client, begun: bytes) -> None:
    await client.send(CHUNKED % b"" + begun)
    with contextlib.suppress(ConnectionError):
        await client.send(b"x" * (1 << 20))
    assert await client.rest() == b""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"", HALF),
        (GET % b"", b"\r\n"),
        (GET % b"", HALF),
        (CHUNKED % b"early", b"1\r\n"),
    ],
    ids=["silent", "new line", "half", "used, new line", "used, half", "half a body"],
)
async def test_nobody_is_waited_for_for_ever(client: Client, first: bytes, then: bytes) -> None:
    if first:
        await client.send(first)
        await client.until(END)
    await client.send(then)
    assert await client.rest() == b""


async def test_a_head_in_drops_does_not_last(client: Client) -> None:
    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await client.send(b"x")
                await asyncio.sleep(HEAD_SECONDS / 10)

    await client.send(b"GET /")
    dripping = asyncio.create_task(drip())
    assert await client.rest() == b""
    dripping.cancel()


async def test_bodies_and_answers_take_longer_than_heads(client: Client) -> None:
    await client.send(CHUNKED % b"slow")
    for _ in range(30):
        await client.send(b"a\r\n0123456789\r\n")
        await asyncio.sleep(HEAD_SECONDS / 10)
    await client.send(b"20000\r\n" + b"x" * 0x20000 + b"\r\n0\r\n\r\n" + HALF)
    await client.until(b"slow\r\n")
    assert b"/slow 131372." in await client.until(END)
    await client.send(OTHER_HALF)
    assert b"/after 0." in await client.until(END)


async def test_a_connection_is_used_again(client: Client) -> None:
    """Also later than a head would have had to come."""
    await asyncio.sleep(1.5 * HEAD_SECONDS)
    for path in (b"one", b"two"):
        await client.send(GET % path)
        assert b"/%s 0." % path in await client.until(END)
        await asyncio.sleep(1.5 * HEAD_SECONDS)
    await client.send(HALF)
    await asyncio.sleep(HEAD_SECONDS / 10)
    await client.send(OTHER_HALF)
    assert b"/after 0." in await client.until(END)


async def test_requests_may_be_sent_ahead_but_not_without_end(client: Client) -> None:
    await client.send(b"".join(GET % b"%d" % n for n in range(MAX_AHEAD)))
    for number in range(MAX_AHEAD):
        assert b"/%d 0." % number in await client.until(END)
    await client.send(GET % b"slow" + (MAX_AHEAD + 1) * (GET % b""))
    assert END not in await client.rest()


def test_the_gateway_bounds_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(server._Server, "run", lambda self, sockets: used.append(self.config.http))
    with socket.socket() as bound:
        settings = Settings(model="test", key=b"k", discovery="file:x")
        server.serve(settings, bound, PassingTracing())
    assert used == [BoundedHeads]
