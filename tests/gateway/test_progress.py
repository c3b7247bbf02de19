"""However the events of overlapping legs interleave, the client gets each token once, in order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.gateway.generation import Diverged, Progress
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


def replayed(seen: list[Any]) -> Progress:
    """The client has tokens 0 to 2; a replay makes the last one again."""
    progress = Progress(1, seen.append)
    for index in range(3):
        progress.accept(Token(0, index, index, ""))
    progress.begin_replay(0, repeats=True)
    # The decode leg is ahead of the prefill leg, which makes that token.
    progress.accept(Finish(0, "length"))
    assert progress.unfinished
    progress.accept(Token(0, 3, 3, ""))
    assert len(seen) == 3
    return progress


def test_nothing_goes_out_before_the_repeated_token_is_the_same() -> None:
    seen: list[Any] = []
    progress = replayed(seen)
    progress.accept(Token(0, 2, 2, ""))
    assert [t.id for t in seen[:-1]] == [0, 1, 2, 3]
    assert not progress.unfinished


def test_another_token_is_told_and_nothing_of_it_goes_out() -> None:
    seen: list[Any] = []
    progress = replayed(seen)
    with pytest.raises(Diverged, match="token 9 came for 2"):
        progress.accept(Token(0, 2, 9, ""))
    assert len(seen) == 3 and progress.choices[0].diverged
    # The decode leg is still open: what it sends follows the other token.
    progress.accept(Token(0, 4, 4, ""))
    progress.accept(Finish(0, "length"))
    assert len(seen) == 3 and progress.unfinished
    progress.begin_replay(0, repeats=False)
    progress.accept(Token(0, 3, 3, ""))
    assert [t.id for t in seen] == [0, 1, 2, 3]
    assert not progress.choices[0].diverged, "what came since can be repeated"
