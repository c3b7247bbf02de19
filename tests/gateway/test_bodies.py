"""Bodies of requests: how long they may be, how long they may take, how many come at a time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp


def posted(http: aiohttp.ClientSession, house: Any, body: Any) -> Any:
    return http.post(
        f"{house.url}/v1/completions",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=aiohttp.ClientTimeout(20),
    )


async def test_large_bodies_are_refused_while_many_are_on_their_way(houses: Any) -> None:
    house = await houses(max_body_bytes=200_000)
    house.gateway.body_bytes = 4 * 200_000

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 70_000
        await asyncio.Event().wait()

    async with (
        aiohttp.ClientSession() as http,
        posted(http, house, endless()) as reply,
    ):
        assert reply.status == 429
        assert (await reply.json())["error"]["code"] == "overloaded"
        assert int(reply.headers["retry-after"]) >= 1
    assert (await house.complete())[0] == 200, "small ones come in"
    assert house.gateway.body_bytes == 4 * 200_000


async def test_a_body_without_an_end_is_not_waited_for(houses: Any) -> None:
    house = await houses(request_timeout_seconds=0.5)

    async def drops() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" "
            await asyncio.sleep(0.05)

    async with (
        aiohttp.ClientSession() as http,
        posted(http, house, drops()) as reply,
    ):
        assert reply.status == 408
    assert house.gateway.body_bytes == 0


async def test_bodies_that_are_too_long_or_no_json(houses: Any) -> None:
    house = await houses(max_body_bytes=2000)
    status, answer = await house.complete(prompt="x" * 3000)
    assert status == 413
    assert answer["error"]["code"] == "request_too_large"
    async with aiohttp.ClientSession() as http:
        for body in (b"{", b"[]", b"null", b"", b'{"model": "te\xff"}', b"[" * 1500):
            async with posted(http, house, body) as reply:
                assert reply.status == 400, body
                assert (await reply.json())["error"]["type"] == "invalid_request_error"
        async with http.get(f"{house.url}/nowhere") as reply:
            assert reply.status == 404
            assert (await reply.json())["error"]["message"]
        async with http.get(f"{house.url}/v1/completions") as reply:
            assert reply.status == 405
