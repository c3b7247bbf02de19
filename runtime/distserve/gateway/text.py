"""Text to token ids and back, once, in the gateway: with the files that an engine hands out."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from tokenizers import Tokenizer

from distserve.gateway.chat_template import ChatTemplate, UnusableTemplate
from distserve.gateway.errors import BadRequest, ServerFault
from distserve.gateway.vocabulary import TokenizerFile, byte_alphabet, byte_of, longest_token
from distserve.wire.dialect import InstanceInfo

log = logging.getLogger(__name__)

LONG_TEXT = 8192
"""Characters from which on tokenising leaves the event loop: some milliseconds."""
LONG_IDS = 2048
"""Tokens from which on putting them together does."""
PART = 1 << 18
"""Characters or tokens that a thread takes at once: what they become is large."""
THREADS = 2
"""That tokenise at a time for what is generated; the others wait their turn."""
THREADS_ASIDE = 1
"""For who only wants a text tokenised, of any length: nothing that is generated waits for it."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Piece:
    """A token as log-probabilities show it."""

    text: str
    """Of a part of a character U+FFFD."""
    bytes: list[int]
    special: bool = False
    """Of the tokenizer's own, such as that of a text's beginning: an answer's text leaves it out,
    unless it is asked for."""


class TextModel:
    """A model's tokenizer and chat template."""

    def __init__(self, info: InstanceInfo, files: Mapping[str, bytes], key: str) -> None:
        """Takes up to seconds for a large vocabulary."""
        self.key = key
        self.tokenizer = info.tokenizer
        self.vocab_size = info.vocab_size
        self.longest_token: int | None = None
        """Characters that a token stands for at most; None where that is not known."""
        self._tokenizer = None
        self._special_ids: frozenset[int] = frozenset()
        self._alphabet: dict[str, int] | None = None
        self._byte_fallback = False
        if "tokenizer.json" in files:
            self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            added = self._tokenizer.get_added_tokens_decoder()
            self._special_ids = frozenset(token for token, one in added.items() if one.special)
            file = msgspec.json.decode(files["tokenizer.json"], type=TokenizerFile)
            self.longest_token = longest_token(file, self._tokenizer.get_vocab())
            self._byte_fallback = file.model.byte_fallback
            if b'"ByteLevel"' in files["tokenizer.json"]:
                self._alphabet = byte_alphabet()
        self._template: ChatTemplate | None = None
        self._why_no_chat = "the model has no chat template"
        if info.chat_template:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            bos_token = self._special(config, "bos_token", info.bos_token_id)
            eos_token = self._special(config, "eos_token", next(iter(info.eos_token_ids), None))
            try:
                self._template = ChatTemplate(
                    info.chat_template, bos_token=bos_token, eos_token=eos_token
                )
            except UnusableTemplate as error:
                self._why_no_chat = f"the model's chat template cannot be used ({error})"
                log.error("%s: chats are refused", self._why_no_chat)
        self.piece = lru_cache(maxsize=16384)(self._piece)
        self._turn = asyncio.Semaphore(THREADS)
        self._turn_aside = asyncio.Semaphore(THREADS_ASIDE)

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool, param: str, aside: bool = False
    ) -> list[list[int]]:
        """`aside`: nothing is to be generated from it. Raises BadRequest."""
        tokenizer = self._need(param)

        def encode(part: list[str]) -> list[list[int]]:
            encoded = tokenizer.encode_batch_fast(part, add_special_tokens=add_special_tokens)
            return [one.ids for one in encoded]

        try:
            return await self._in_parts(encode, texts, LONG_TEXT, aside)
        except (ValueError, TypeError, UnicodeError) as error:
            raise BadRequest(f"the text cannot be tokenised: {error}", param=param) from error

    def render(self, messages: list[dict[str, str]]) -> str:
        """With the prompt that makes the assistant speak. Raises BadRequest."""
        if self._template is None:
            raise BadRequest(f"{self._why_no_chat}: use /v1/completions", param="messages")
        return self._template.render(messages)

    async def decode(self, batch: Sequence[list[int]], *, aside: bool = False) -> list[str]:
        """`aside` as in `encode`. Raises BadRequest."""
        tokenizer = self._need("prompt")

        def decode(part: list[list[int]]) -> list[str]:
            return tokenizer.decode_batch(part, skip_special_tokens=False)

        return await self._in_parts(decode, batch, LONG_IDS, aside)

    async def _in_parts(
        self,
        work: Callable[[list[Any]], list[Made]],
        items: Sequence[Any],
        long: int,
        aside: bool,
    ) -> list[Made]:
        """Little is done here; much in a thread, part by part, each when it is its turn."""
        if sum(map(len, items)) <= long:
            # One by one: several at once go to the library's threads, behind all that large
            # batches have given to them.
            return [made for item in items for made in work([item])]
        turn = self._turn_aside if aside else self._turn
        results: list[Made] = []
        for part in _parts(items):
            await turn.acquire()
            # Only calls for whole batches let other threads run meanwhile.
            working = asyncio.create_task(asyncio.to_thread(work, part))
            # Who gives up leaves the thread behind: the turn is that thread's.
            working.add_done_callback(lambda _: turn.release())
            results += await asyncio.shield(working)
        return results

    def _piece(self, token: int) -> Piece:
        """Raises nothing: an id without a token is shown as nothing."""
        raw = self._tokenizer.id_to_token(token) if self._tokenizer else None
        if self._tokenizer is None or raw is None:
            return Piece("", [])
        if self._byte_fallback and (byte := byte_of(raw)) is not None:
            data = bytes([byte])
        elif self._alphabet is not None and all(c in self._alphabet for c in raw):
            data = bytes(self._alphabet[c] for c in raw)
        elif raw.startswith("▁"):
            # Decoded alone it is the beginning of a text, and loses its first space.
            data = raw.replace("▁", " ").encode()
        else:
            data = self._tokenizer.decode([token], skip_special_tokens=False).encode()
        return Piece(data.decode("utf-8", "replace"), list(data), token in self._special_ids)

    def _need(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise BadRequest("the model has no tokenizer: send token ids", param=param)
        return self._tokenizer

    def _special(self, config: dict[str, Any], name: str, token: int | None) -> str:
        given = config.get(name)
        if isinstance(given, dict):
            given = given.get("content")
        if given is None and token is not None and self._tokenizer is not None:
            given = self._tokenizer.id_to_token(token)
        return given or ""


async def load_text_model(info: InstanceInfo, files: Mapping[str, bytes], key: str) -> TextModel:
    """Off the event loop. Raises ServerFault when the files cannot be used."""
    try:
        return await asyncio.to_thread(TextModel, info, files, key)
    except Exception as error:  # tokenizers raises bare Exception
        raise ServerFault(f"the model's tokenizer files cannot be used: {error}") from error


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """As many at a time as are PART long together, one at least."""
    part: list[Any] = []
    length = 0
    for item in items:
        if part and length + len(item) > PART:
            yield part
            part, length = [], 0
        part.append(item)
        length += len(item)
    if part:
        yield part
