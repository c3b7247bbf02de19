"""Text across the P/D boundary: what is streamed does not show where the KV moved."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

from distserve.models.random_weights import make_random_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    make_random_model(
        made, "llama", hidden_size=64, layers=2, heads=4, kv_heads=2, vocab_size=4096,
        max_positions=512, seed=7,
    )  # fmt: skip
    return made


async def pieces(fleet: Any, **body: Any) -> tuple[list[str], str]:
    """Text deltas of a streamed completion, and how it finished."""
    texts, reason = [], ""
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{fleet.gateway_url}/v1/completions",
            json={"model": "test", "stream": True} | body,
            timeout=aiohttp.ClientTimeout(60),
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            texts.append(choice["text"])
            reason = choice["finish_reason"] or reason
    return [t for t in texts if t], reason


def byte_tokens(folder: Path, text: str) -> list[int]:
    """Ids of the tokens that stand for single bytes of `text`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(_shown(byte)) for byte in text.encode()]
    assert None not in ids
    return ids


def _shown(byte: int) -> str:
    """The byte-level alphabet's character for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    hidden = [b for b in range(256) if b not in printable]
    return chr(256 + hidden.index(byte))


async def test_multibyte_characters_and_stop_strings_across_the_boundary(
    fleets: Any, folder: Path
) -> None:
    apart = await fleets(folder)
    together = await fleets(folder, prefill=0, decode=0, hybrid=1, strategy="Colocated")

    # Only bytes of these characters are likely: incomplete ones lie on every boundary.
    bias = {str(t): 100 for t in set(byte_tokens(folder, "é€𝄞"))}
    for seed in range(12):
        body = {
            "prompt": [20 + seed, 30], "max_tokens": 12, "temperature": 1.0, "seed": seed,
            "logit_bias": bias,
        }  # fmt: skip
        ours, theirs = await asyncio.gather(pieces(apart, **body), pieces(together, **body))
        assert ours == theirs

    # A stop string that begins in P's token and ends in D's.
    compared = 0
    for seed in range(8):
        body = {"prompt": [40 + seed, 50], "max_tokens": 8, "temperature": 0.8, "seed": seed}
        whole = "".join((await pieces(together, **body))[0])
        first = (await together.complete(**body | {"max_tokens": 1}))["choices"][0]["text"]
        if not first or len(whole) < len(first) + 1 or "\ufffd" in whole:
            continue
        stop = whole[len(first) - 1 : len(first) + 1]
        ours, theirs = await asyncio.gather(
            pieces(apart, **body, stop=[stop]), pieces(together, **body, stop=[stop])
        )
        assert ours == theirs
        assert ours[1] == "stop"
        assert "".join(ours[0]) == whole[: whole.index(stop)]
        compared += 1
    assert compared >= 3, "the model's texts gave too few cases"
