"""Text to token ids and back, once, in the gateway: with the files that an engine hands out."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from distserve.gateway.chat_template import ChatTemplate
from distserve.gateway.errors import BadRequest, ServerFault
from distserve.wire.dialect import InstanceInfo

LONG_TEXT = 8192
"""Characters from which on tokenising leaves the event loop: some milliseconds."""


@dataclass(frozen=True)
class Piece:
    """A token as log-probabilities show it."""

    text: str
    bytes: list[int]


class TextModel:
    """A model's tokenizer and chat template."""

    def __init__(self, info: InstanceInfo, files: Mapping[str, bytes], key: str) -> None:
        """Takes up to seconds for a large vocabulary."""
        self.key = key
        self.vocab_size = info.vocab_size
        self._tokenizer = None
        self._alphabet: dict[str, int] | None = None
        if "tokenizer.json" in files:
            self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            if b'"ByteLevel"' in files["tokenizer.json"]:
                self._alphabet = _byte_alphabet()
        self._template = None
        if info.chat_template:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            self._template = ChatTemplate(
                info.chat_template,
                bos_token=self._special(config, "bos_token", info.bos_token_id),
                eos_token=self._special(config, "eos_token", next(iter(info.eos_token_ids), None)),
            )
        self.piece = lru_cache(maxsize=16384)(self._piece)

    async def encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        if len(text) > LONG_TEXT:
            return await asyncio.to_thread(self._encode, text, add_special_tokens, param)
        return self._encode(text, add_special_tokens, param)

    async def encode_chat(
        self, messages: list[dict[str, str]], *, add_special_tokens: bool
    ) -> list[int]:
        """With the prompt that makes the assistant speak. Raises BadRequest."""
        if self._template is None:
            raise BadRequest(
                "the model has no chat template: use /v1/completions", param="messages"
            )
        text = self._template.render(messages)
        return await self.encode(text, add_special_tokens=add_special_tokens, param="messages")

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        tokenizer = self._need("prompt")
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        try:
            encoded = self._need(param).encode(text, add_special_tokens=add_special_tokens)
        except (ValueError, TypeError, UnicodeError) as error:
            raise BadRequest(f"the text cannot be tokenised: {error}", param=param) from error
        return list(encoded.ids)

    def _piece(self, token: int) -> Piece:
        """Raises nothing: an id without a token is shown as nothing."""
        raw = self._tokenizer.id_to_token(token) if self._tokenizer else None
        if raw is None:
            return Piece("", [])
        if self._alphabet is not None and all(c in self._alphabet for c in raw):
            data = bytes(self._alphabet[c] for c in raw)
            return Piece(data.decode("utf-8", "replace"), list(data))
        text = self.decode([token])
        if raw.startswith("▁") and not text.startswith(" "):
            text = " " + text
        return Piece(text, list(text.encode()))

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


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: printable bytes as themselves,
    the others from U+0100 on in order (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
