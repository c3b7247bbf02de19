"""Bodies of the OpenAI surface: what is taken, with types and bounds; all else is refused.

A field that would have no effect is never ignored: known ones are named with the reason, unknown
ones as unknown. Null means "not given", as in OpenAI's own API.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_CHOICES = 64
MAX_PROMPTS = 4096
"""However many may wait: what is longer is not even looked through."""
MAX_BIASES = 1024

Neutral = tuple[Any, ...]

UNSUPPORTED: dict[str, Neutral] = {
    "audio": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "add_generation_prompt": (None, True),
    "documents": (None, []),
    "function_call": (None, "none"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "kv_transfer_params": (None,),
    "length_penalty": (None, 1.0),
    "logits_processors": (None, []),
    "metadata": (None, {}),
    "mm_processor_kwargs": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "priority": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "spaces_between_special_tokens": (None, True),
    "store": (None, False),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Fields that others have, and the values of them that ask for nothing."""


def refuse(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "param": field})


def _prompt(value: Any) -> Any:
    """str | [str] | [int] | [[int]]; checked by hand, since a long prompt is one list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if _is_ids(value):
            return value
        if len(value) > MAX_PROMPTS:
            raise refuse("prompt", f"prompt: more than {MAX_PROMPTS} in a batch: send it in parts")
        if all(type(item) is str for item in value):
            return value
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return value
    raise ValueError("a text, a list of texts, a list of token ids or a list of such lists")


def _is_ids(items: list[Any]) -> bool:
    """Without a step of Python for each: they may be a million."""
    return set(map(type, items)) == {int} and min(items) >= 0 and max(items) < 1 << 31


def _few(value: Any) -> Any:
    """Before each is looked at: all that are wrong would be told."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise refuse("logit_bias", f"logit_bias: at most {MAX_BIASES} tokens")
    return value


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Prompt = Annotated[
    Any,
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "title": "Prompt",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                _IDS,
                {"type": "array", "minItems": 1, "items": _IDS},
            ],
        }
    ),
]

StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.model_fields
        kept = {}
        unknown = False
        for field, value in data.items():
            if field in known:
                kept[field] = value
            elif field in UNSUPPORTED:
                if value not in UNSUPPORTED[field]:
                    raise refuse(field, f"{field} is not supported")
            elif not unknown:
                # One is told. Of a million each would be an error of its own.
                unknown = True
                kept[field] = value
        return kept


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @model_validator(mode="after")
    def _check_usage(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise refuse(
                "stream_options",
                "stream_options: continuous_usage_stats needs include_usage: true",
            )
        return self


class GenerationBody(Body):
    """What both endpoints share. Fields after `user` are vLLM's extensions."""

    model: str = Field(max_length=256)
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(_few)
    ] = Field(None, max_length=MAX_BIASES)
    user: str | None = Field(None, max_length=512, description="Appears in the gateway's log.")

    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "stream_options needs stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise refuse("prompt_logprobs", "prompt_logprobs is not available with stream: true")
        return self

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def usage_at_end(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionBody(GenerationBody):
    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices:
            raise refuse("best_of", "best_of other than n is not supported")
        if self.max_tokens == 0 and not self.echo:
            raise refuse("max_tokens", "max_tokens must be at least 1, except with echo")
        return self

    @property
    def prompts(self) -> list[Any]:
        """Texts or lists of token ids, also where it is one alone."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt

    @property
    def top_logprobs_asked(self) -> int | None:
        return self.logprobs


class TextPart(Body):
    type: Literal["text"]
    text: str


_MESSAGE_UNSUPPORTED = (
    "annotations",
    "audio",
    "function_call",
    "reasoning",
    "reasoning_content",
    "refusal",
    "tool_call_id",
    "tool_calls",
)
"""What messages of others have too; null and empty ones come with an answer that is sent back."""


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: str | None = Field(None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_not_taken(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for field in _MESSAGE_UNSUPPORTED:
            if data.get(field) not in (None, []):
                raise refuse("messages", f"messages: {field} is not supported")
        content = data.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise refuse("messages", f"messages: content of type {kind} is not supported")
        return {k: v for k, v in data.items() if k not in _MESSAGE_UNSUPPORTED}

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def for_template(self) -> dict[str, str]:
        """`developer` is what OpenAI calls `system` now; templates know only the latter."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.text} | named


Messages = Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]


class ChatBody(GenerationBody):
    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", "top_logprobs needs logprobs: true")
        if self.max_tokens == 0:
            raise refuse("max_tokens", "max_tokens must be at least 1")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise refuse("max_tokens", "max_tokens and max_completion_tokens differ: give one")
        return self

    @property
    def top_logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeBody(Body):
    """A prompt, or messages for the chat template."""

    model: str | None = Field(None, max_length=256)
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("prompt", "one of prompt and messages is needed")
        return self


class DetokenizeBody(Body):
    model: str | None = Field(None, max_length=256)
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status of 400 and above."""

    error: ErrorDetail
