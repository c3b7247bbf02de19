"""/v1/completions as the openai client sees it."""

import asyncio
import json
import threading
import time
from typing import Any

import openai
import pytest

from distserve.gateway import exchange
from distserve.gateway.completions import CompletionAnswer


def alphabet(prompt: str | list[int], tokens: int, choice: int = 0) -> str:
    """What the engines write after this prompt."""
    ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
    return "".join(chr(ord("a") + (sum(ids) + 5 * choice + i) % 26) for i in range(tokens))


async def test_one_prompt_is_prefilled_here_and_decoded_there(
    house: Any, client: openai.AsyncOpenAI
) -> None:
    answer = await client.completions.create(model="test", prompt="hello", max_tokens=8)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == alphabet("hello", 8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 8)
    assert answer.usage.total_tokens == 13
    (prefill,), (decode,) = house.prefills[0].legs, house.decodes[0].legs
    assert prefill.prompt == decode.prompt == list(b"hello")
    assert decode.source.transfer == prefill.transfer
    assert decode.sampling == prefill.sampling
    await house.until_quiet()
    assert not house.prefills[0].aborted and not house.decodes[0].aborted


async def test_defaults_come_from_openai_and_the_models_own_config(
    house: Any, client: openai.AsyncOpenAI
) -> None:
    answer = await client.completions.create(model="test", prompt="hello")
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    await client.completions.create(model="test", prompt="hello", temperature=1.5, seed=-1)
    first, second = (leg.sampling for leg in house.prefills[0].legs)
    assert first.temperature == 0.5, "the model's generation config"
    assert second.temperature == 1.5
    assert 0 <= first.seed < 2**63 and second.seed == 2**63 - 1


async def test_the_default_length_is_cut_to_the_context(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="test", prompt="x" * 250)
    assert answer.usage is not None and answer.usage.completion_tokens == 6


async def test_every_sampling_field_reaches_the_engine(house: Any) -> None:
    status, _ = await house.complete(
        temperature=0.7, top_p=0.9, top_k=7, min_p=0.1, seed=5, presence_penalty=0.5,
        frequency_penalty=-0.5, repetition_penalty=1.1, logit_bias={"65": -100, "66": 2.5},
        stop=["zz"], stop_token_ids=[1, 2], include_stop_str_in_output=True, ignore_eos=True,
        min_tokens=2, skip_special_tokens=False, logprobs=3, cache_salt="tenant", user="me",
    )  # fmt: skip
    assert status == 200
    (leg,) = house.prefills[0].legs
    s = leg.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (0.7, 0.9, 7, 0.1, 5)
    assert (s.presence_penalty, s.frequency_penalty) == (0.5, -0.5)
    assert s.repetition_penalty == 1.1
    assert s.logit_bias == {65: -100, 66: 2.5}
    assert (s.stop, s.stop_token_ids, s.include_stop_str_in_output) == (["zz"], [1, 2], True)
    assert (s.ignore_eos, s.min_tokens, s.skip_special_tokens) == (True, 2, False)
    assert (s.logprobs, s.prompt_logprobs) == (3, None)
    assert leg.salt == house.decodes[0].legs[0].salt == "tenant"


@pytest.mark.parametrize(
    "prompt",
    ["ab", ["ab", "cd", "efg"], [97, 98], [[97, 98], [99], [100, 101]]],
    ids=["text", "texts", "ids", "id lists"],
)
async def test_prompts_of_all_four_kinds(client: openai.AsyncOpenAI, prompt: Any) -> None:
    answer = await client.completions.create(model="test", prompt=prompt, max_tokens=4, n=2)
    batch = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    expected = [alphabet(p, 4, choice) for p in batch for choice in (0, 1)]
    assert [c.text for c in answer.choices] == expected
    assert [c.index for c in answer.choices] == list(range(len(expected)))


async def test_n_choices_share_one_prefill_and_one_transfer(house: Any) -> None:
    status, answer = await house.complete(n=4)
    assert status == 200
    assert [c["text"] for c in answer["choices"]] == [alphabet("hello", 8, i) for i in range(4)]
    assert [leg.choices for leg in house.prefills[0].legs] == [[0, 1, 2, 3]]
    assert [leg.choices for leg in house.decodes[0].legs] == [[0, 1, 2, 3]]
    assert answer["usage"]["completion_tokens"] == 32


@pytest.mark.parametrize("asked", [0, 1, 5])
async def test_logprobs(client: openai.AsyncOpenAI, asked: int) -> None:
    answer = await client.completions.create(
        model="test", prompt="hello", max_tokens=3, logprobs=asked
    )
    got = answer.choices[0].logprobs
    assert got is not None and got.top_logprobs is not None
    text = alphabet("hello", 3)
    assert got.tokens == list(text)
    assert got.token_logprobs == [-0.25] * 3
    assert got.text_offset == [0, 1, 2]
    assert [len(top) for top in got.top_logprobs] == [max(asked, 1)] * 3
    assert [top[t] for top, t in zip(got.top_logprobs, text, strict=True)] == [-0.25] * 3


