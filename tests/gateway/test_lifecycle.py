"""Who asks hears where the request's time went; who does not ask gets OpenAI's answer alone."""

import json
from typing import Any

import aiohttp
import pytest

ASK = {"x-lifecycle": "true"}
APART = (
    "issued_ms", "context_begin_ms", "context_end_ms", "migration_begin_ms", "migration_end_ms",
    "decoding_begin_ms", "decoding_end_ms",
)  # fmt: skip
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


async def stream(house: Any, path: str, body: dict[str, Any], headers: dict[str, str]) -> list[Any]:
    asked = {"model": "test", "stream": True, "max_tokens": 4} | body
    async with (
        aiohttp.ClientSession() as http,
        http.post(house.url + path, json=asked, headers=headers) as answer,
    ):
        assert answer.status == 200
        parts = (await answer.text()).split("\n\n")
    data = [part.removeprefix("data: ") for part in parts if part]
    assert data.pop() == "[DONE]"
    return [json.loads(part) for part in data]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "hello"}), ("/v1/chat/completions", CHAT)]
)
async def test_the_last_chunk_tells(house: Any, path: str, body: dict[str, Any]) -> None:
    last = (await stream(house, path, body, ASK))[-1]
    assert last["choices"] == [] and "usage" not in last
    (told,) = last["lifecycle"]
    assert sorted(told) == sorted(APART)
    # As the engines of these tests report it: each leg on the clock of its own issue.
    assert told["context_begin_ms"] - told["issued_ms"] == pytest.approx(2.0, abs=0.01)
    assert told["context_end_ms"] - told["issued_ms"] == pytest.approx(10.0, abs=0.01)
    assert told["migration_begin_ms"] >= told["context_end_ms"]
    assert told["decoding_end_ms"] - told["decoding_begin_ms"] == pytest.approx(25.0, abs=0.01)
    assert all(told[name] >= 0 for name in APART)
    both = await stream(house, path, body | {"stream_options": {"include_usage": True}}, ASK)
    assert both[-1]["usage"]["completion_tokens"] == 4 and both[-1]["lifecycle"]
    assert all("lifecycle" not in chunk for chunk in both[:-1])


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "hello"}), ("/v1/chat/completions", CHAT)]
)
async def test_not_asked_nothing_is_added(house: Any, path: str, body: dict[str, Any]) -> None:
    for headers in ({}, {"x-lifecycle": "false"}):
        assert all("lifecycle" not in c for c in await stream(house, path, body, headers))
    status, whole, _ = await house.post(path, {"model": "test", "max_tokens": 4} | body)
    assert status == 200 and "lifecycle" not in whole


async def test_a_whole_answer_tells_of_each_prompt(house: Any) -> None:
    body = {"model": "test", "prompt": ["hello", "you"], "max_tokens": 4}
    status, whole, _ = await house.post("/v1/completions", body, ASK)
    assert status == 200
    assert [sorted(told) for told in whole["lifecycle"]] == [sorted(APART)] * 2


async def test_in_one_place_nothing_moves(houses: Any) -> None:
    house = await houses(prefill=0, decode=0, hybrid=1, strategy="Colocated")
    (told,) = (await stream(house, "/v1/completions", {"prompt": "hello"}, ASK))[-1]["lifecycle"]
    assert sorted(told) == sorted(n for n in APART if not n.startswith("migration"))


async def test_another_word_is_refused(house: Any) -> None:
    body = {"model": "test", "prompt": "hello"}
    status, answer, _ = await house.post("/v1/completions", body, {"x-lifecycle": "yes"})
    assert status == 400 and answer["error"]["param"] == "x-lifecycle"
