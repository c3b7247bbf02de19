"""The nouns of a request on its way: one prompt's generation, and what came out of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from distserve.wire.dialect import Finish, PromptScores, SamplingParams, Slo, Token
from distserve.wire.hashing import chain


@dataclass(frozen=True, eq=False)
class Generation:
    """One prompt and its choices: what is routed, run and replayed as a whole. A client's batch
    of prompts becomes several."""

    id: str
    request_id: str
    index: int
    """Place of the prompt in the client's batch."""
    prompt: list[int]
    sampling: SamplingParams
    choices: int
    tokenizer: str
    """That made the ids: instances with another one cannot take them."""
    salt: str = ""
    slo: Slo = field(default_factory=Slo)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @cached_property
    def _hashes(self) -> dict[int, list[bytes]]:
        return {}

    def block_hashes(self, block_tokens: int) -> list[bytes]:
        if block_tokens not in self._hashes:
            self._hashes[block_tokens] = list(chain(self.prompt, block_tokens, self.salt))
        return self._hashes[block_tokens]


Emitted = Token | Finish | PromptScores


@dataclass
class ChoiceProgress:
    """What the client has of a choice."""

    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    early: dict[int, Token] = field(default_factory=dict)
    """Tokens that overtook an earlier one: the decode leg's first may be here before the prefill
    leg's."""
    finish: Finish | None = None
    """Waits for the tokens before it."""
    repeats: bool = False
    """The last of `tokens` is to come once more, before any other."""
    diverged: bool = False
    """It came, and was another one; none came since."""
    closed: bool = False
    """What comes now follows that other one, until the next replay begins."""

    @property
    def next_index(self) -> int:
        return len(self.tokens) - self.repeats

    @property
    def ended(self) -> bool:
        """It takes nothing more, for now or for good."""
        return self.finished or self.closed


class Diverged(Exception):
    """A replay chose another token than the client has: rounding differs from one batch to the
    next, and two were almost equally likely. What follows it would not follow the client's."""


class Progress:
    """Puts the events of legs in order, drops what the client already has, passes on the rest.

    Legs of one generation overlap (prefill and decode, replays), and all of them name a token by
    choice and index: the first to come is taken. A replay's first token is held against the one
    that the client has, and nothing after it is taken before that.
    """

    def __init__(self, choices: int, emit: Callable[[Emitted], None]) -> None:
        self.choices = {index: ChoiceProgress() for index in range(choices)}
        self.scored = False
        self._emit = emit

    @property
    def started(self) -> bool:
        """Something went out: from now on it can only be continued."""
        return any(c.tokens or c.finished for c in self.choices.values())

    @property
    def unfinished(self) -> list[int]:
        return [index for index, c in self.choices.items() if not c.finished]

    def accept(self, event: Emitted) -> None:
        """Raises Diverged."""
        match event:
            case PromptScores():
                if not self.scored:
                    self.scored = True
                    self._emit(event)
            case Token():
                choice = self.choices[event.choice]
                if not choice.ended and event.index >= choice.next_index:
                    choice.early[event.index] = event
                    self._advance(choice)
            case Finish():
                choice = self.choices[event.choice]
                if not choice.ended:
                    choice.finish = event
                    self._advance(choice)

    def begin_replay(self, index: int, repeats: bool) -> None:
        """Its tokens come anew, behind what the client has or with the last of that again."""
        choice = self.choices[index]
        choice.early.clear()
        choice.finish = None
        choice.repeats = repeats
        choice.closed = False

    def _advance(self, choice: ChoiceProgress) -> None:
        while token := choice.early.pop(choice.next_index, None):
            if choice.repeats:
                choice.repeats = False
                if token.id != choice.tokens[-1]:
                    choice.diverged = choice.closed = True
                    raise Diverged(f"token {token.id} came for {choice.tokens[-1]}")
            else:
                choice.tokens.append(token.id)
                choice.diverged = False
                self._emit(token)
        if choice.finish and choice.tokens and not choice.early and not choice.repeats:
            choice.finished = True
            self._emit(choice.finish)
