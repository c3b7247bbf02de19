"""Tokenizer files for made models: those of `tiny`, cut or filled to a vocabulary's size.

Called by `random_weights`. Everything works on the text of `tokenizer.json`, so that no tokenizer
is trained and nothing heavy is imported.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distserve.models.builtin import builtin_path
from distserve.models.errors import ImpossibleShape

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# Slow tokenizers' files too, for a folder that a user brings.
_FILES = (_TOKENIZER, _SETTINGS, _TEMPLATE, "special_tokens_map.json")


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that a model's config repeats; None where the tokenizer has no such token."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None


def write_tokenizer(
    folder: Path, *, tokens: int, max_positions: int, source: Path | None = None
) -> SpecialTokens:
    """Writes tokenizer files of at most `tokens` tokens into `folder`.

    Without `source` it is tiny's tokenizer with exactly `tokens` tokens; a `source` folder's files
    are copied as they are. Raises ImpossibleShape when the vocabulary does not fit.
    """
    origin = source or builtin_path("tiny")
    if not (origin / _TOKENIZER).is_file():
        raise ImpossibleShape(f"{origin} has no {_TOKENIZER}; name a folder with a fast tokenizer")
    vocabulary = json.loads((origin / _TOKENIZER).read_text(encoding="utf-8"))
    settings = json.loads((origin / _SETTINGS).read_text(encoding="utf-8"))
    if source is None:
        _resize(vocabulary, tokens)
        settings["model_max_length"] = max_positions
        shutil.copyfile(origin / _TEMPLATE, folder / _TEMPLATE)
        _write(folder / _TOKENIZER, vocabulary)
        _write(folder / _SETTINGS, settings)
    else:
        for name in _FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
    ids = _ids(vocabulary)
    if max(ids.values()) >= tokens:
        raise ImpossibleShape(
            f"the tokenizer of {origin} has ids up to {max(ids.values())}, the model has room for "
            f"{tokens}; set the vocabulary size to at least {max(ids.values()) + 1}"
        )
    return SpecialTokens(
        bos_token_id=ids.get(_text(settings.get("bos_token"))),
        eos_token_id=ids.get(_text(settings.get("eos_token"))),
        pad_token_id=ids.get(_text(settings.get("pad_token"))),
    )


def _resize(tokenizer: dict[str, Any], tokens: int) -> None:
    """Cuts merges from the end, or adds words that no text encodes to but every id decodes to.

    ids:  | special tokens | 256 bytes | merges, in the order they were learnt | added words |
                                        <- cut                              fill ->
    """
    model = tokenizer["model"]
    words: dict[str, int] = model["vocab"]
    smallest = len(words) - len(model["merges"])
    if tokens < smallest:
        raise ImpossibleShape(
            f"a vocabulary of {tokens} tokens has no room for the special tokens and the 256 "
            f"bytes; set the vocabulary size to at least {smallest}, or bring a tokenizer"
        )
    model["merges"] = model["merges"][: tokens - smallest]
    model["vocab"] = {word: index for word, index in words.items() if index < tokens}
    # The byte-level alphabet writes a space as Ġ.
    model["vocab"] |= {f"Ġw{index}": index for index in range(len(words), tokens)}


def _ids(tokenizer: dict[str, Any]) -> dict[str | None, int]:
    """Every token's id by its text."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram models list (text, score) pairs
        vocabulary = {pair[0]: index for index, pair in enumerate(vocabulary)}
    ids: dict[str | None, int] = dict(vocabulary)
    ids.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    return ids


def _text(token: str | dict[str, Any] | None) -> str | None:
    """Settings name a token by its text or by an object with its text."""
    return token["content"] if isinstance(token, dict) else token


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
