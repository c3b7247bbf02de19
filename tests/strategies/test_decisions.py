"""The decisions that engine and simulator share, at their edges."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.strategies.budget import Prompt, Room
from distserve.strategies.chunked_prefill import grant_chunk, step_tokens
from distserve.strategies.colocated import grant_whole
from distserve.strategies.conditions import is_idle, is_stall_free
from distserve.strategies.disaggregated import Pull, may_pull

ROOM = Room(tokens=100, sequences=2, blocks=10, untouched=True)

prompts = st.builds(
    Prompt, tokens=st.integers(1, 300), sequences=st.integers(0, 4), blocks=st.integers(0, 20)
)
rooms = st.builds(
    Room,
    tokens=st.integers(0, 200),
    sequences=st.integers(0, 4),
    blocks=st.integers(0, 20),
    untouched=st.booleans(),
)


@pytest.mark.parametrize(
    ("prompt", "room", "granted"),
    [
        (Prompt(100, 1, 10), ROOM, 100),
        (Prompt(101, 1, 10), ROOM, 100),
        (Prompt(101, 1, 10), replace(ROOM, untouched=False), 0),
        (Prompt(100, 1, 11), ROOM, 0),
        (Prompt(100, 3, 10), ROOM, 0),
        (Prompt(100, 0, 0), replace(ROOM, sequences=0, blocks=0), 100),
    ],
    ids=["fits", "longer than any step", "waits for the next", "blocks", "seats", "begun"],
)
def test_whole_prompts(prompt: Prompt, room: Room, granted: int) -> None:
    assert grant_whole(prompt, room) == granted


def test_chunks_fill_what_decodes_leave() -> None:
    assert grant_chunk(Prompt(101, 1, 10), ROOM) == 100
    assert grant_chunk(Prompt(30, 1, 10), replace(ROOM, untouched=False)) == 30
    assert grant_chunk(Prompt(30, 1, 11), ROOM) == 0
    assert step_tokens(None, 8192) == 512
    assert step_tokens(1024, 256) == 256


@given(prompts, rooms)
def test_nothing_is_granted_beyond_the_room(prompt: Prompt, room: Room) -> None:
    for grant in (grant_whole, grant_chunk):
        granted = grant(prompt, room)
        assert 0 <= granted <= min(prompt.tokens, room.tokens)
        if granted:
            assert prompt.blocks <= room.blocks
            assert prompt.sequences <= room.sequences


def test_pulling_needs_blocks_and_a_seat_or_little_room() -> None:
    pull = Pull(
        blocks=10, sequences=1, free_blocks=20, free_sequences=1, running=10, waiting_blocks=0,
        total_blocks=200,
    )  # fmt: skip
    assert may_pull(pull)
    assert not may_pull(replace(pull, running=11)), "running ones could not grow"
    ahead = replace(pull, free_sequences=0)
    assert may_pull(ahead), "5 % of the pool may wait for a seat"
    assert not may_pull(replace(ahead, waiting_blocks=1))


def test_conditions() -> None:
    assert is_idle(0, 0)
    assert not is_idle(1, 0)
    assert not is_idle(0, 1)
    assert is_stall_free(50.0, [])
    assert is_stall_free(50.0, [50.0, 100.0])
    assert not is_stall_free(50.0, [49.0, 100.0])
    assert not is_stall_free(50.0, [None])
