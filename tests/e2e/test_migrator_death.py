"""A migrator that is killed takes no request with it in silence: each has its answer or its error,
what decodes already goes on, and nothing is held once the lease is over."""

import asyncio
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from distserve.models.random_weights import make_random_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REQUEST_SECONDS = 20
BACK_SECONDS = 30.0
OUTPUT_TOKENS = 400
WAVE = 12


@dataclass
class Outcome:
    """How a streamed request ended for its client."""

    tokens: list[int]
    finished: bool = False
    error: str = ""


async def ask(fleet: Any, prompt: list[int], tokens: int) -> Outcome:
    """A stream to its end. Raises when that is neither an answer nor an error in its shape."""
    body = {
        "model": "test", "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens,
        "temperature": 0, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    outcome = Outcome([])
    timeout = aiohttp.ClientTimeout(REQUEST_SECONDS + 10)
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{fleet.gateway_url}/v1/completions", json=body, timeout=timeout) as answer,
    ):
        if answer.status != 200:
            return Outcome([], error=json.loads(await answer.text())["error"]["message"])
        events = [line[6:] async for line in answer.content if line.startswith(b"data: ")]
    assert events.pop().strip() == b"[DONE]"
    for event in map(json.loads, events):
        if "error" in event:
            outcome.error = event["error"]["message"]
        else:
            outcome.tokens += event["choices"][0]["token_ids"]
            outcome.finished = event["choices"][0]["finish_reason"] == "length"
    return outcome


async def until(what: str, holds: Any, seconds: float = BACK_SECONDS) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s in vain for {what}") from None


@pytest.mark.parametrize("transport", ["SharedMemory", "TCP"])
async def test_requests_outlive_a_killed_migrator(
    fleets: Any, tmp_path: Path, transport: str
) -> None:
    make_random_model(
        tmp_path, "llama", hidden_size=64, layers=2, heads=4, kv_heads=2, vocab_size=4096,
        max_positions=1024, seed=7,
    )  # fmt: skip
    fleet = await fleets(
        tmp_path,
        dtype="float64",
        transport=transport,
        engine=["--lease", "3s"],
        prefill_engine=["--max-num-batched-tokens", "64"],  # so that chunks are on their way
        gateway=["--request-timeout", f"{REQUEST_SECONDS}s"],
    )
    prefill, decode = fleet.instances
    long = [20, 30, 40]
    expected = await ask(fleet, long, OUTPUT_TOKENS)
    assert expected.finished

    for round_, victim in enumerate((prefill, decode)):
        decoding = asyncio.create_task(ask(fleet, long, OUTPUT_TOKENS))

        async def is_decoding() -> bool:
            requests = (await fleet.state(decode))["requests"]
            return any(r["tokens_out"] >= 5 for r in requests)

        await until("a request that decodes", is_decoding)
        prompts = [[100 + round_, 10 + i] + [50 + i] * 200 for i in range(WAVE)]
        wave = [asyncio.create_task(ask(fleet, prompt, 16)) for prompt in prompts]

        async def is_prefilling() -> bool:
            return len((await fleet.state(prefill))["requests"]) >= 2

        await until("requests at the prefill instance", is_prefilling)
        victim.migrator.stop(signal.SIGKILL)

        assert not all(task.done() for task in wave), "killed too late to be missed"
        victim.migrator = fleet.start_migrator(victim.name, victim.host, transport)

        outcomes = await asyncio.gather(*wave)
        assert all(o.finished != bool(o.error) for o in outcomes), outcomes
        assert (await decoding) == expected, "its KV had moved before"

        async def is_served(prompts: list[list[int]] = prompts) -> bool:
            return (await ask(fleet, prompts[0], 16)).finished

        await until("an answer after the restart", is_served)
        again = await asyncio.gather(*(ask(fleet, prompt, 16) for prompt in prompts))
        assert all(o.finished for o in again), again
        for before, after in zip(outcomes, again, strict=True):
            assert before.tokens == after.tokens[: len(before.tokens)], "tokens of other KV"
        await fleet.assert_quiet()
    fleet.check_alive()
