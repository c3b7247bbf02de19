"""Answers as they are put together from what engines sent."""

from typing import Any, ClassVar

import pytest

from distserve.gateway.chat import ChatAnswer
from distserve.gateway.completions import CompletionAnswer
from distserve.gateway.parse import Parsed, Prompt
from distserve.gateway.render import Envelope
from distserve.gateway.schema import ChatBody, CompletionBody
from distserve.gateway.work import Output
from distserve.wire.dialect import Finish, Token

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = ChatBody.model_validate({"model": "test", "messages": MESSAGES})
COMPLETION = CompletionBody.model_validate({"model": "test", "prompt": "hi"})


class Watched(str):
    """Text that counts the characters which are copied where it is added to other text."""

    copied: ClassVar[int] = 0

    def __add__(self, other: str) -> "Watched":
        return Watched._joined(self, other)

    def __radd__(self, other: str) -> "Watched":
        return Watched._joined(other, self)

    @staticmethod
    def _joined(one: str, other: str) -> "Watched":
        Watched.copied += len(one) + len(other)
        return Watched(str.__add__(one, other))


@pytest.mark.parametrize(
    ("kind", "body"), [(ChatAnswer, CHAT), (CompletionAnswer, COMPLETION)], ids=["chat", "text"]
)
def test_a_long_answer_is_not_copied_with_each_of_its_tokens(
    kind: Any, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "copied", 0)
    tokens = 1000
    answer = kind(body, Parsed([Prompt([1, 2], None)], [], False), None, Envelope("i", 0, "test"))
    events = [Token(0, index, 97, Watched("a")) for index in range(tokens)]
    made = answer.whole([Output(0, event) for event in [*events, Finish(0, "length", "!")]])
    (choice,) = made["choices"]
    text = choice["message"]["content"] if kind is ChatAnswer else choice["text"]
    assert text == "a" * tokens + "!"
    assert Watched.copied <= 2 * tokens
