"""Connections that prove nothing do not keep others out."""

import asyncio
import contextlib

from distserve.migrator import listener
from distserve.wire import messages


async def test_silent_connections_make_room_for_who_has_the_key(harness, monkeypatch):
    monkeypatch.setattr(listener, "MAX_STRANGERS", 4)
    monkeypatch.setattr(listener, "FAIR_SECONDS", 0.2)
    p, d = await harness.pair()
    host, port = p.address.rsplit(":", 1)

    there = asyncio.Semaphore(0)

    async def stay_silent():
        while True:
            reader, writer = await asyncio.open_connection(host, int(port))
            there.release()
            try:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            finally:
                writer.close()

    silent = [asyncio.create_task(stay_silent()) for _ in range(12)]
    for _ in silent:
        await asyncio.wait_for(there.acquire(), 20)
    source, here = harness.span(0, 20, 8, 7), harness.span(0, 20, 9, 3)
    await p.offer("t", source)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", source)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)
