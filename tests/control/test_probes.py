"""HTTP of the operator for clients that keep silent: none of them holds a connection for ever."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from distserve.operator import probes
from distserve.operator.probes import serve_probes, serving

HEAD = b"GET /healthz HTTP/1.1\r\nHost: operator\r\n"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", b""), (HEAD, b""), (HEAD + b"\r\n", b"HTTP/1.1 200 OK")],
    ids=["nothing", "half a head", "no second request"],
)
async def test_who_keeps_silent_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, answered: bytes
) -> None:
    monkeypatch.setattr(probes, "IDLE_SECONDS", 0.1)
    async with serve_probes("127.0.0.1", 0, lambda: "", lambda: "") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        said = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await writer.wait_closed()
    assert said.startswith(answered) and bool(said) == bool(answered)


async def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "UNTAKEN_SECONDS", 0.5)
    connections: list[Any] = []

    async def large(http: web.Request) -> web.Response:
        connections.append(http.transport)
        return web.Response(body=bytes(32 << 20))  # Far above what the kernel keeps of it.

    app = web.Application()
    app.router.add_get("/healthz", large)
    async with serving(app, "127.0.0.1", 0, 60.0) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(HEAD + b"\r\n")
        async with asyncio.timeout(20):
            while not connections or not connections[0].is_closing():
                await asyncio.sleep(0.02)
        writer.transport.abort()
