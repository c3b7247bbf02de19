"""Answers as they are put together from what engines sent."""

from typing import Any, ClassVar

import pytest
from tests.gateway.fake_text import BOS, EOS, make_spaced_tokenizer, make_tokenizer
from tests.gateway.fleets import member

from distserve.gateway.chat import ChatAnswer
from distserve.gateway.completions import CompletionAnswer
from distserve.gateway.parse import Parsed, Prompt
from distserve.gateway.render import Envelope
from distserve.gateway.schema import ChatBody, CompletionBody
from distserve.gateway.text import TextModel
from distserve.gateway.work import Output
from distserve.wire.dialect import Finish, PromptScores, Token
from distserve.wire.messages import TokenLogprobs

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


def offsets(tokenizer: bytes, prompt: Prompt, ids: list[int], **asked: Any) -> list[int]:
    """Of the prompt's tokens, if it is echoed, and of what was generated."""
    info = member("p").info
    assert info is not None
    body = CompletionBody.model_validate({"model": "test", "prompt": "hi", "logprobs": 0} | asked)
    answer = CompletionAnswer(
        body,
        Parsed([prompt], [], False),
        TextModel(info, {"tokenizer.json": tokenizer}, "k"),
        Envelope("i", 0, "test"),
    )
    scores = TokenLogprobs(-1.0)
    outputs = [
        Output(0, PromptScores([None, *(scores for _ in prompt.ids[1:])])),
        *(Output(0, Token(0, index, token, "", scores)) for index, token in enumerate(ids)),
        Output(0, Finish(0, "length")),
    ]
    (choice,) = answer.whole(outputs)["choices"]
    found: list[int] = choice["logprobs"]["text_offset"]
    assert len(found) == len(choice["logprobs"]["tokens"])
    return found


@pytest.mark.parametrize("skipped", [True, False])
def test_offsets_count_the_characters_that_the_text_has(skipped: bool) -> None:
    """Of a character that four tokens make, and of special tokens."""
    ids = [*"a😀b".encode(), EOS, ord("c"), ord("d")]
    end = 3 if skipped else 3 + len("</s>")
    found = offsets(make_tokenizer(), Prompt([1], "hi"), ids, skip_special_tokens=skipped)
    assert found == [0, 1, 1, 1, 1, 2, 3, end, end + 1]


@pytest.mark.parametrize(
    ("text", "ids", "expected"),
    [
        ("hé!", [*"hé!".encode()], [0, 1, 1, 2]),
        ("h", [BOS, ord("h")], [0, 0]),
        ("<s>h", [BOS, ord("h")], [0, 3]),
        ("<s>h", [BOS, BOS, ord("h")], [0, 3, 3]),
    ],
    ids=["parts of a character", "added", "written", "both"],
)
def test_an_echoed_prompts_offsets_are_those_of_its_text(
    text: str, ids: list[int], expected: list[int]
) -> None:
    found = offsets(make_tokenizer(), Prompt(ids, text), list(b"xy"), echo=True)
    assert found == [*expected, len(text), len(text) + 1]


def test_the_space_that_is_put_before_a_text_is_not_counted() -> None:
    found = offsets(make_spaced_tokenizer(), Prompt([4, 3, 5], "cat   cat"), [4, 4], echo=True)
    assert found == [0, 3, 6, 9, 13]
