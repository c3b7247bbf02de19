"""Answers of /v1/completions, streamed and whole."""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from distserve.gateway.parse import Parsed
from distserve.gateway.render import Chunk, Delta, Envelope, Usage, deltas, dump_prompt_logprobs
from distserve.gateway.schema import CompletionBody
from distserve.gateway.text import Piece, TextModel
from distserve.gateway.work import Output
from distserve.wire.dialect import PromptScores
from distserve.wire.messages import TokenLogprobs

OBJECT = "text_completion"

_Utf8 = codecs.getincrementaldecoder("utf-8")


@dataclass
class Logprobs:
    """OpenAI's four parallel lists; offsets count characters of the choice's text."""

    text: TextModel
    shows_special: bool = False
    at: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._characters = _Utf8("replace")

    def add(self, token: int, scores: TokenLogprobs | None, prompt: str | None = None) -> None:
        """`prompt`: the text of which it is one. No scores: the first token of a prompt has
        none."""
        piece = self.text.piece(token)
        self.tokens.append(piece.text)
        self.text_offset.append(self.at)
        # A character that several tokens make is the last one's.
        self.at += self._length(piece, self._characters.decode(bytes(piece.bytes)), prompt)
        if scores is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(scores.logprob)
        top: dict[str, float] = {}
        for candidate, logprob in scores.top:
            top.setdefault(self.text.piece(candidate).text, logprob)
        top.setdefault(piece.text, scores.logprob)
        self.top_logprobs.append(top)

    def _length(self, piece: Piece, shown: str, prompt: str | None) -> int:
        """Characters of what is `shown` of a token that the text has."""
        if prompt is None:
            return 0 if piece.special and not self.shows_special else len(shown)
        if prompt.startswith(shown, self.at):
            return len(shown)
        # The tokenizer put it before the text: a special token, or SentencePiece's first space.
        return 0 if piece.special else len(shown.removeprefix(" "))

    def take(self) -> Chunk:
        """What was added since the last take."""
        taken = {
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        }
        self.text_offset, self.token_logprobs, self.tokens, self.top_logprobs = [], [], [], []
        return taken


@dataclass
class _Choice:
    """A choice on its way to the client."""

    prompt: int
    logprobs: Logprobs | None
    echoed: bool = False
    tokens: int = 0


