"""What a step has room for: the nouns of all strategies' decisions, for engine and simulator."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of a step while it is filled, from the head of the line."""

    tokens: int
    """New tokens that the step can still take."""
    sequences: int
    """Seats: sequences that may join those that hold one."""
    blocks: int
    """Blocks that nobody holds. Blocks of prompts that wait for their fetch count as held."""
    untouched: bool
    """Nothing has joined the step yet."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt at the head of the line."""

    tokens: int
    """Still to be computed, after cache hits and earlier chunks."""
    sequences: int
    """Seats that it needs; 0 when it has them (it was begun in an earlier step)."""
    blocks: int
    """Blocks that it needs and does not hold, for all of its tokens."""


Grant = Callable[[Prompt, Room], int]
"""How many tokens of the prompt join the step. 0 ends the batch: nobody overtakes the head."""


def fits(prompt: Prompt, room: Room) -> bool:
    return prompt.sequences <= room.sequences and prompt.blocks <= room.blocks
