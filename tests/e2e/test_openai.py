"""What OpenAI's own client gets from real engines: values are checked against transformers, a
colocated instance and each other, since the gateway's own tests look at the shapes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from openai import AsyncOpenAI
from schemathesis.checks import not_a_server_error
from transformers import AutoModelForCausalLM, PreTrainedModel

from distserve.models.builtin import builtin_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROMPT = "The function returns"
CHAT: Any = [{"role": "user", "content": "What does len do?"}]
CLOSE = 1e-4


@dataclass
class Service:
    """A disaggregated deployment, and one whose only instance does all."""

    apart: AsyncOpenAI
    together: AsyncOpenAI
    model: PreTrainedModel

    async def complete(self, **asked: Any) -> Any:
        return await self.apart.completions.create(**({"model": "test", "prompt": PROMPT} | asked))

    async def chat(self, **asked: Any) -> Any:
        return await self.apart.chat.completions.create(
            **({"model": "test", "messages": CHAT} | asked)
        )

    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """Of transformers: row i says what follows token i."""
        with torch.inference_mode():
            return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0].float(), dim=-1)


def ids_of(choice: Any) -> list[int]:
    return list(choice.token_ids)


IDS = {"return_token_ids": True}


async def prompts_of_all_kinds(service: Service) -> None:
    one, two = "The function returns", "Raise an exception"
    greedy = {"max_tokens": 12, "temperature": 0, "extra_body": IDS}
    first = await service.complete(prompt=one, **greedy)
    second = await service.complete(prompt=two, **greedy)
    texts = [first.choices[0].text, second.choices[0].text]
    ids: list[Any] = [first.choices[0].prompt_token_ids, second.choices[0].prompt_token_ids]

    batch = await service.complete(prompt=[one, two], **greedy)
    assert [c.index for c in batch.choices] == [0, 1]
    assert [c.text for c in batch.choices] == texts
    assert batch.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    assert batch.usage.completion_tokens == sum(len(ids_of(c)) for c in batch.choices)
    assert batch.usage.total_tokens == batch.usage.prompt_tokens + batch.usage.completion_tokens

    as_ids = await service.complete(prompt=ids[0], **greedy)
    assert as_ids.choices[0].text == texts[0]
    as_lists = await service.complete(prompt=ids, **greedy)
    assert [c.text for c in as_lists.choices] == texts

    twice = await service.complete(prompt=[one, two], n=2, **greedy)
    assert [c.text for c in twice.choices] == [texts[0], texts[0], texts[1], texts[1]]
    streamed = ["", ""]
    async for chunk in await service.complete(prompt=[one, two], stream=True, **greedy):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


async def logprobs_are_those_of_transformers(service: Service) -> None:
    for asked in (0, 1, 5):
        answer = await service.complete(
            max_tokens=8, temperature=0, logprobs=asked, extra_body=IDS | {"ignore_eos": True}
        )
        choice = answer.choices[0]
        prompt, output = choice.prompt_token_ids, ids_of(choice)
        expected = service.logprobs(prompt + output)[len(prompt) - 1 : -1]
        got = choice.logprobs
        assert len(got.tokens) == len(got.text_offset) == len(output) == 8
        assert "".join(got.tokens) == choice.text
        for offset, token in zip(got.text_offset, got.tokens, strict=True):
            assert choice.text[offset:].startswith(token)
        for row, token, logprob, top in zip(
            expected, output, got.token_logprobs, got.top_logprobs, strict=True
        ):
            assert logprob == pytest.approx(float(row[token]), abs=CLOSE)
            best = torch.topk(row, max(asked, 1)).values.tolist()
            assert sorted(top.values(), reverse=True) == pytest.approx(best, abs=CLOSE)
    await refused(service.complete(logprobs=21), 400, "logprobs")
    await refused(service.complete(logprobs=-1), 400, "logprobs")


async def echo_shows_and_scores_the_prompt(service: Service) -> None:
    plain = await service.complete(max_tokens=8, temperature=0, echo=True)
    assert plain.choices[0].text.startswith(PROMPT)
    without = await service.complete(max_tokens=8, temperature=0)
    assert plain.choices[0].text == PROMPT + without.choices[0].text
    assert plain.usage == without.usage

    for output in (0, 1, 8):  # nothing generated; ended at P; moved to D
        asked: dict[str, Any] = {
            "model": "test", "prompt": PROMPT, "max_tokens": output, "temperature": 0,
            "echo": True, "logprobs": 2, "extra_body": IDS,
        }  # fmt: skip
        ours = await service.complete(**asked)
        theirs = await service.together.completions.create(**asked)
        choice, other = ours.choices[0], theirs.choices[0]
        assert (choice.text, choice.finish_reason) == (other.text, other.finish_reason)
        assert choice.logprobs.tokens == other.logprobs.tokens
        assert choice.logprobs.text_offset == other.logprobs.text_offset
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None and choice.logprobs.top_logprobs[0] is None
        assert scores[1:] == pytest.approx(other.logprobs.token_logprobs[1:], abs=CLOSE)

        tokens = choice.prompt_token_ids + ids_of(choice)
        rows = service.logprobs(tokens)
        expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=False)]
        assert scores[1:] == pytest.approx(expected, abs=CLOSE)
        assert ours.usage.completion_tokens == len(ids_of(choice)) == output

        chunks = [c async for c in await service.complete(**asked, stream=True)]
        assert "".join(c.choices[0].text for c in chunks) == choice.text
        streamed = [c.choices[0].logprobs for c in chunks]
        assert [t for part in streamed for t in part.tokens] == choice.logprobs.tokens
        assert [o for part in streamed for o in part.text_offset] == choice.logprobs.text_offset
        parts = [s for part in streamed for s in part.token_logprobs]
        assert parts[0] is None
        assert parts[1:] == pytest.approx(scores[1:], abs=CLOSE)

    three = await service.complete(max_tokens=4, echo=True, logprobs=1, n=3, seed=5)
    for choice in three.choices:
        assert choice.text.startswith(PROMPT)
        prompt = choice.logprobs.token_logprobs[: three.usage.prompt_tokens]
        assert prompt == three.choices[0].logprobs.token_logprobs[: three.usage.prompt_tokens]
    await refused(service.complete(max_tokens=0), 400, "max_tokens")


async def prompt_logprobs_name_the_candidates(service: Service) -> None:
    for ask in (service.complete, service.chat):
        answer = await ask(max_tokens=4, temperature=0, extra_body=IDS | {"prompt_logprobs": 3})
        holder = answer if ask == service.chat else answer.choices[0]
        prompt = holder.prompt_token_ids
        scores = holder.prompt_logprobs
        assert scores[0] is None and len(scores) == len(prompt)
        rows = service.logprobs(prompt)
        for row, token, entry in zip(rows, prompt[1:], scores[1:], strict=False):
            assert entry[str(token)]["logprob"] == pytest.approx(float(row[token]), abs=CLOSE)
            best = torch.topk(row, 3)
            own = row[token]
            likelier = int((row > own + CLOSE).sum()), int((row > own - CLOSE).sum())
            assert likelier[0] < entry[str(token)]["rank"] <= likelier[1]
            ranked = {e["rank"]: e["logprob"] for e in entry.values()}
            assert [ranked[r] for r in (1, 2, 3)] == pytest.approx(best.values.tolist(), abs=CLOSE)
    wrong = service.complete(stream=True, extra_body={"prompt_logprobs": 1})
    await refused(wrong, 400, "prompt_logprobs")


async def stop_strings_cut_the_text(service: Service) -> None:
    whole = (await service.complete(max_tokens=24, temperature=0)).choices[0].text
    assert len(whole) > 12
    for begin in (0, 1, 5, 10):  # in P's token, across the boundary, in D's
        stop = whole[begin : begin + 2]
        until = whole.index(stop)
        for included in (False, True):
            expected = whole[: until + len(stop)] if included else whole[:until]
            asked = {"max_tokens": 24, "temperature": 0, "stop": ["\x00never", stop],
                     "extra_body": {"include_stop_str_in_output": included}}  # fmt: skip
            answer = await service.complete(**asked)
            assert answer.choices[0].text == expected
            assert answer.choices[0].finish_reason == "stop"
            assert answer.choices[0].stop_reason == stop
            chunks = [c async for c in await service.complete(**asked, stream=True)]
            assert "".join(c.choices[0].text for c in chunks) == expected
            assert chunks[-1].choices[0].finish_reason == "stop"
    ids = ids_of((await service.complete(max_tokens=6, temperature=0, extra_body=IDS)).choices[0])
    for at in (0, 3):
        token = {"stop_token_ids": [ids[at]]}
        answer = await service.complete(max_tokens=6, temperature=0, extra_body=IDS | token)
        assert ids_of(answer.choices[0]) == ids[: ids.index(ids[at]) + 1]
        assert answer.choices[0].stop_reason == ids[at]


async def stream_options_say_what_usage_comes(service: Service) -> None:
    asked = {"max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}
    for ask in (service.complete, service.chat):
        whole = await ask(**asked)
        for options, at_end, in_chunks in (
            (None, False, False),
            ({"include_usage": False}, False, False),
            ({"include_usage": True}, True, False),
            ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ):
            more = {} if options is None else {"stream_options": options}
            chunks = [c async for c in await ask(**asked, **more, stream=True)]
            if at_end:
                last = chunks.pop()
                assert last.choices == []
                assert last.usage == whole.usage
            assert all((c.usage is not None) == in_chunks for c in chunks)
            if in_chunks:
                counts = [c.usage.completion_tokens for c in chunks]
                assert counts == sorted(counts) and counts[-1] == 6
                assert counts[0] == (0 if ask == service.chat else 1)
                assert {c.usage.prompt_tokens for c in chunks} == {whole.usage.prompt_tokens}
            reasons = [c.choices[0].finish_reason for c in chunks]
            assert reasons[-1] == "length" and set(reasons[:-1]) == {None}
        await refused(ask(stream_options={"include_usage": True}), 400, "stream_options")


async def choices_are_forked_and_differ(service: Service) -> None:
    for n in (2, 4):
        asked: dict[str, Any] = {
            "max_tokens": 16, "temperature": 1.0, "seed": 7, "n": n, "extra_body": IDS,
        }  # fmt: skip
        whole = await service.complete(**asked)
        texts = [choice.text for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == list(range(n))
        assert len(set(texts)) == n
        assert whole.usage.completion_tokens == sum(len(ids_of(c)) for c in whole.choices)
        together = await service.together.completions.create(model="test", prompt=PROMPT, **asked)
        assert [choice.text for choice in together.choices] == texts
        alone = await service.complete(**asked | {"n": 1})
        assert alone.choices[0].text == texts[0]
        assert alone.usage.prompt_tokens == whole.usage.prompt_tokens

        streamed, ends = [""] * n, [""] * n
        async for chunk in await service.complete(**asked, stream=True):
            (choice,) = chunk.choices
            streamed[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
        assert streamed == texts
        assert ends == [choice.finish_reason for choice in whole.choices]
    chats = await service.chat(max_tokens=8, temperature=1.0, seed=3, n=3)
    parts = [""] * 3
    async for chunk in await service.chat(max_tokens=8, temperature=1.0, seed=3, n=3, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert parts == [choice.message.content for choice in chats.choices]


async def chat_logprobs_are_those_of_transformers(service: Service) -> None:
    for top in (0, 1, 5):
        asked = {"max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": top}
        answer = await service.chat(**asked, extra_body=IDS)
        choice = answer.choices[0]
        prompt, output = answer.prompt_token_ids, ids_of(choice)
        rows = service.logprobs(prompt + output)[len(prompt) - 1 : -1]
        entries = choice.logprobs.content
        assert len(entries) == len(output)
        for row, token, entry in zip(rows, output, entries, strict=True):
            assert entry.logprob == pytest.approx(float(row[token]), abs=CLOSE)
            best = torch.topk(row, top).values.tolist()
            assert [t.logprob for t in entry.top_logprobs] == pytest.approx(best, abs=CLOSE)
            assert bytes(entry.bytes).decode(errors="replace") == entry.token
        chunks = [c async for c in await service.chat(**asked, stream=True)]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content for c in chunks) == choice.message.content
        got = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
        assert [e.token for e in got] == [e.token for e in entries]
    await refused(service.chat(top_logprobs=2), 400, "top_logprobs")
    await refused(service.chat(logprobs=True, top_logprobs=21), 400, "top_logprobs")
    await refused(service.chat(logprobs=3), 400, "logprobs")


async def mistakes_are_told_with_the_field(service: Service) -> None:
    too_long = [50] * 2048
    error = await refused(service.complete(prompt=too_long), 400, "prompt")
    assert error.code == "context_length_exceeded" and "2048" in error.message
    await refused(service.complete(prompt=[PROMPT, too_long]), 400, "prompt")
    await refused(service.complete(prompt=[50] * 2040, max_tokens=9), 400, "prompt")
    long_chat: Any = [{"role": "user", "content": "word " * 4000}]
    error = await refused(service.chat(messages=long_chat), 400, "messages")
    assert error.code == "context_length_exceeded"
    for ask in (service.complete, service.chat):
        error = await refused(ask(model="gpt-4"), 404, "model")
        assert error.code == "model_not_found" and "gpt-4" in error.message
        for field, value in {
            "temperature": -0.5, "top_p": 0, "n": 0, "max_tokens": "many", "stop": 5,
            "seed": "x", "presence_penalty": 3, "logit_bias": {"99999": 1}, "stream": "yes",
        }.items():  # fmt: skip
            await refused(ask(**{field: value}), 400, field)
        for field, value in {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "response_format": {"type": "json_object"},
            "tool_choice": "auto", "kv_transfer_params": {"do_remote_decode": True},
            "lora_name": "x", "guided_json": {},
        }.items():  # fmt: skip
            error = await refused(ask(extra_body={field: value}), 400, field)
            assert field in error.message
    prompts: list[Any] = [[], [[]], [1, "a"], [-1], [5000], 7, None]
    for prompt in prompts:
        await refused(service.complete(prompt=prompt), 400, "prompt")
    for messages in ([], "hi", [{"role": "tool", "content": "x"}], [{"role": "user"}]):
        await refused(service.chat(messages=messages), 400, "messages")
    with pytest.raises(openai.NotFoundError):
        await service.apart.models.retrieve("gpt-4")
    (card,) = (await service.apart.models.list()).data
    assert card.id == "test"


async def refused(call: Awaitable[Any], status: int, param: str) -> openai.APIStatusError:
    """In OpenAI's shape, before anything is streamed."""
    with pytest.raises(openai.APIStatusError) as told:
        await call
    error = told.value
    assert (error.status_code, error.param) == (status, param), error.message
    assert error.type == "invalid_request_error"
    return error


