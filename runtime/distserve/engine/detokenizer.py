"""Text of a choice as a pure function of its tokens; the scheduler pushes one token after another.

    all text     The cat sat on the m|\ufffd        last character incomplete -> held
    shown        The cat sat on |the m              "the m" may begin a stop string -> held

A leg that takes over a choice pushes the tokens that are out already (`prior`) and throws their
text away; from then on it shows what the other leg would have shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from distserve.engine.errors import ModelError
from distserve.wire.dialect import SamplingParams

_CONTEXT_TOKENS = 6
"""Prompt tokens that the first output token is decoded after (a leading space shows only so)."""
_PENDING_TOKENS = 16
"""An incomplete character has at most three bytes; what stays undecodable longer is shown."""
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True, slots=True)
class Shown:
    """What one more token makes visible."""

    text: str
    stop: str | None = None
    """The stop string that ends the choice here."""


class Detokenizer:
    """The tokenizer's decoder; one per engine, shared by all choices. Holds no state of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path) -> "Detokenizer":
        """Of a `tokenizer.json`. Raises ModelError."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing more special
            raise ModelError(
                f"{path} is no tokenizer.json ({error}): copy the model anew"
            ) from error

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, params: SamplingParams, prompt: Sequence[int] = ()) -> "TextStream":
        """The empty text of a new choice that follows `prompt`."""
        return TextStream(self, params, prompt)

    def pieces(
        self, params: SamplingParams, prompt: Sequence[int], tokens: Sequence[int]
    ) -> list[Shown]:
        """What each of `tokens` makes visible, from the first on."""
        stream = self.stream(params, prompt)
        return [stream.push(token) for token in tokens]


class TextStream:
    """Text of one choice while it grows. Constant work for each token."""

    def __init__(
        self, detokenizer: Detokenizer, params: SamplingParams, prompt: Sequence[int]
    ) -> None:
        self._detokenizer = detokenizer
        self._params = params
        self._stops = [stop for stop in params.stop if stop]
        self._pushed = 0
        self._held = ""
        # tokens[prefix:read] is decoded and shown already, tokens[read:] is not decodable yet.
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._known = self._decode(self._window)
        if self._known.endswith(_INCOMPLETE):
            self._window, self._known = [], ""
        self._read = len(self._window)

    def push(self, token: int) -> Shown:
        """Add the next token. Not to be called after a stop string was found."""
        self._pushed += 1
        return self._show(self._characters(token))

    def finish(self) -> str:
        """All that is still held back: the choice has ended without a stop string."""
        undecoded = self._decode(self._window)[len(self._known) :]
        self._read = len(self._window)
        self._known += undecoded
        held, self._held = self._held + undecoded, ""
        return held

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._detokenizer.decode(
            tokens, skip_special_tokens=self._params.skip_special_tokens
        )

    def _characters(self, token: int) -> str:
        """Complete characters that `token` adds."""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._read
        if text.endswith(_INCOMPLETE) and pending < _PENDING_TOKENS:
            return ""
        added = text[len(self._known) :]
        if added or pending >= _PENDING_TOKENS:
            # What was new is the next one's context: decoders that strip a leading space do it
            # to the context, in both texts that are compared.
            self._window = self._window[self._read :]
            self._read = len(self._window)
            self._known = self._decode(self._window)
        return added

    def _show(self, added: str) -> Shown:
        text, self._held = self._held + added, ""
        if not self._stops or self._pushed <= self._params.min_tokens:
            return Shown(text)
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda match: match[0])
            end = at + len(stop) if self._params.include_stop_str_in_output else at
            return Shown(text[:end], stop)
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return Shown(text[: len(text) - keep])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with and does not end in."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
