"""Text that is shown does not depend on which side of a hand-over shows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from distserve.engine.detokenizer import Detokenizer
from distserve.engine.ending import Ending, Judged, judge
from distserve.models.builtin import builtin_path
from distserve.wire.dialect import SamplingParams

TINY = Detokenizer.from_file(builtin_path("tiny") / "tokenizer.json")
ENCODER = Tokenizer.from_file(str(builtin_path("tiny") / "tokenizer.json"))
EOS = ENCODER.token_to_id("</s>")

texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé中🎉 \nthe")), max_size=40
)
stops = st.lists(st.text(st.sampled_from("the é中🎉a"), min_size=1, max_size=4), max_size=3)
noise = st.lists(st.integers(3, ENCODER.get_vocab_size() - 1), max_size=20)


def encode(text: str) -> list[int]:
    return ENCODER.encode(text, add_special_tokens=False).ids


def params(**kwargs) -> SamplingParams:
    return SamplingParams(seed=0, max_tokens=10_000, **kwargs)


def shown(stream, tokens) -> str:
    return "".join(stream.push(token).text for token in tokens)


@given(texts)
def test_all_text_comes_out(text) -> None:
    stream = TINY.stream(params())
    assert shown(stream, encode(text)) + stream.finish() == text


@given(texts, stops, noise, st.booleans(), st.data())
def test_any_split_shows_the_same(text, stop, junk, include, data) -> None:
    tokens = encode(text) + junk + encode(text)
    asked = params(stop=stop, include_stop_str_in_output=include)
    pieces = TINY.pieces(asked, [], tokens)
    until = next((i for i, p in enumerate(pieces) if p.stop is not None), len(pieces) - 1) + 1
    split = data.draw(st.integers(0, until))
    prefill, decode = TINY.stream(asked), TINY.stream(asked)
    first = [prefill.push(token) for token in tokens[:split]]
    for token in tokens[:split]:
        decode.push(token)
    assert first + [decode.push(token) for token in tokens[split:until]] == pieces[:until]


@given(texts, stops, st.booleans())
def test_stop_strings_cut_the_whole_text(text, stop, include) -> None:
    stream = TINY.stream(params(stop=stop, include_stop_str_in_output=include))
    out, ended = "", None
    for token in encode(text):
        piece = stream.push(token)
        out += piece.text
        if piece.stop is not None:
            ended = piece.stop
            break
    if ended is None:
        assert out + stream.finish() == text
        assert not any(s in text for s in stop)
    else:
        body = out.removesuffix(ended) if include else out
        assert text.startswith(body + ended)
        assert not any(s in body for s in stop)
        assert out == (body + ended if include else body)


def test_a_character_over_several_tokens_is_held() -> None:
    tokens = encode("🎉")
    assert len(tokens) > 1
    assert [p.text for p in TINY.pieces(params(), [], tokens)] == [""] * (len(tokens) - 1) + ["🎉"]
    stream = TINY.stream(params())
    assert shown(stream, tokens[:-1]) == ""
    assert "\ufffd" in stream.finish()


def test_what_may_begin_a_stop_string_is_held() -> None:
    stream = TINY.stream(params(stop=["END."]))
    assert shown(stream, encode("so EN")) == "so "
    assert shown(stream, encode("T")) == "ENT"
    assert stream.finish() == ""


def test_stop_strings_wait_for_min_tokens() -> None:
    tokens = encode("a b a b a b")
    asked = params(stop=["a"], min_tokens=3)
    pieces = TINY.pieces(asked, [], tokens)
    assert all(p.stop is None for p in pieces[:3])
    assert any(p.stop == "a" for p in pieces[3:])


def test_special_tokens_follow_the_request() -> None:
    tokens = [*encode("hi"), EOS, *encode(" you")]
    assert shown(TINY.stream(params()), tokens) == "hi you"
    assert shown(TINY.stream(params(skip_special_tokens=False)), tokens) == "hi</s> you"


def test_a_leading_space_is_kept_by_decoders_that_strip_it() -> None:
    vocabulary = {"<unk>": 0, "▁hello": 1, "▁world": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    detokenizer = Detokenizer(tokenizer)
    assert shown(detokenizer.stream(params(), [1]), [2, 3, 2]) == " worlds world"
    assert shown(detokenizer.stream(params(), []), [1, 2]) == "hello world"


def test_garbage_is_shown_in_the_end_and_costs_no_more() -> None:
    half = encode("🎉")[0]
    stream = TINY.stream(params())
    out = shown(stream, [half] * 500)
    assert len(stream._window) < 64
    assert len(out + stream.finish()) >= 500


@pytest.mark.parametrize(
    ("asked", "token", "output", "expected"),
    [
        ({}, EOS, 5, Judged("", Ending("stop"))),
        ({"ignore_eos": True}, EOS, 5, Judged("")),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, EOS, 5, Judged("", Ending("stop", EOS))),
        ({"min_tokens": 6}, EOS, 5, Judged("")),
        ({"stop_token_ids": [encode("a")[0]]}, "a", 1, Judged("", Ending("stop", encode("a")[0]))),
        (
            {"stop_token_ids": [encode("a")[0]], "include_stop_str_in_output": True},
            "a",
            1,
            Judged("a", Ending("stop", encode("a")[0])),
        ),
        ({"stop": ["a"]}, "a", 1, Judged("", Ending("stop", "a"))),
        ({"stop": ["ab"]}, "a", 10_000, Judged("", Ending("length"), "a")),
        ({"stop": ["ab"]}, "a", 9_999, Judged("")),
        ({}, "a", 10_000, Judged("a", Ending("length"))),
    ],
)
def test_how_a_choice_ends(asked, token, output, expected) -> None:
    asked = params(**asked)
    token = encode(token)[0] if isinstance(token, str) else token
    assert judge(asked, {EOS}, token, output, TINY.stream(asked)) == expected


def test_the_models_room_is_a_length() -> None:
    asked = params()
    assert judge(asked, {EOS}, 50, 7, TINY.stream(asked), room=7).ending == Ending("length")