@dataclass
class CompletionAnswer:
    """Turns outputs into chunks, or into one body."""

    body: CompletionBody
    parsed: Parsed
    text: TextModel
    envelope: Envelope

    def __post_init__(self) -> None:
        self.usage = Usage(self.parsed.prompt_tokens)
        self._scores: dict[int, PromptScores] = {}
        self._choices = [
            _Choice(prompt, self._logprobs())
            for prompt in range(len(self.parsed.prompts))
            for _ in range(self.body.choices)
        ]

    def _logprobs(self) -> Logprobs | None:
        if self.body.logprobs is None:
            return None
        return Logprobs(self.text, shows_special=self.body.skip_special_tokens is False)

    def opening(self) -> list[Chunk]:
        return []

    def chunks(self, outputs: Iterable[Output]) -> list[Chunk]:
        outputs = list(outputs)
        self._keep_scores(outputs)
        made = []
        for output, delta in deltas(outputs, self.parsed):
            index = self._index(output, delta)
            choice = self._choices[index]
            fields = self._delta_fields(choice, delta)
            if not choice.tokens and self.body.return_token_ids:
                fields["prompt_token_ids"] = self.parsed.prompts[choice.prompt].ids
            self._count(choice, delta)
            usage = {"usage": self._usage_of(choice)} if self.body.usage_in_chunks else {}
            made.append(self.envelope.around(OBJECT, [{"index": index, **fields}], **usage))
        return made

    def closing(self, **more: Any) -> list[Chunk]:
        if self.body.usage_at_end:
            more["usage"] = self.usage.dump()
        return [self.envelope.around(OBJECT, [], **more)] if more else []

    def whole(self, outputs: Iterable[Output], **more: Any) -> Chunk:
        """The answer of a request that is not streamed."""
        outputs = list(outputs)
        self._keep_scores(outputs)
        bodies: list[Chunk] = [
            {"index": index, "text": "", "logprobs": None, "finish_reason": None}
            for index in range(len(self._choices))
        ]
        # Joined once: what grows by each token is copied with each token.
        texts: list[list[str]] = [[] for _ in bodies]
        for output, delta in deltas(outputs, self.parsed):
            index = self._index(output, delta)
            choice = self._choices[index]
            self._count(choice, delta)
            fields = self._delta_fields(choice, delta)
            texts[index].append(fields["text"])
            _merge(bodies[index], fields)
        for choice, into, text in zip(self._choices, bodies, texts, strict=True):
            into["text"] = "".join(text)
            if self.body.return_token_ids:
                into["prompt_token_ids"] = self.parsed.prompts[choice.prompt].ids
            if self.body.prompt_logprobs is not None:
                into["prompt_logprobs"] = self._prompt_logprobs(choice.prompt)
        return self.envelope.around(OBJECT, bodies, usage=self.usage.dump(), **more)

    def _index(self, output: Output, delta: Delta) -> int:
        event = delta.tokens[0] if delta.tokens else delta.finish
        assert event is not None
        return output.prompt * self.body.choices + event.choice

    def _keep_scores(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output.event, PromptScores):
                self._scores[output.prompt] = output.event

    def _count(self, choice: _Choice, delta: Delta) -> None:
        choice.tokens += len(delta.tokens)
        self.usage.completion_tokens += len(delta.tokens)

    def _usage_of(self, choice: _Choice) -> dict[str, int]:
        return Usage(len(self.parsed.prompts[choice.prompt].ids), choice.tokens).dump()

    def _delta_fields(self, choice: _Choice, delta: Delta) -> Chunk:
        text = self._echo(choice) + delta.text
        if choice.logprobs is not None:
            for token in delta.tokens:
                choice.logprobs.add(token.id, token.logprobs)
        finish = delta.finish
        fields: dict[str, Any] = {
            "text": text,
            "logprobs": choice.logprobs.take() if choice.logprobs is not None else None,
            "finish_reason": finish.reason if finish else None,
            "stop_reason": finish.stop if finish else None,
        }
        if self.body.return_token_ids:
            fields["token_ids"] = [token.id for token in delta.tokens]
        return fields

    def _echo(self, choice: _Choice) -> str:
        """The prompt, once, before the choice's own text."""
        if not self.body.echo or choice.echoed:
            return ""
        choice.echoed = True
        prompt = self.parsed.prompts[choice.prompt]
        text = prompt.text or ""
        if choice.logprobs is not None:
            if scores := self._scores.get(choice.prompt):
                for token, score in zip(prompt.ids, scores.logprobs, strict=False):
                    choice.logprobs.add(token, _cut(score, self.body.logprobs or 0), text)
            choice.logprobs.at = len(text)
        return text

    def _prompt_logprobs(self, prompt: int) -> list[dict[str, Any] | None]:
        scores = self._scores.get(prompt)
        if scores is None:
            return []
        wanted = self.body.prompt_logprobs or 0
        cut = PromptScores([_cut(score, wanted) for score in scores.logprobs])
        return dump_prompt_logprobs(cut, self.parsed.prompts[prompt].ids, self.text)


def _cut(score: TokenLogprobs | None, top: int) -> TokenLogprobs | None:
    """Echo and prompt_logprobs share one set of scores, and may ask for different depths."""
    return None if score is None else score.cut(top)


def _merge(into: Chunk, fields: Chunk) -> None:
    """All but the text."""
    into["finish_reason"] = fields["finish_reason"]
    into["stop_reason"] = fields["stop_reason"]
    if fields["logprobs"] is not None:
        if into["logprobs"] is None:
            into["logprobs"] = {name: [] for name in fields["logprobs"]}
        for name, items in fields["logprobs"].items():
            into["logprobs"][name] += items
    if "token_ids" in fields:
        into.setdefault("token_ids", []).extend(fields["token_ids"])
