"""Answers of /v1/chat/completions, streamed and whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distserve.gateway.parse import Parsed
from distserve.gateway.render import Chunk, Delta, Envelope, Usage, deltas, dump_prompt_logprobs
from distserve.gateway.schema import ChatBody
from distserve.gateway.text import TextModel
from distserve.gateway.work import Output
from distserve.wire.dialect import PromptScores, Token

OBJECT = "chat.completion"
CHUNK_OBJECT = "chat.completion.chunk"


@dataclass
class ChatAnswer:
    """Turns outputs into chunks, or into one body."""

    body: ChatBody
    parsed: Parsed
    text: TextModel
    envelope: Envelope

    def __post_init__(self) -> None:
        self.usage = Usage(self.parsed.prompt_tokens)
        self._tokens = [0] * self.body.choices
        self._scores: PromptScores | None = None

    def opening(self) -> list[Chunk]:
        """The role, before any text."""
        delta = {"role": "assistant", "content": ""}
        more = self._token_ids() if self.body.return_token_ids else {}
        return [
            self._chunk(index, {"delta": delta, "logprobs": None, "finish_reason": None}, **more)
            for index in range(self.body.choices)
        ]

    def chunks(self, outputs: Iterable[Output]) -> list[Chunk]:
        made = []
        for _, delta in deltas(outputs, self.parsed):
            index = _choice(delta)
            self._count(index, delta)
            choice: Chunk = {
                "delta": {"content": delta.text},
                "logprobs": self._logprobs(delta.tokens),
                "finish_reason": delta.finish.reason if delta.finish else None,
                "stop_reason": delta.finish.stop if delta.finish else None,
            }
            if self.body.return_token_ids:
                choice["token_ids"] = [token.id for token in delta.tokens]
            made.append(self._chunk(index, choice))
        return made

    def closing(self, **more: Any) -> list[Chunk]:
        if self.body.usage_at_end:
            more["usage"] = self.usage.dump()
        return [self.envelope.around(CHUNK_OBJECT, [], **more)] if more else []

    def whole(self, outputs: Iterable[Output], **more: Any) -> Chunk:
        """The answer of a request that is not streamed."""
        outputs = list(outputs)
        choices: list[Chunk] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": None,
                "stop_reason": None,
            }
            for index in range(self.body.choices)
        ]
        for output in outputs:
            if isinstance(output.event, PromptScores):
                self._scores = output.event
        # Joined once: what grows by each token is copied with each token.
        texts: list[list[str]] = [[] for _ in choices]
        for _, delta in deltas(outputs, self.parsed):
            index = _choice(delta)
            self._count(index, delta)
            texts[index].append(delta.text)
            self._merge(choices[index], delta)
        for choice, text in zip(choices, texts, strict=True):
            choice["message"]["content"] = "".join(text)
        if self.body.return_token_ids:
            more |= self._token_ids()
        if self.body.prompt_logprobs is not None:
            ids = self.parsed.prompts[0].ids
            scores = self._scores or PromptScores([])
            more["prompt_logprobs"] = dump_prompt_logprobs(scores, ids, self.text)
        return self.envelope.around(OBJECT, choices, usage=self.usage.dump(), **more)

    def _merge(self, choice: Chunk, delta: Delta) -> None:
        """All but the text."""
        if (logprobs := self._logprobs(delta.tokens)) is not None:
            if choice["logprobs"] is None:
                choice["logprobs"] = {"content": [], "refusal": None}
            choice["logprobs"]["content"] += logprobs["content"]
        if delta.finish:
            choice["finish_reason"] = delta.finish.reason
            choice["stop_reason"] = delta.finish.stop
        if self.body.return_token_ids:
            choice.setdefault("token_ids", []).extend(token.id for token in delta.tokens)

    def _chunk(self, index: int, choice: Chunk, **more: Any) -> Chunk:
        if self.body.usage_in_chunks:
            prompt = len(self.parsed.prompts[0].ids)
            more["usage"] = Usage(prompt, self._tokens[index]).dump()
        return self.envelope.around(CHUNK_OBJECT, [{"index": index, **choice}], **more)

    def _count(self, index: int, delta: Delta) -> None:
        self._tokens[index] += len(delta.tokens)
        self.usage.completion_tokens += len(delta.tokens)

    def _token_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self.parsed.prompts[0].ids}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self.body.logprobs or not tokens:
            return None
        return {"content": [self._token_logprobs(token) for token in tokens], "refusal": None}

    def _token_logprobs(self, token: Token) -> dict[str, Any]:
        scores = token.logprobs
        if scores is None:
            return {**self._piece(token.id), "logprob": None, "top_logprobs": []}
        return {
            **self._piece(token.id),
            "logprob": scores.logprob,
            "top_logprobs": [
                {**self._piece(candidate), "logprob": logprob} for candidate, logprob in scores.top
            ],
        }

    def _piece(self, token: int) -> dict[str, Any]:
        piece = self.text.piece(token)
        return {"token": piece.text, "bytes": piece.bytes}


def _choice(delta: Delta) -> int:
    event = delta.tokens[0] if delta.tokens else delta.finish
    assert event is not None
    return event.choice
