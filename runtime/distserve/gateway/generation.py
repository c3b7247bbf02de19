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
    """Key of the tokenizer that made the ids: instances with another one cannot take them."""
    salt: str = ""
    slo: Slo = field(default_factory=Slo)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def output_tokens(self) -> int:
        """At most, all choices together."""
        return self.choices * self.sampling.max_tokens

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


class Progress:
    """Puts the events of legs in order, drops what the client already has, passes on the rest.

    Legs of one generation overlap (prefill and decode, replays), and all of them name a token by
    choice and index: the first to come is taken.
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
        match event:
            case PromptScores():
                if not self.scored:
                    self.scored = True
                    self._emit(event)
            case Token():
                choice = self.choices[event.choice]
                if not choice.finished and event.index >= len(choice.tokens):
                    choice.early[event.index] = event
                    self._advance(choice)
            case Finish():
                choice = self.choices[event.choice]
                if not choice.finished:
                    choice.finish = event
                    self._advance(choice)

    def forget_early(self, index: int) -> None:
        """Before a replay: its tokens come anew, from what the client has."""
        choice = self.choices[index]
        choice.early.clear()
        choice.finish = None

    def _advance(self, choice: ChoiceProgress) -> None:
        while token := choice.early.pop(len(choice.tokens), None):
            choice.tokens.append(token.id)
            self._emit(token)
        if choice.finish and choice.tokens and not choice.early:
            choice.finished = True
            self._emit(choice.finish)
