"""What a stream's bytes say, however the socket cuts them."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.bench.stream import TokenStream


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(words: str, **more: object) -> bytes:
    return event(choices=[{"index": 0, "text": words, **more}])


def fed(*parts: bytes) -> TokenStream:
    stream = TokenStream()
    for now, part in enumerate(parts):
        stream.feed(part, float(now))
    return stream


def test_a_token_an_event() -> None:
    stream = fed(text("a"), text("b"), text("c", finish_reason="length"), b"data: [DONE]\n\n")
    assert stream.token_times == [0, 1, 2]
    assert stream.finished and stream.done and stream.error is None


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})


@pytest.mark.parametrize(
    ("parts", "ended"),
    [
        ((text("a"), text("b", finish_reason="length"), USAGE, DONE), 1),
        ((text("a"), text("b"), text("", finish_reason="stop"), USAGE, DONE), 2),
        ((text("a"), text("b"), USAGE, DONE), 1),
        ((text("a"), text("b")), None),
        ((text("a"), event(error={"message": "gone"})), None),
    ],
    ids=["with its last token", "after it", "unreasoned", "broken off", "failed"],
)
def test_a_text_ends_before_what_is_told_of_it(parts: Sequence[bytes], ended: int | None) -> None:
    assert fed(*parts).ended == ended


def test_running_usage_counts_tokens_that_have_no_text_yet() -> None:
    def step(words: str, count: int) -> bytes:
        usage = {"prompt_tokens": 9, "completion_tokens": count}
        return event(choices=[{"text": words}], usage=usage)

    stream = fed(step("", 1), step("ab", 3), step("", 3))
    assert stream.token_times == [0, 1, 1]
    assert stream.prompt_tokens == 9


def test_token_ids_count_where_there_is_no_usage() -> None:
    assert fed(text("ab", token_ids=[5, 6]), text("", token_ids=[])).token_times == [0, 0]


def test_the_last_usage_spreads_what_events_held_together() -> None:
    last = event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 5})
    assert fed(text("ab"), text("cd"), text("e"), last).token_times == [0, 0, 1, 1, 2]
    assert fed(text("abcde"), last).token_times == [0] * 5


def test_a_chat_begins_with_a_role_that_is_no_token() -> None:
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    stream = fed(role, event(choices=[{"delta": {"content": "x"}}]))
    assert stream.token_times == [1]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_model_s_thoughts_are_tokens(name: str) -> None:
    assert fed(event(choices=[{"delta": {name: "hm"}}])).token_times == [0]


def test_text_that_looks_like_a_usage_is_text() -> None:
    assert fed(text('"usage":{"completion_tokens":7}')).token_times == [0]


def test_comments_and_other_fields_are_passed_over() -> None:
    assert fed(b": keep-alive\n\nevent: x\nid: 3\r\n", text("a")).token_times == [1]


def test_an_error_event_is_kept() -> None:
    assert "gone" in (fed(event(error={"message": "gone"})).error or "")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.data())
def test_any_cut_of_the_bytes_gives_the_same_tokens(
    words: Sequence[str], data: st.DataObject
) -> None:
    whole = b"".join(text(word) for word in words) + b"data: [DONE]\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    stream = fed(*parts)
    assert len(stream.token_times) == len(words)
    assert stream.done


@pytest.mark.parametrize("bad", [b"data: {\n\n", b'data: {"choices": 3}\n\n'])
def test_what_is_no_event_raises(bad: bytes) -> None:
    import msgspec

    with pytest.raises(msgspec.DecodeError):
        fed(bad)
