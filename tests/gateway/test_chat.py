"""/v1/chat/completions as the openai client sees it."""

from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from distserve.gateway.work import Output, Work

MESSAGES: Any = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
PROMPT = "system:be|user:hi|assistant:"


def alphabet(prompt: str, tokens: int, choice: int = 0) -> str:
    return "".join(
        chr(ord("a") + (sum(prompt.encode()) + 5 * choice + i) % 26) for i in range(tokens)
    )


async def test_the_template_makes_the_prompt(house: Any, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="test", messages=MESSAGES, max_completion_tokens=6
    )
    assert bytes(house.prefills[0].legs[0].prompt).decode() == PROMPT
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == alphabet(PROMPT, 6)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.prompt_tokens == len(PROMPT)


async def test_a_chat_may_use_the_rest_of_the_context(house: Any) -> None:
    status, answer, _ = await house.post(
        "/v1/chat/completions", {"model": "test", "messages": MESSAGES}
    )
    assert status == 200
    assert answer["usage"]["total_tokens"] == 256


async def test_content_of_text_parts_and_developer_messages(house: Any) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": text} for text in "be"]},
        {"role": "user", "content": "hi"},
    ]
    _, answer, _ = await house.post("/tokenize", {"messages": messages})
    assert bytes(answer["tokens"]).decode() == PROMPT


@pytest.mark.parametrize("dumped", [False, True], ids=["as it is", "dumped"])
async def test_an_answer_goes_back_as_it_came(
    client: openai.AsyncOpenAI, house: Any, dumped: bool
) -> None:
    first = await client.chat.completions.create(model="test", messages=MESSAGES, max_tokens=4)
    said: Any = first.choices[0].message
    history = [*MESSAGES, said.model_dump() if dumped else said, {"role": "user", "content": "so"}]
    await client.chat.completions.create(model="test", messages=history, max_tokens=1)
    prompt = bytes(house.prefills[0].legs[1].prompt).decode()
    assert prompt == f"system:be|user:hi|assistant:{said.content}|user:so|assistant:"


@pytest.mark.parametrize("field", ["annotations", "reasoning", "reasoning_content", "tool_calls"])
async def test_what_others_answer_besides_text_is_taken_where_there_is_none(
    house: Any, field: str
) -> None:
    for value, status in ((None, 200), ([], 200), ([{"type": "x"}], 400), ("because", 400)):
        said = {"role": "assistant", "content": "x", field: value}
        asked = {"model": "test", "messages": [said], "max_tokens": 1}
        got, answer, _ = await house.post("/v1/chat/completions", asked)
        assert got == status, answer
        if status == 400:
            assert answer["error"]["param"] == "messages"
            assert answer["error"]["message"] == f"messages: {field} is not supported"


async def test_a_stream_begins_with_the_role(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="test", messages=MESSAGES, max_tokens=4, n=2, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    roles, *middle, last = chunks[:2], *chunks[2:]
    for chunk in roles:
        assert chunk.object == "chat.completion.chunk"
        assert (chunk.choices[0].delta.role, chunk.choices[0].delta.content) == ("assistant", "")
    for index in (0, 1):
        own = [c.choices[0] for c in middle if c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in own) == alphabet(PROMPT, 4, index)
        assert [c.finish_reason for c in own] == [None] * 3 + ["length"]
        assert not any(c.delta.role for c in own)
    assert last.choices == [] and last.usage is not None
    assert last.usage.completion_tokens == 8


async def test_usage_in_chunks_grows_from_nothing(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first tokens come together."""
    one_by_one = Work.outputs

    async def together(work: Work) -> AsyncGenerator[list[Output], None]:
        yield [output async for batch in one_by_one(work) for output in batch]

    monkeypatch.setattr(Work, "outputs", together)
    *chunks, _, _ = await house.stream(
        "/v1/chat/completions", messages=MESSAGES, max_tokens=4,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )  # fmt: skip
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(house: Any, stream: bool) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    if stream:
        *events, _ = await house.stream("/v1/chat/completions", **asked)
        found = [c for e in events[1:] for c in e["choices"][0]["logprobs"]["content"]]
    else:
        _, answer, _ = await house.post("/v1/chat/completions", {"model": "test", **asked})
        found = answer["choices"][0]["logprobs"]["content"]
    text = alphabet(PROMPT, 2)
    assert [entry["token"] for entry in found] == list(text)
    assert [entry["bytes"] for entry in found] == [[ord(c)] for c in text]
    assert [entry["logprob"] for entry in found] == [-0.25, -0.25]
    assert [len(entry["top_logprobs"]) for entry in found] == [2, 2]


async def test_logprobs_without_alternatives(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="test", messages=MESSAGES, max_tokens=2, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.top_logprobs for entry in logprobs.content] == [[], []]


async def test_a_template_that_refuses_is_the_clients_mistake(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="not this one") as caught:
        await client.chat.completions.create(
            model="test", messages=[{"role": "user", "content": "refuse me"}]
        )
    assert caught.value.param == "messages"