CASES: list[Callable[[Service], Awaitable[None]]] = [
    prompts_of_all_kinds,
    logprobs_are_those_of_transformers,
    echo_shows_and_scores_the_prompt,
    prompt_logprobs_name_the_candidates,
    stop_strings_cut_the_text,
    stream_options_say_what_usage_comes,
    choices_are_forked_and_differ,
    chat_logprobs_are_those_of_transformers,
    mistakes_are_told_with_the_field,
]


async def test_the_surface_over_real_engines(fleets: Any, subtests: pytest.Subtests) -> None:
    """One deployment for all cases: starting it is what takes long."""
    apart, together = await asyncio.gather(
        fleets("builtin:tiny", dtype="float32"),
        fleets(
            "builtin:tiny", dtype="float32", prefill=0, decode=0, hybrid=1, strategy="Colocated"
        ),
    )
    folder = builtin_path("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    async with (
        AsyncOpenAI(api_key="none", base_url=f"{apart.gateway_url}/v1", max_retries=0) as ours,
        AsyncOpenAI(api_key="none", base_url=f"{together.gateway_url}/v1", max_retries=0) as other,
    ):
        service = Service(ours, other, model)
        for case in CASES:
            with subtests.test(case.__name__):
                await case(service)
                await apart.assert_quiet()
    await asyncio.to_thread(find_server_errors, f"{apart.gateway_url}/openapi.json")
    apart.check_alive()


def find_server_errors(url: str) -> None:
    """Requests made from the service's own description: none may end in a status of 5xx."""
    schema = schemathesis.openapi.from_url(url)
    for result in schema.get_all_operations():

        def check(case: Any) -> None:
            # Unbounded, a chat would use the rest of the context.
            generates = case.path.startswith("/v1/") and isinstance(case.body, dict)
            if generates and case.body.get("max_tokens") is None:
                case.body["max_tokens"] = 8
            case.call_and_validate(checks=[not_a_server_error], timeout=30)

        bounded = settings(
            max_examples=12, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        bounded(given(result.ok().as_strategy())(check))()  # type: ignore[no-untyped-call]
