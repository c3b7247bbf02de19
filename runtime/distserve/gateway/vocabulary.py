"""What a tokenizer's file says of its tokens: how they stand for bytes, how long they are."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

LONGEST_COMPOSITION = 4
"""Characters that NFC makes one of, at most: no canonical decomposition of Unicode is longer."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_KEEPING = frozenset({"ByteLevel", "Digits", "Metaspace", "NFC", "NFD", "Prepend"})
"""Steps after which a text is as long as before, or longer, or shorter by a known factor."""


class _Model(msgspec.Struct):
    type: str = ""
    byte_fallback: bool = False


class _AddedToken(msgspec.Struct):
    lstrip: bool = False
    rstrip: bool = False


class TokenizerFile(msgspec.Struct):
    """The parts of a tokenizer.json that matter here; vocabularies of megabytes are skipped."""

    model: _Model
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [*_flat(self.normalizer), *_flat(self.pre_tokenizer)]

    @property
    def byte_level(self) -> bool:
        return any(step["type"] == "ByteLevel" for step in self.steps)


def longest_token(file: TokenizerFile, vocabulary: Mapping[str, int]) -> int | None:
    """Characters of a text that one token stands for at most. None where texts of any length may
    become few tokens: spaces are stripped, unknown characters dropped or made one token.

    So a text that cannot fit is refused before it is tokenised.
    """
    if file.byte_level:
        own = set(byte_alphabet())
    elif file.model.byte_fallback:
        own = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        return None
    whole = own <= vocabulary.keys() and file.model.type in ("BPE", "Unigram")
    strips = any(token.lstrip or token.rstrip for token in file.added_tokens)
    if not whole or strips or not all(map(_keeps, file.steps)):
        return None
    composes = any(step["type"] == "NFC" for step in file.steps)
    return max(map(len, vocabulary)) * (LONGEST_COMPOSITION if composes else 1)


def byte_of(token: str) -> int | None:
    """What a token of SentencePiece's byte fallback stands for: `<0x0A>` is a line's end."""
    found = _BYTE_TOKEN.fullmatch(token)
    return int(found[1], 16) if found else None


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: printable bytes as themselves,
    the others from U+0100 on in order (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
    for inner in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
        yield from _flat(inner)


def _keeps(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "Split":
            return bool(step["behavior"] != "Removed")
        case "Replace":
            pattern = step["pattern"].get("String")
            return pattern is not None and len(step["content"]) >= len(pattern)
        case kind:
            return kind in _KEEPING
