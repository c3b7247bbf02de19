"""What is refused, with which status and which field's name: nothing is ignored in silence."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import ValidationError
from schemathesis.checks import not_a_server_error

from distserve.gateway import parse
from distserve.gateway.schema import ChatBody, CompletionBody, DetokenizeBody

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
UNSUPPORTED: list[tuple[str, Any]] = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "auto"),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "a", "format": "wav"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("kv_transfer_params", {"do_remote_decode": True}),
    ("best_of", 3),
    ("suffix", "end"),
    ("store", True),
    ("service_tier", "flex"),
    ("reasoning_effort", "low"),
    ("structured_outputs", {"json": {}}),
    ("guided_json", {}),
    ("use_beam_search", True),
    ("chat_template", "{{ messages }}"),
    ("never_heard_of", None),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"999": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}),
    ("temperature", -0.1),
    ("temperature", "hot"),
    ("temperature", 3),
    ("top_p", 0),
    ("top_k", -2),
    ("n", 0),
    ("n", True),
    ("stop", ["a"] * 17),
    ("stop", ""),
    ("stop_token_ids", [258]),
    ("max_tokens", -1),
    ("max_tokens", 2**80),
    ("min_tokens", 300),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("logit_bias", {str(token): 1 for token in range(1025)}),
    ("seed", 1.5),
    ("model", None),
]


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED, ids=lambda v: str(v)[:24])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_field_is_named(house: Any, path: str, field: str, value: Any) -> None:
    own = CHAT if "chat" in path else {"prompt": "hi"}
    body = {"model": "test", "max_tokens": 4, **own, field: value}
    status, answer, _ = await house.post(path, body)
    assert status == 400, answer
    error = answer["error"]
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert not house.prefills[0].legs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", None), ("tools", []), ("tool_choice", "none"), ("best_of", 1),
        ("response_format", {"type": "text"}), ("suffix", None), ("parallel_tool_calls", True),
        ("modalities", ["text"]), ("store", False), ("logit_bias", {}), ("stop", None),
    ],
)  # fmt: skip
async def test_values_that_ask_for_nothing_are_taken(house: Any, field: str, value: Any) -> None:
    status, answer = await house.complete(**{field: value})
    assert status == 200, answer


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": None},
        {"role": "user"},
        {"role": "user", "content": "x", "weight": 1},
        "hi",
    ],
)
async def test_messages_that_are_not_text(house: Any, message: Any) -> None:
    status, answer, _ = await house.post(
        "/v1/chat/completions", {"model": "test", "messages": [message]}
    )
    assert status == 400
    assert answer["error"]["param"] == "messages"


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], "", [""], [1.5], ["a", 1], [[1], "a"], [True], {"a": 1}, None, [258], [-1],
     [[1], [2**40]]],
)  # fmt: skip
async def test_prompts_that_are_none(house: Any, prompt: Any) -> None:
    status, answer = await house.complete(prompt=prompt)
    assert status == 400
    assert answer["error"]["param"] == "prompt"


async def test_the_context_length(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256") as caught:
        await client.completions.create(model="test", prompt="x" * 250, max_tokens=7)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="test", prompt="x" * 256)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="test", messages=[{"role": "user", "content": "x" * 256}]
        )
    assert caught.value.param == "messages"


async def test_an_answer_has_no_more_log_probabilities_than_can_be_kept(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse.MAX_SCORES >= 8 * 4096 * (1 + 5), "what is usual is taken"
    monkeypatch.setattr(parse, "MAX_SCORES", 8 * 4 * (1 + 5))
    assert (await house.complete(n=8, logprobs=5, max_tokens=4))[0] == 200
    assert (await house.complete(n=64, max_tokens=100))[0] == 200, "text alone is small"
    for asked in (
        {"n": 8, "logprobs": 5, "max_tokens": 5},
        {"prompt": ["hi"] * 9, "logprobs": 5, "max_tokens": 4},
        {"prompt": "x" * 40, "logprobs": 4, "max_tokens": 0, "echo": True},
        {"prompt": "x" * 40, "prompt_logprobs": 4},
    ):
        status, answer = await house.complete(**asked)
        assert status == 400
        assert answer["error"]["param"] == next(name for name in asked if "logprobs" in name)
        assert "ask for fewer" in answer["error"]["message"]
    chat = {"model": "test", **CHAT, "max_tokens": 1, "n": 8}
    status, answer, _ = await house.post("/v1/chat/completions", chat | {"prompt_logprobs": 0})
    tokens = answer["usage"]["prompt_tokens"]
    monkeypatch.setattr(parse, "MAX_SCORES", tokens)
    status, *_ = await house.post("/v1/chat/completions", chat | {"prompt_logprobs": 0})
    assert status == 200, "a chat has its prompt's once"
    status, *_ = await house.post("/v1/chat/completions", chat | {"prompt_logprobs": 1})
    assert status == 400


async def test_a_chat_of_no_given_length_gets_as_long_as_its_log_probabilities_allow(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parse, "MAX_SCORES", 60)
    body = {"model": "test", **CHAT, "n": 2, "logprobs": True, "top_logprobs": 1}
    status, answer, _ = await house.post("/v1/chat/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 2 * 15)


@pytest.mark.parametrize("options", [{}, {"include_usage": False}])
async def test_running_usage_alone_would_have_no_effect(house: Any, options: Any) -> None:
    asked = {"stream": True, "stream_options": {"continuous_usage_stats": True, **options}}
    status, answer = await house.complete(**asked)
    assert status == 400
    assert answer["error"]["param"] == "stream_options"
    assert "include_usage" in answer["error"]["message"]


WRONG: list[tuple[Any, dict[str, Any]]] = [
    (CompletionBody, {"prompt": "x"} | {f"field{i}": 1 for i in range(5000)}),
    (CompletionBody, {"prompt": "x", "logit_bias": {str(i): "x" for i in range(5000)}}),
    (CompletionBody, {"prompt": "x", "stop": [1] * 5000}),
    (ChatBody, {"messages": [1] * 5000}),
    (ChatBody, {"messages": [{"role": "user", "content": [1] * 5000}]}),
    (DetokenizeBody, {"tokens": ["x"] * 5000}),
]


@pytest.mark.parametrize(("kind", "body"), WRONG)
def test_a_body_that_is_wrong_all_over_is_not_told_all_of_it(kind: Any, body: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "test"} | body)
    assert caught.value.error_count() < 50


async def test_of_many_unknown_fields_the_first_is_named(house: Any) -> None:
    unknown = {f"field{i}": None for i in range(3)}
    status, answer, _ = await house.post(
        "/v1/completions", unknown | {"model": "test", "prompt": "x"}
    )
    assert status == 400
    assert answer["error"]["param"] == "field0"


def tokenises_nothing(house: Any) -> None:
    async def encode(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it is tokenised")

    house.gateway.models.current().text.encode = encode


@pytest.mark.parametrize("prompt", [["a"] * 5, [[97]] * 5], ids=["texts", "ids"])
async def test_a_batch_that_may_not_wait_is_not_tokenised(houses: Any, prompt: Any) -> None:
    house = await houses(max_waiting_requests=4)
    tokenises_nothing(house)
    status, answer = await house.complete(prompt=prompt)
    assert status == 400
    assert "5 prompts is more than the 4 that may wait" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
async def test_nothing_is_tokenised_where_nothing_may_wait(houses: Any, path: str) -> None:
    house = await houses(max_waiting_requests=0)
    tokenises_nothing(house)
    body = {"tokens": [97]} if path == "/detokenize" else {"prompt": "a"}
    status, answer, _ = await house.post(path, {"model": "test"} | body)
    assert status == 429
    assert answer["error"]["code"] == "overloaded"


async def test_what_is_refused_after_it_was_tokenised_leaves_its_place(house: Any) -> None:
    status, _ = await house.complete(prompt=["x" * 300] * 3)
    assert status == 400
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        assert (await house.post(path, body))[0] == 200
    assert house.gateway.admission.waiting == 0


@pytest.mark.parametrize("prompt", [["a"] * 4097, [[1]] * 4097], ids=["texts", "ids"])
async def test_a_batch_beyond_any_bound_is_not_looked_through(houses: Any, prompt: Any) -> None:
    house = await houses(max_waiting_requests=10000)
    status, answer = await house.complete(prompt=prompt)
    assert status == 400
    assert answer["error"]["param"] == "prompt"
    assert "in parts" in answer["error"]["message"]


async def test_a_text_beyond_any_context_is_not_tokenised(house: Any) -> None:
    """The longest token has four characters, the context 256 tokens."""
    text = "x" * 1024
    assert (await house.post("/tokenize", {"prompt": text}))[1]["count"] == 1024
    tokenises_nothing(house)
    for path, own, param in (
        ("/v1/completions", {"prompt": ["short", text]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}, "messages"),
    ):
        status, answer, _ = await house.post(path, {"model": "test", **own})
        assert status == 400
        assert answer["error"]["code"] == "context_length_exceeded"
        assert answer["error"]["param"] == param
        assert "maximum context length is 256" in answer["error"]["message"]


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_json_that_is_not_said_to_be_json(house: Any, kind: str | None) -> None:
    """As curl -d sends it."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{house.url}/v1/completions",
            data=b'{"model": "test", "prompt": "hi"}',
            headers={"Content-Type": kind} if kind else None,
            skip_auto_headers=["Content-Type"],
        ) as reply,
    ):
        assert reply.status == 400
        error = (await reply.json())["error"]
    assert "Content-Type: application/json" in error["message"]
    assert error["param"] is None


