"""What an OpenAI server answers: the JSON of a stream's event, and of a whole answer.

`stream` reads events, `client` whole answers; either says alike what came and why it is not all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from distserve.bench.lifecycle import of_answer

_ERROR_TEXT = 200  # characters of a server's explanation that are kept


class Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens: int = 0


class Delta(msgspec.Struct):
    """A chat's text; a model's thoughts come under either name, by the server's age."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        said = self.delta
        return bool(
            self.text or (said and (said.content or said.reasoning_content or said.reasoning))
        )


class Event(msgspec.Struct):
    """A chunk of a stream, or a whole answer; fields that are not named here are skipped."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, object] | str | None = None
    lifecycle: Any = None
    """This gateway's, in the last chunk; another server may mean anything by it."""

    @property
    def error_line(self) -> str | None:
        error = self.error
        if isinstance(error, dict):
            error = str(error.get("message", error))
        return None if error is None else one_line(error)


decode_event = msgspec.json.Decoder(Event).decode
"""Raises `msgspec.DecodeError`, its `ValidationError` for another shape, or UnicodeDecodeError."""


def one_line(text: str) -> str:
    """Short enough to be counted as a reason."""
    return " ".join(text.split())[:_ERROR_TEXT]


class WholeAnswer:
    """An answer without a stream: nothing is known of its tokens' times."""

    token_times: Sequence[float] = ()
    ended: float | None = None
    """Nor of the last one's."""

    def __init__(self) -> None:
        self._event: Event | None = None

    def take(self, body: bytes) -> None:
        """Raises as `decode_event` where the body is no answer."""
        self._event = decode_event(body)

    @property
    def tokens(self) -> int:
        usage = self._event and self._event.usage
        return usage.completion_tokens if usage else 0

    @property
    def prompt_tokens(self) -> int | None:
        usage = self._event and self._event.usage
        return usage.prompt_tokens if usage else None

    @property
    def lifecycle(self) -> dict[str, float] | None:
        return of_answer(self._event.lifecycle) if self._event else None

    @property
    def failure(self) -> str | None:
        """Why this is no complete answer; its length is the caller's to judge."""
        event = self._event
        if event is None:
            return "truncated answer"
        if event.error is not None:
            return f"error answer: {event.error_line}"
        if not any(choice.finish_reason for choice in event.choices):
            return "an answer without a finish reason"
        if event.usage is None:
            return "an answer without usage"
        return None if self.tokens else "no tokens"
