"""Tokenising apart from requests: off the event loop, and what a file says of its tokens."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import WAIT_SECONDS
from tests.gateway.fake_text import make_spaced_tokenizer, make_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from distserve.gateway.admission import LEAST_BODY_BYTES, body_bound
from distserve.gateway.text import LONG_TEXT, PART, THREADS, THREADS_ASIDE, TextModel
from distserve.gateway.vocabulary import TokenizerFile, longest_token
from distserve.wire.dialect import InstanceInfo

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
CORPUS = ["the cat sat on the mat  and   then    it left", "été où 中文 中文字 ééé"] * 20


def info() -> InstanceInfo:
    return InstanceInfo(
        instance="a", role="prefill", unit="u0", revision="r0", epoch=1, fingerprint="f0",
        model="test", strategy="Disaggregated", block_tokens=4, total_blocks=10,
        max_model_len=256, max_num_seqs=4, max_num_batched_tokens=64, vocab_size=258,
        bos_token_id=None, eos_token_ids=[257], chat_template=None, files={},
    )  # fmt: skip


def text_model(tokenizer: bytes) -> TextModel:
    return TextModel(info(), {"tokenizer.json": tokenizer}, "k")


def byte_level(normalizer: Any = None, split: Any = None, alphabet: Any = ALPHABET) -> Tokenizer:
    """As those of Llama 3 and Qwen."""
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    made.pre_tokenizer = own if split is None else pre_tokenizers.Sequence([split, own])
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(["<|end|>"])
    return made


def byte_fallback(normalizer: Any = None, byte_fallback: bool = True) -> Tokenizer:
    """As those of Llama 2, made from SentencePiece."""
    words = ["<unk>", "▁", "c", "a", "t", "ca", "cat", "▁cat"]
    vocab = {
        token: index
        for index, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat")]
    made = Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )  # fmt: skip
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence([*([normalizer] if normalizer else []), *steps])
    if byte_fallback:
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return made


def longest(tokenizer: Tokenizer) -> int | None:
    file = msgspec.json.decode(tokenizer.to_str(), type=TokenizerFile)
    return longest_token(file, tokenizer.get_vocab())


def splitting(behavior: str) -> Any:
    return pre_tokenizers.Split(" ", behavior)


def stripping(**sides: bool) -> Tokenizer:
    made = byte_level()
    made.add_tokens([AddedToken("<|user|>", special=True, **sides)])
    return made


def words_alone() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"cat": 0, "<unk>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


KNOWN = {
    "byte level": byte_level(),
    "NFC": byte_level(normalizers.NFC(), splitting("isolated")),
    "byte fallback": byte_fallback(),
}
UNKNOWN = {
    "spaces are stripped": byte_level(normalizers.Strip()),
    "accents are stripped": byte_level(normalizers.Sequence([normalizers.StripAccents()])),
    "a run is replaced": byte_fallback(normalizers.Replace("  ", " ")),
    "a pattern is replaced": byte_fallback(normalizers.Replace(Regex(" +"), " ")),
    "what splits is removed": byte_level(split=splitting("removed")),
    "bytes are missing": byte_level(alphabet=[]),
    "unknown characters are one token": byte_fallback(byte_fallback=False),
    "unknown words are one token": words_alone(),
    "a token takes the spaces after it": stripping(rstrip=True),
    "a token takes the spaces before it": stripping(lstrip=True),
}


@pytest.mark.parametrize("name", KNOWN)
@given(text=st.one_of(st.text(), st.text(alphabet="cat e\u0301\u0308 <|end>"), st.just("ΐ" * 9)))
def test_a_text_is_no_longer_than_its_tokens_allow(name: str, text: str) -> None:
    tokenizer = KNOWN[name]
    most = longest(tokenizer)
    assert most is not None
    for form in (text, "".join("é" for _ in text)):
        tokens = tokenizer.encode(form, add_special_tokens=False).ids
        assert len(form) <= most * len(tokens)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_few_tokens_may_stand_for_any_text_nothing_is_said(name: str) -> None:
    assert longest(UNKNOWN[name]) is None


def test_the_longest_token() -> None:
    assert longest(Tokenizer.from_str(make_tokenizer().decode())) == len("</s>")
    assert longest(byte_fallback()) == len("<0x00>")
    assert longest(byte_fallback(normalizers.NFC())) == 4 * len("<0x00>")


def test_a_byte_that_is_a_token_is_that_byte() -> None:
    """Of `€` in a model without it: E2 82 AC."""
    model = text_model(byte_fallback().to_str().encode())
    ids = KNOWN["byte fallback"].encode("€").ids[1:]
    assert [model.piece(token).bytes for token in ids] == [[0xE2], [0x82], [0xAC]]
    assert model.piece(ids[0]).text == "\ufffd"
    (line,) = KNOWN["byte fallback"].encode("\n").ids[1:]
    assert (model.piece(line).text, model.piece(line).bytes) == ("\n", [10])
    plain = text_model(byte_fallback(byte_fallback=False).to_str().encode())
    assert plain.piece(ids[0]).text == "<0xE2>", "without fallback it is a word like others"


def test_all_spaces_that_a_token_stands_for_are_shown() -> None:
    model = text_model(make_spaced_tokenizer())
    assert [model.piece(token).text for token in range(1, 6)] == [" ", "  ", "   ", " cat", "cat"]
    assert model.piece(3).bytes == [0x20] * 3


class Held:
    """A tokenizer whose calls wait until they are let go: those of texts that begin so."""

    def __init__(self, beginning: str = "") -> None:
        self.beginning = beginning
        self.go = threading.Event()
        self.inside = 0
        self.most = 0
        self.parts: list[list[str]] = []
        self._lock = threading.Lock()

    def encode_batch_fast(self, part: list[str], add_special_tokens: bool) -> list[Any]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.parts.append(part)
        if part[0].startswith(self.beginning):
            assert self.go.wait(WAIT_SECONDS), "the event loop waits for the tokenizer"
        with self._lock:
            self.inside -= 1
        return [Encoded([len(text)]) for text in part]


class Encoded:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


@pytest.mark.parametrize(
    "texts", [["x" * (LONG_TEXT + 1)], ["x" * 100] * LONG_TEXT], ids=["one", "many"]
)
async def test_much_text_leaves_the_event_loop_and_waits_its_turn(texts: list[str]) -> None:
    model = text_model(make_tokenizer())
    held = model._tokenizer = Held()  # type: ignore[assignment]
    asked = [
        asyncio.create_task(model.encode(texts, add_special_tokens=False, param="prompt"))
        for _ in range(THREADS + 2)
    ]
    async with asyncio.timeout(WAIT_SECONDS):
        while held.inside < THREADS:
            await asyncio.sleep(0.01)
        held.go.set()
        assert await asyncio.gather(*asked) == [[[len(text)] for text in texts]] * len(asked)
    assert held.most == THREADS
    assert all(len(part) == 1 or len(part) * 100 <= PART for part in held.parts)


async def test_short_texts_do_not_wait_for_the_threads_of_large_batches() -> None:
    """The library gives what comes with others to its own threads, and waits for them."""
    model = text_model(make_tokenizer())
    held = model._tokenizer = Held()  # type: ignore[assignment]
    held.go.set()
    made = await model.encode(["a", "bc"], add_special_tokens=False, param="prompt")
    assert made == [[1], [2]]
    assert held.parts == [["a"], ["bc"]]


async def test_a_text_waits_for_parts_of_large_batches_not_for_all_of_them() -> None:
    model = text_model(make_tokenizer())
    held = model._tokenizer = Held()  # type: ignore[assignment]
    held.go.set()
    large, text = ["x" * PART] * 4, "y" * (LONG_TEXT + 1)
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(
            *(
                model.encode(texts, add_special_tokens=False, param="prompt")
                for texts in [large] * THREADS + [[text]]
            )
        )
    assert held.parts.index([text]) == THREADS
    assert len(held.parts) == THREADS * len(large) + 1


async def test_texts_that_are_only_tokenised_hold_up_nothing_that_is_generated() -> None:
    model = text_model(make_tokenizer())
    held = model._tokenizer = Held("x")  # type: ignore[assignment]
    aside = [
        asyncio.create_task(
            model.encode(["x" * PART], add_special_tokens=False, param="prompt", aside=True)
        )
        for _ in range(THREADS + 2)
    ]
    async with asyncio.timeout(WAIT_SECONDS):
        while not held.inside:
            await asyncio.sleep(0.01)
        await model.encode(["y" * PART], add_special_tokens=False, param="prompt")
        assert held.inside == THREADS_ASIDE
        held.go.set()
        await asyncio.gather(*aside)


async def test_who_gives_up_leaves_its_turn_to_its_thread() -> None:
    model = text_model(make_tokenizer())
    held = model._tokenizer = Held()  # type: ignore[assignment]

    def ask() -> asyncio.Task[list[list[int]]]:
        return asyncio.create_task(
            model.encode(["x" * PART], add_special_tokens=False, param="prompt")
        )

    async with asyncio.timeout(WAIT_SECONDS):
        given_up = [ask() for _ in range(THREADS)]
        while held.inside < THREADS:
            await asyncio.sleep(0.01)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        others = [ask() for _ in range(THREADS)]
        for _ in range(10):
            await asyncio.to_thread(int)  # behind what went to threads before it
        held.go.set()
        assert await asyncio.gather(*others) == [[[PART]]] * THREADS
    assert held.most == THREADS


async def test_many_ids_become_the_same_text_in_parts() -> None:
    model = text_model(make_tokenizer())
    batch = [list(b"abc") * 1000, list(b"d")]
    assert await model.decode(batch) == ["abc" * 1000, "d"]
    assert await model.decode([]) == []


@pytest.mark.parametrize(
    ("most", "context", "bound"),
    [
        (32 << 20, 0, LEAST_BODY_BYTES),
        (32 << 20, 1 << 17, LEAST_BODY_BYTES),
        (32 << 20, 1 << 20, 16 << 20),
        (32 << 20, 1 << 24, 32 << 20),
        (2000, 1 << 20, 2000),
    ],
)
def test_a_body_is_as_long_as_the_context_asks_for(most: int, context: int, bound: int) -> None:
    assert body_bound(most, context) == bound
