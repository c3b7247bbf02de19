"""What both kinds of answer share: choices as they grow, usage, log-probabilities."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from distserve.gateway.parse import Parsed
from distserve.gateway.text import TextModel
from distserve.gateway.work import Output
from distserve.wire.dialect import Finish, PromptScores, Token
from distserve.wire.messages import TokenLogprobs

Chunk = dict[str, Any]


@dataclass
class Delta:
    """What is new of a choice since its last chunk."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None


@dataclass
class Usage:
    prompt_tokens: int
    completion_tokens: int = 0

    def dump(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Envelope:
    """What stands in every chunk and answer."""

    id: str
    created: int
    model: str

    def around(self, kind: str, choices: list[Chunk], **more: Any) -> Chunk:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


def deltas(outputs: Iterable[Output], parsed: Parsed) -> Iterable[tuple[Output, Delta]]:
    """A delta per token. The end of a choice joins its last token where both came together and
    the end brings no text of its own: so a chunk's text never depends on how events were read."""
    held: dict[tuple[int, int], tuple[Output, Delta]] = {}
    for output in outputs:
        match output.event:
            case Token():
                key = (output.prompt, output.event.choice)
                if key in held:
                    yield held.pop(key)
                if not parsed.discard_output:
                    held[key] = (output, Delta(output.event.text, [output.event]))
            case Finish():
                key = (output.prompt, output.event.choice)
                finish = output.event
                if parsed.discard_output:
                    yield output, Delta(finish=Finish(finish.choice, "length"))
                elif key in held and not finish.text:
                    before, delta = held.pop(key)
                    delta.finish = finish
                    yield before, delta
                else:
                    if key in held:
                        yield held.pop(key)
                    yield output, Delta(finish.text, finish=finish)
            case PromptScores():
                pass
    yield from held.values()


def dump_prompt_logprobs(
    scores: PromptScores, ids: list[int], text: TextModel
) -> list[dict[str, Any] | None]:
    """vLLM's shape: per prompt token the candidates by id, best first; none for the first."""
    return [
        None if at is None else {str(c): entry for c, entry in _candidates(token, at, text).items()}
        for token, at in zip(ids, scores.logprobs, strict=False)
    ]


def _candidates(
    token: int, at: TokenLogprobs, text: TextModel
) -> dict[int, dict[str, float | int | str | None]]:
    found: dict[int, dict[str, float | int | str | None]] = {
        candidate: {
            "logprob": logprob,
            "rank": rank,
            "decoded_token": text.piece(candidate).text,
        }
        for rank, (candidate, logprob) in enumerate(at.top, start=1)
    }
    if token not in found:
        own = {"logprob": at.logprob, "rank": at.rank, "decoded_token": text.piece(token).text}
        found = {token: own, **found}
    return found
