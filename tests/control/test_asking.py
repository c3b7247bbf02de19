"""How much the operator listens to engines and migrators: they are a tenant's."""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from distserve.operator.asking import Asking, NotAnswered, Where
from distserve.operator.pairs import Member

KEY = b"k" * 32
ONE = Member("d0", "uid-d0", "127.0.0.1", "node-a")
LINK = {
    "state": "up",
    "instance": "opt-13b-u0-prefill-0",
    "transport": "TCP",
    "not_used": {"SharedMemory": "the peer shares no memory: it is on another machine"},
    "error": "",
    "probe": {"transport": "TCP", "latency_ms": 0.2, "bandwidth_bytes_per_second": 2e9},
}


@asynccontextmanager
async def saying(body: bytes, **headers: str) -> AsyncIterator[Asking]:
    """Of somebody who answers everything so."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{any}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    asking = Asking(lambda member: Where(url, url))
    try:
        yield asking
    finally:
        await asking.close()
        await runner.cleanup()


def instance(template_bytes: int) -> bytes:
    return json.dumps({"fingerprint": "f", "chat_template": "x" * template_bytes}).encode()


def links(count: int) -> bytes:
    """As migrators of an earlier version answer: all that they have."""
    peers = [f"opt-13b-u0-prefill-{number}.llm:8101" for number in range(count)]
    return json.dumps({"links": dict.fromkeys(peers, LINK)}).encode()


async def test_what_real_ones_say_is_heard_to_its_end() -> None:
    async with saying(instance(300_000)) as asking:
        assert (await asking.instance(ONE, KEY)).fingerprint == "f"
    async with saying(links(64)) as asking:
        found = await asking.measure(ONE, "opt-13b-u0-prefill-63.llm:8101", KEY)
        assert found.transport == "TCP"


async def test_nobody_is_listened_to_for_longer() -> None:
    async with saying(instance(2 << 20)) as asking:
        with pytest.raises(NotAnswered, match="more than 1048576 bytes"):
            await asking.instance(ONE, KEY)
    async with saying(links(640)) as asking:
        with pytest.raises(NotAnswered, match="more than 65536 bytes"):
            await asking.measure(ONE, "opt-13b-u0-prefill-63.llm:8101", KEY)


async def test_what_is_packed_is_not_unpacked() -> None:
    """A few kilobytes may become gigabytes."""
    packed = gzip.compress(instance(0))
    async with saying(packed, **{"Content-Encoding": "gzip"}) as asking:
        with pytest.raises(NotAnswered, match="an answer of another version"):
            await asking.instance(ONE, KEY)
