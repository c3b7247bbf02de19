"""Counts and cuts texts in a model's tokens, by the `tokenizer.json` that comes with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distserve.bench.errors import BenchError


class Tokens:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def of(cls, path: Path) -> Tokens:
        """From a `tokenizer.json` or the folder it is in. Raises BenchError."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BenchError(
                "data sets need tokenizers, in a checkout: pip install '.[bench]'"
            ) from error
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises nothing more special
            raise BenchError(
                f"{file} is no tokenizer.json: {error}; give the one of the model that is measured"
            ) from error

    def count(self, text: str, special: bool = True) -> int:
        """With the tokens that a model's template puts around a text, unless told not to."""
        return len(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def first(self, text: str, tokens: int) -> str:
        """The text's longest beginning of at most so many tokens, as far as it decodes alike."""
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= tokens:
            return text
        words: str = self._tokenizer.decode(ids[:tokens])
        return words