async def test_echo_with_logprobs_has_none_for_the_first_token(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="test", prompt="hello", max_tokens=2, echo=True, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text == "hello" + alphabet("hello", 2)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.token_logprobs == [None] + [-0.25] * 6
    assert choice.logprobs.top_logprobs is not None and choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.text_offset == list(range(7))


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_alone_generates_nothing(house: Any, stream: bool) -> None:
    body = {"prompt": [104, 105], "max_tokens": 0, "echo": True, "logprobs": 0}
    if stream:
        *events, done = await house.stream(**body, stream_options={"include_usage": True})
        assert done == "[DONE]"
        choice, usage = events[0]["choices"][0], events[-1]["usage"]
    else:
        _, answer = await house.complete(**body)
        choice, usage = answer["choices"][0], answer["usage"]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert choice["finish_reason"] == "length"
    assert usage == {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}
    assert not house.decodes[0].legs, "the prefill instance has all that is asked"


async def test_prompt_logprobs(house: Any) -> None:
    status, answer = await house.complete(prompt="hi", prompt_logprobs=2, logprobs=1, echo=True)
    assert status == 200
    first, second = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second == {
        "105": {"logprob": -0.25, "rank": 1, "decoded_token": "i"},
        "106": {"logprob": -1.25, "rank": 2, "decoded_token": "j"},
    }
    assert len(answer["choices"][0]["logprobs"]["top_logprobs"][1]) == 1


async def test_a_prompt_token_that_is_not_among_the_likeliest_has_its_rank(house: Any) -> None:
    _, answer = await house.complete(prompt="h?", prompt_logprobs=1, logprobs=9, echo=True)
    _, scores = answer["choices"][0]["prompt_logprobs"]
    assert scores == {
        "63": {"logprob": -30.0, "rank": 31, "decoded_token": "?"},
        "97": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
    }
    _, answer = await house.complete(prompt="hi", prompt_logprobs=0)
    _, scores = answer["choices"][0]["prompt_logprobs"]
    assert scores == {"105": {"logprob": -0.25, "rank": 1, "decoded_token": "i"}}


async def test_token_ids_are_returned_when_asked_for(house: Any) -> None:
    _, answer = await house.complete(max_tokens=3, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == list(b"hello")
    assert answer["choices"][0]["token_ids"] == list(alphabet("hello", 3).encode())
    *events, _ = await house.stream(max_tokens=3, return_token_ids=True)
    choices = [e["choices"][0] for e in events]
    assert [c.get("prompt_token_ids") for c in choices] == [list(b"hello"), None, None]
    assert [t for c in choices for t in c["token_ids"]] == list(alphabet("hello", 3).encode())


@pytest.mark.parametrize("stop", ["op", ["zz", "op"]])
@pytest.mark.parametrize("included", [False, True])
async def test_stop_strings(house: Any, stop: Any, included: bool) -> None:
    asked = {"stop": stop, "include_stop_str_in_output": included}
    assert alphabet("hello", 8) == "mnopqrst"
    _, answer = await house.complete(**asked)
    choice = answer["choices"][0]
    assert choice["text"] == ("mnop" if included else "mn")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "op")
    *events, _ = await house.stream(**asked)
    assert "".join(e["choices"][0]["text"] for e in events) == choice["text"]


async def test_a_stream_ends_with_its_finish_reason_and_done(
    client: openai.AsyncOpenAI, house: Any
) -> None:
    stream = await client.completions.create(
        model="test", prompt="hello", max_tokens=5, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert [c.choices[0].text for c in chunks] == list(alphabet("hello", 5))
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["length"]
    assert len({c.id for c in chunks}) == 1
    assert (await house.stream())[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("options", "at_end", "in_chunks"),
    [
        (None, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": False}, False, False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_stream_options(
    house: Any, path: str, options: dict[str, bool] | None, at_end: bool, in_chunks: bool
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    body = chat if "chat" in path else {}
    *events, _ = await house.stream(path, stream_options=options, **body)
    *chunks, last = events if at_end else [*events, None]
    assert all(("usage" in chunk) == in_chunks for chunk in chunks)
    if in_chunks:
        assert chunks[-1]["usage"]["completion_tokens"] == 8
    if at_end:
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8


async def test_streamed_and_whole_answers_are_the_same(house: Any) -> None:
    asked = {"prompt": ["ab", "cd"], "n": 2, "logprobs": 2, "echo": True}
    _, whole = await house.complete(**asked)
    *events, _ = await house.stream(**asked)
    for choice in whole["choices"]:
        parts = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(p["text"] for p in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [v for p in parts for v in p["logprobs"][name]] == values
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


async def test_a_request_of_one_token_makes_no_transfer(house: Any) -> None:
    _, answer = await house.complete(max_tokens=1)
    assert answer["choices"][0]["text"] == alphabet("hello", 1)
    assert house.prefills[0].legs[0].transfer is None
    assert not house.decodes[0].legs


async def test_an_end_at_the_first_token_lets_the_decode_instance_go(houses: Any) -> None:
    """Whether it already has its leg, or not yet."""
    for gate in (None, asyncio.Event()):
        house = await houses(engine={"eos_at": 0, "prefill_gate": gate})
        asked = asyncio.create_task(house.complete())
        if gate is not None:
            await house.until(lambda house=house: house.decodes[0].live)
            gate.set()
        _, answer = await asked
        assert answer["choices"][0]["text"] == ""
        assert answer["choices"][0]["finish_reason"] == "stop"
        await house.until(lambda house=house: house.prefills[0].released)
        assert len(house.decodes[0].legs) == (gate is not None)
        await house.until_quiet()


async def test_text_that_is_no_utf8_is_held_together(house: Any) -> None:
    _, tokens, _ = await house.post("/tokenize", {"prompt": "né"})
    assert tokens["tokens"] == list("né".encode())
    assert tokens["count"] == 3
    _, text, _ = await house.post("/detokenize", {"tokens": tokens["tokens"]})
    assert json.dumps(text) == json.dumps({"prompt": "né"})


async def test_long_prompts_leave_the_event_loop(houses: Any) -> None:
    house = await houses(engine={"max_model_len": 40000})
    status, answer = await house.complete(prompt="x" * 30000, max_tokens=2)
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == 30000


async def test_answers_of_many_log_probabilities_leave_the_event_loop(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, threads = CompletionAnswer.whole, []

    def watched(*args: Any, **more: Any) -> Any:
        threads.append(threading.current_thread())
        return whole(*args, **more)

    monkeypatch.setattr(CompletionAnswer, "whole", watched)
    _, here = await house.complete(logprobs=2, seed=1)
    monkeypatch.setattr(exchange, "LONG_SCORES", 8 * 3 - 1)
    monkeypatch.setattr(exchange, "LONG_BATCH", 0)
    _, aside = await house.complete(logprobs=2, seed=1)
    assert aside["choices"] == here["choices"]
    assert threads[0] is threading.main_thread() is not threads[1]
    await house.complete()
    assert threads[2] is threading.main_thread(), "text alone is soon put together"


async def test_large_parts_of_a_stream_leave_the_event_loop(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, threads = CompletionAnswer.chunks, set()

    def watched(*args: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return chunks(*args)

    async def on_the_loop(**asked: Any) -> bool:
        threads.clear()
        *_, last, _ = await house.stream(logprobs=2, **asked)
        assert last["choices"][0]["finish_reason"] == "length"
        [found] = threads
        return found

    monkeypatch.setattr(CompletionAnswer, "chunks", watched)
    assert await on_the_loop(echo=True), "few log-probabilities"
    monkeypatch.setattr(exchange, "LONG_SCORES", 8)
    assert not await on_the_loop(echo=True)
    assert await on_the_loop(), "a token at a time"
    monkeypatch.setattr(exchange, "LONG_BATCH", 0)
    assert not await on_the_loop()


async def test_large_answers_are_put_together_one_at_a_time(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, busy = CompletionAnswer.whole, threading.Lock()

    def alone(*args: Any, **more: Any) -> Any:
        assert busy.acquire(blocking=False)
        try:
            time.sleep(0.05)
            return whole(*args, **more)
        finally:
            busy.release()

    monkeypatch.setattr(CompletionAnswer, "whole", alone)
    monkeypatch.setattr(exchange, "LONG_SCORES", 8)
    monkeypatch.setattr(exchange, "LONG_BATCH", 0)
    asked = [house.complete(logprobs=2) for _ in range(4)]
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 4
    assert not house.gateway.rendering.locked()


async def test_who_waits_for_large_answers_has_a_deadline(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await houses(request_timeout_seconds=1.0)
    monkeypatch.setattr(exchange, "LONG_SCORES", 8)
    await house.gateway.rendering.acquire()
    status, _ = await house.complete(logprobs=2)
    assert status == 200, "a short one waits for nobody"
    monkeypatch.setattr(exchange, "LONG_BATCH", 0)
    status, answer = await house.complete(logprobs=2)
    assert (status, answer["error"]["code"]) == (504, "request_timeout")
