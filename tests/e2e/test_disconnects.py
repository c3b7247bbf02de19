"""Clients that leave at any point cost nothing: after quiet, no block is held anywhere."""

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from distserve.models.random_weights import make_random_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_hundred_disconnects_at_random_points(fleets: Any, tmp_path: Path) -> None:
    make_random_model(
        tmp_path, "llama", hidden_size=64, layers=2, heads=4, kv_heads=2, vocab_size=4096,
        max_positions=1024, seed=7,
    )  # fmt: skip
    fleet = await fleets(tmp_path, dtype="float32")
    draw = random.Random(1)
    outcomes = {"left": 0, "finished": 0}

    async def leave_somewhere(http: aiohttp.ClientSession, index: int) -> None:
        body = {
            "model": "test", "stream": True, "max_tokens": 40, "ignore_eos": True,
            "n": 1 + index % 2,
            "prompt": [draw.randrange(10, 500) for _ in range(draw.randint(1, 400))],
        }  # fmt: skip
        patience = draw.choice([0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])

        async def read() -> None:
            async with http.post(f"{fleet.gateway_url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read(), patience)
            outcomes["finished"] += 1
            return
        outcomes["left"] += 1

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        for start in range(0, 100, 20):
            await asyncio.gather(*(leave_somewhere(http, start + i) for i in range(20)))
    assert outcomes["left"] >= 50, outcomes
    await fleet.assert_quiet()
    answer = await fleet.complete(prompt=[20, 30, 40], max_tokens=4, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 4
