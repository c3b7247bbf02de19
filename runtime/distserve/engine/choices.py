"""Turns tokens into what a client sees of a choice: text, ending, events. Pure but for the text."""

from collections.abc import Collection
from dataclasses import dataclass

from distserve.engine.batch import Sampled
from distserve.engine.detokenizer import Detokenizer
from distserve.engine.ending import judge
from distserve.engine.sequence import Request, Sequence
from distserve.wire.dialect import Finish, Token
from distserve.wire.messages import ChoiceProgress


@dataclass(frozen=True, slots=True)
class Grown:
    """A choice after one more token."""

    token: Token
    finish: Finish | None


class Choices:
    """Makes and grows the choices of one model's requests."""

    def __init__(
        self, detokenizer: Detokenizer, eos_token_ids: Collection[int], max_model_len: int
    ) -> None:
        self._detokenizer = detokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_model_len = max_model_len

    def start(self, request: Request, choice: int, output: list[int]) -> Sequence:
        """A choice whose `output` the client has already: its text goes on behind that."""
        text = self._detokenizer.stream(request.leg.sampling, request.leg.prompt)
        for token in output:
            text.push(token)
        return Sequence(request, choice, list(output), text)

    def grow(self, sequence: Sequence, sampled: Sampled) -> Grown:
        leg = sequence.request.leg
        sequence.output.append(sampled.token)
        count = len(sequence.output)
        room = self._max_model_len - len(leg.prompt)
        judged = judge(leg.sampling, self._eos_token_ids, sampled.token, count, sequence.text, room)
        token = Token(sequence.choice, count - 1, sampled.token, judged.text, sampled.logprobs)
        if judged.ending is None:
            return Grown(token, None)
        ending = judged.ending
        return Grown(token, Finish(sequence.choice, ending.reason, judged.rest, ending.stop))


def progress_of(sequence: Sequence, grown: Grown) -> ChoiceProgress:
    """What the decode side has to know of a choice's beginning."""
    logprobs = [grown.token.logprobs] if grown.token.logprobs is not None else []
    return ChoiceProgress(
        sequence.choice, list(sequence.output), logprobs, finished=grown.finish is not None
    )
