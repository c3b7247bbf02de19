"""A client that asks and then does not read: it holds nothing for longer than its request may."""

import asyncio
import contextlib
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.conftest import WAIT_SECONDS

from distserve.gateway import exchange, server
from distserve.gateway.settings import Settings
from distserve.wire.tracing import PassingTracing

LARGE = {
    # Echoed for each choice: more than sockets take of what nobody reads.
    "model": "test", "prompt": "x" * 190_000, "max_tokens": 2, "n": 64, "echo": True,
    "stream": True,
}  # fmt: skip


@contextlib.asynccontextmanager
async def unread(url: str, body: Any) -> Any:
    """A connection with the request sent and nothing read."""
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WAIT_SECONDS):
            await loop.sock_connect(client, (parts.hostname, parts.port))
            await loop.sock_sendall(client, head.encode() + data)
        yield client


async def test_who_stops_to_read_is_let_go_some_seconds_after_the_deadline(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LAST_WORDS_SECONDS", 0.5)
    house = await houses(engine={"max_model_len": 200_000}, request_timeout_seconds=3.0)
    async with unread(house.url, LARGE) as client:
        await house.until(lambda: house.gateway.running)
        await house.until(lambda: not house.gateway.running)
        await house.until_quiet()
        found = await house.metrics()
        assert found["distserve_requests_in_flight"] == 0
        assert found['distserve_requests_total{code="499"}'] == 1
        async with asyncio.timeout(WAIT_SECONDS):
            data = b""
            while part := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                data = data[-100:] + part
        assert not data.endswith(b"data: [DONE]\n\n"), "all of it was in buffers: nothing was seen"


@pytest.mark.parametrize(("timeout_seconds", "unread_ms"), [(30.0, 90_000), (86_400.0, 86_460_000)])
def test_what_nobody_reads_does_not_hold_its_connection(
    monkeypatch: pytest.MonkeyPatch, timeout_seconds: float, unread_ms: int
) -> None:
    """A closed connection too has to send what it still has: the kernel bounds that."""
    monkeypatch.setattr(server._Server, "run", lambda self, sockets: None)
    settings = Settings(
        model="test", key=b"k", discovery="file:x", request_timeout_seconds=timeout_seconds
    )
    with server.listen("127.0.0.1", 0) as bound, socket.socket() as client:
        server.serve(settings, bound, PassingTracing())
        client.connect(bound.getsockname())
        accepted, _ = bound.accept()
        with accepted:
            told = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 75
    assert told == unread_ms