async def test_an_unknown_model(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="test:my-lora", prompt="hi")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/name")
    assert [m.id for m in (await client.models.list()).data] == ["test"]
    assert (await client.models.retrieve("test")).id == "test"


@pytest.mark.parametrize("value", ["fast", "-1", "0", "nan", "inf", "1e99"])
async def test_malformed_objectives(house: Any, value: str) -> None:
    body = {"model": "test", "prompt": "hi"}
    for header in ("x-slo-ttft-ms", "x-slo-tpot-ms"):
        status, answer, _ = await house.post("/v1/completions", body, {header: value})
        assert status == 400
        assert answer["error"]["param"] == header


async def test_objectives_reach_the_engine(house: Any) -> None:
    headers = {"x-slo-ttft-ms": "120", "x-slo-tpot-ms": "12.5"}
    await house.post("/v1/completions", {"model": "test", "prompt": "hi"}, headers)
    slo = house.prefills[0].legs[0].slo
    assert (slo.ttft_ms, slo.tpot_ms) == (120.0, 12.5)


async def test_no_generated_request_finds_a_server_error(house: Any) -> None:
    """Runs the fuzzer in a thread, while the gateway answers from this one."""

    await asyncio.to_thread(_fuzz, f"{house.url}/openapi.json")


def _fuzz(url: str) -> None:
    schema = schemathesis.openapi.from_url(url)

    @schema.parametrize()  # type: ignore[untyped-decorator]
    def unused(case: Any) -> None:
        """Makes the schema's operations available."""

    for result in schema.get_all_operations():
        operation = result.ok()

        def check(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=30)

        strategy = operation.as_strategy()
        from hypothesis import Phase, given

        bounded = settings(
            max_examples=25, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        bounded(given(strategy)(check))()
