"""However the events of overlapping legs interleave, the client gets each token once, in order."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distserve.gateway.generation import Progress
from distserve.wire.dialect import Finish, Token

CHOICES, TOKENS = 2, 6


def streams() -> list[list[Any]]:
    """A prefill leg, a decode leg and a replay of both, each in its own order."""
    prefill: list[Any] = [Token(c, 0, 100 * c, "") for c in range(CHOICES)]
    decode: list[Any] = [
        Token(c, i, 100 * c + i, "") for i in range(1, TOKENS) for c in range(CHOICES)
    ]
    ends = [Finish(c, "length") for c in range(CHOICES)]
    return [prefill, decode + ends, [*prefill, *decode, *ends]]


@given(st.lists(st.integers(0, 2), max_size=60))
def test_each_token_once_and_in_order(turns: list[int]) -> None:
    seen: list[Any] = []
    progress = Progress(CHOICES, seen.append)
    left = streams()
    for turn in turns:
        if left[turn]:
            progress.accept(left[turn].pop(0))
        for choice in range(CHOICES):
            own = [e for e in seen if e.choice == choice]
            tokens = [e for e in own if isinstance(e, Token)]
            assert [t.index for t in tokens] == list(range(len(tokens)))
            assert progress.choices[choice].tokens == [t.id for t in tokens]
            finished = any(isinstance(e, Finish) for e in own)
            assert finished == progress.choices[choice].finished
            if finished:
                assert isinstance(own[-1], Finish) and len(own) == TOKENS + 1
    for rest in left:
        for event in rest:
            progress.accept(event)
    assert not progress.unfinished
    assert len(seen) == CHOICES * (TOKENS + 1)
