"""From a checked body to generations: tokenised, measured against the model, with all defaults.

What is decided here, with exact lengths, need not be refused by an engine.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from distserve.gateway.errors import BadRequest, UnknownModel
from distserve.gateway.generation import Generation
from distserve.gateway.schema import ChatBody, CompletionBody, GenerationBody, TokenizeBody
from distserve.gateway.text import TextModel
from distserve.wire.dialect import InstanceInfo, SamplingParams, Slo

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions; a chat may use the rest of the context."""
SLO_HEADERS = {"ttft_ms": "x-slo-ttft-ms", "tpot_ms": "x-slo-tpot-ms"}
MAX_SLO_MS = 86_400_000.0
LIFECYCLE_HEADER = "x-lifecycle"
MAX_SCORES = 1 << 18
"""Log-probabilities that an answer may have of its prompts, and of what is generated: as objects
and as JSON up to a hundred MB, which are kept until all of it is here, or read."""


@dataclass(frozen=True)
class Prompt:
    """One of the prompts of a request. `text` is None where it is not needed: of a chat, and of
    token ids that are not echoed."""

    ids: list[int]
    text: str | None


@dataclass(frozen=True)
class Model:
    """What the gateway serves now."""

    name: str
    info: InstanceInfo
    text: TextModel

    def check_name(self, asked: str | None) -> None:
        check_model(asked, self.name)

    def check_length(self, text: str, param: str) -> None:
        """Refuses, before it is tokenised, what could not fit in the longest of tokens. Raises
        BadRequest."""
        longest, context = self.text.longest_token, self.info.max_model_len
        if longest is not None and (least := -(-len(text) // longest)) >= context:
            raise BadRequest(
                f"this model's maximum context length is {context} tokens, but the {len(text)} "
                f"characters in {param} are {least} at least: shorten it",
                param=param,
                code="context_length_exceeded",
            )


@dataclass(frozen=True)
class Parsed:
    """A request that can be admitted."""

    prompts: list[Prompt]
    generations: list[Generation]
    discard_output: bool
    """max_tokens 0: only the prompt is wanted back."""
    scores: int = 0
    """Log-probabilities that the answer may have."""

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


def check_model(asked: str | None, name: str) -> None:
    """Raises UnknownModel."""
    if asked is not None and asked != name:
        raise UnknownModel(
            f"the model {asked!r} does not exist here: this gateway serves {name!r}", param="model"
        )


def parse_slo(headers: Mapping[str, str], default: Slo) -> Slo:
    """A request's own objectives, else the deployment's. Raises BadRequest."""
    found = {"ttft_ms": default.ttft_ms, "tpot_ms": default.tpot_ms}
    for field, header in SLO_HEADERS.items():
        if header in headers:
            try:
                value = float(headers[header])
            except ValueError:
                value = -1.0
            if not 0 < value <= MAX_SLO_MS:
                raise BadRequest(f"{header} must be a number of milliseconds above 0", param=header)
            found[field] = value
    return Slo(**found)


def objective_of(headers: Mapping[str, str], default: Slo) -> str | None:
    """Whose objective such a request has: its own, the deployment's, or none."""
    if any(header in headers for header in SLO_HEADERS.values()):
        return "own"
    return None if default == Slo() else "deployment"


def parse_lifecycle(headers: Mapping[str, str]) -> bool:
    """Whether the client asks where its request's time went. Raises BadRequest."""
    asked = headers.get(LIFECYCLE_HEADER, "false").lower()
    if asked not in ("true", "false"):
        raise BadRequest(f"{LIFECYCLE_HEADER} must be true or false", param=LIFECYCLE_HEADER)
    return asked == "true"


async def parse_completion(body: CompletionBody, model: Model, request_id: str, slo: Slo) -> Parsed:
    """Raises BadRequest."""
    model.check_name(body.model)
    prompts = await _prompts(body, model)
    scores = [
        k for k in (body.prompt_logprobs, body.logprobs if body.echo else None) if k is not None
    ]
    limit = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    generations = _generations(
        body, model, prompts, request_id, slo,
        limit=limit,
        clip=body.max_tokens is None,
        prompt_logprobs=max(scores, default=None),
        param="prompt",
    )  # fmt: skip
    if body.echo and prompts[0].text is None:
        texts = await model.text.decode([prompt.ids for prompt in prompts])
        prompts = [Prompt(p.ids, text) for p, text in zip(prompts, texts, strict=True)]
    return Parsed(prompts, generations, limit == 0, _scores(body, generations))


async def parse_chat(body: ChatBody, model: Model, request_id: str, slo: Slo) -> Parsed:
    """Raises BadRequest."""
    model.check_name(body.model)
    text = model.text.render([message.for_template() for message in body.messages])
    model.check_length(text, "messages")
    # The template writes the special tokens itself.
    special = body.add_special_tokens is True
    [ids] = await model.text.encode([text], add_special_tokens=special, param="messages")
    prompts = [Prompt(ids, None)]
    limit = body.max_completion_tokens or body.max_tokens
    generations = _generations(
        body, model, prompts, request_id, slo,
        limit=limit or _longest_chat(body, model.info.max_model_len),
        clip=limit is None,
        prompt_logprobs=body.prompt_logprobs,
        param="messages",
    )  # fmt: skip
    return Parsed(prompts, generations, False, _scores(body, generations))


async def tokenized(body: TokenizeBody, model: Model) -> list[int]:
    """Of any length: it is asked for to see how long a text is. Raises BadRequest."""
    if body.prompt is not None:
        text, param, special = body.prompt, "prompt", body.add_special_tokens is not False
    else:
        text = model.text.render([message.for_template() for message in body.messages or ()])
        param, special = "messages", body.add_special_tokens is True
    [ids] = await model.text.encode([text], add_special_tokens=special, param=param, aside=True)
    return ids


async def _prompts(body: CompletionBody, model: Model) -> list[Prompt]:
    given = body.prompts
    if not isinstance(given[0], str):
        return [Prompt(ids, None) for ids in given]
    for text in given:
        model.check_length(text, "prompt")
    special = body.add_special_tokens is not False
    encoded = await model.text.encode(given, add_special_tokens=special, param="prompt")
    return [Prompt(ids, text) for ids, text in zip(encoded, given, strict=True)]


def _generations(
    body: CompletionBody | ChatBody,
    model: Model,
    prompts: list[Prompt],
    request_id: str,
    slo: Slo,
    *,
    limit: int,
    clip: bool,
    prompt_logprobs: int | None,
    param: str,
) -> list[Generation]:
    """One for each prompt: alike but for seeds that are drawn, and what the context leaves."""
    sampling = _sampling(body, model.info, prompt_logprobs)
    made = []
    for index, prompt in enumerate(prompts):
        max_tokens = _fit(len(prompt.ids), limit, clip, model.info.max_model_len, param)
        _check_ids(prompt.ids, model.info.vocab_size, param)
        if sampling.min_tokens > max_tokens:
            raise BadRequest(
                f"min_tokens {sampling.min_tokens} is more than max_tokens {max_tokens}",
                param="min_tokens",
            )
        seed = secrets.randbits(63) if body.seed is None else body.seed % (1 << 63)
        made.append(
            Generation(
                id=f"{request_id}-{index}",
                request_id=request_id,
                index=index,
                prompt=prompt.ids,
                sampling=msgspec.structs.replace(sampling, seed=seed, max_tokens=max_tokens),
                choices=body.choices,
                tokenizer=model.text.tokenizer,
                salt=body.cache_salt or "",
                slo=slo,
            )
        )
    _check_scores("logprobs", _output_scores(made))
    _check_scores("logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
                  _prompt_scores(body, made))  # fmt: skip
    return made


def _each(top: int | None) -> int:
    """Log-probabilities of one token: its own, and those of the likeliest ones."""
    return 0 if top is None else 1 + top


def _output_scores(generations: list[Generation]) -> int:
    return sum(g.choices * g.sampling.max_tokens * _each(g.sampling.logprobs) for g in generations)


def _prompt_scores(body: CompletionBody | ChatBody, generations: list[Generation]) -> int:
    """Each choice has those of its prompt; a chat has them once."""
    times = body.choices if isinstance(body, CompletionBody) else 1
    return sum(times * g.prompt_tokens * _each(g.sampling.prompt_logprobs) for g in generations)


def _scores(body: CompletionBody | ChatBody, generations: list[Generation]) -> int:
    return _prompt_scores(body, generations) + _output_scores(generations)


def _check_scores(param: str, scores: int) -> None:
    if scores > MAX_SCORES:
        raise BadRequest(
            f"{param}: the answer could have {scores} log-probabilities, which is more than "
            f"{MAX_SCORES}: ask for fewer of them, for fewer tokens (max_tokens) or choices (n), "
            "or send a batch in parts",
            param=param,
        )


def _longest_chat(body: ChatBody, context: int) -> int:
    """Tokens of a choice where no max_tokens is given."""
    each = _each(body.top_logprobs_asked)
    return min(context, MAX_SCORES // (body.choices * each)) if each else context


def _check_ids(ids: list[int], vocab_size: int, param: str) -> None:
    if max(ids) >= vocab_size:
        raise BadRequest(
            f"{param}: {max(ids)} is outside the vocabulary of {vocab_size}", param=param
        )


def _fit(prompt_tokens: int, limit: int, clip: bool, context: int, param: str) -> int:
    """Output tokens that prompt and context leave. A limit of 0 is run as 1: the first token
    comes with the prompt's scores, and is dropped."""
    if prompt_tokens == 0:
        raise BadRequest(f"{param} has no tokens: at least one is needed", param=param)
    room = context - prompt_tokens
    if clip:
        limit = min(limit, max(room, 1))
    wanted = max(limit, 1)
    if wanted > room:
        raise BadRequest(
            f"this model's maximum context length is {context} tokens, but {prompt_tokens} in "
            f"{param} and {wanted} to generate are {prompt_tokens + wanted}: shorten one of them",
            param=param,
            code="context_length_exceeded",
        )
    return wanted


def _sampling(
    body: CompletionBody | ChatBody, info: InstanceInfo, prompt_logprobs: int | None
) -> SamplingParams:
    """All that a request's prompts share: seed and max_tokens are each one's own."""
    defaults = info.sampling_defaults

    def chosen(given: float | None, name: str, otherwise: float) -> float:
        return given if given is not None else float(defaults.get(name, otherwise))

    for token in body.stop_token_ids or []:
        if token >= info.vocab_size:
            raise BadRequest(
                f"stop_token_ids: {token} is outside the vocabulary of {info.vocab_size}",
                param="stop_token_ids",
            )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return SamplingParams(
        seed=0,
        max_tokens=0,
        min_tokens=body.min_tokens or 0,
        temperature=chosen(body.temperature, "temperature", 1.0),
        top_k=max(0, int(chosen(body.top_k, "top_k", 0))),
        top_p=chosen(body.top_p, "top_p", 1.0),
        min_p=chosen(body.min_p, "min_p", 0.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=chosen(body.repetition_penalty, "repetition_penalty", 1.0),
        logit_bias=_logit_bias(body, info.vocab_size),
        stop=stop,
        stop_token_ids=body.stop_token_ids or [],
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        logprobs=body.top_logprobs_asked,
        prompt_logprobs=prompt_logprobs,
    )


def _logit_bias(body: GenerationBody, vocab_size: int) -> dict[int, float]:
    found = {}
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise BadRequest(
                f"logit_bias: {key!r} is no token id below {vocab_size}", param="logit_bias"
            )
        found[int(key)] = bias
    return found
