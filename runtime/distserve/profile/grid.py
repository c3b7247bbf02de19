"""Which batches are measured: batch sizes and prompt lengths, as far as the engine takes.

`paper` is DistServe's grid, `quick` a part of it that says the same of a small machine; a user may
write `1,2,4:16,64,256`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distserve.planner.fitting import FEWEST
from distserve.profile.errors import ProfileError

GRIDS = {
    "paper": (
        (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192),
        (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 284, 512, 768, 1024, 1536, 2020),
    ),
    "quick": ((1, 2, 4, 8, 16, 32), (16, 64, 128, 256, 512, 1024)),
}


@dataclass(frozen=True, order=True)
class Point:
    """A batch of equal prompts."""

    batch_size: int
    input_tokens: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.input_tokens


Visit = tuple[Point, int]
"""A point in a round over the grid, counted from 0."""


@dataclass(frozen=True)
class Bounds:
    """What one instance takes."""

    sequences: int
    step_tokens: int
    """Of one prefill step."""
    model_tokens: int
    """Of one request."""
    blocks: int
    block_tokens: int

    def prefills_at_once(self, point: Point) -> bool:
        """Whether one step takes the batch, so that its time is the batch's."""
        return point.tokens <= self.step_tokens

    def holds(self, point: Point, output_tokens: int) -> bool:
        whole = point.input_tokens + output_tokens
        blocks = -(-whole // self.block_tokens) + 1  # one to grow, so that nobody is preempted
        return (
            point.batch_size <= self.sequences
            and whole <= self.model_tokens
            and blocks * point.batch_size <= self.blocks
        )


def parse_grid(text: str) -> list[Point]:
    """Points of a named grid or of a user's, small ones first. Raises ProfileError."""
    batches, lengths = GRIDS[text] if text in GRIDS else _written(text)
    return sorted({Point(b, n) for b in batches for n in lengths}, key=lambda p: (p.tokens, p))


def within(points: Sequence[Point], bounds: Bounds, output_tokens: int) -> list[Point]:
    """Those that the engine holds. Raises ProfileError where none is left."""
    left = [point for point in points if bounds.holds(point, output_tokens)]
    if not left:
        raise ProfileError(
            "the engine holds no batch of this grid; raise --kv-cache or --max-num-seqs, or take "
            "a --grid of smaller batches"
        )
    return left


def refuse_too_few(
    points: Sequence[Point], bounds: Bounds, recorded: Mapping[Point, bool] | None = None
) -> None:
    """Raises ProfileError where no fit can be made of these and of what is recorded (whether with
    a prefill): found out now, not after they are measured."""
    known = dict(recorded or {})
    for point in points:
        known[point] = known.get(point, False) or bounds.prefills_at_once(point)
    prefills = sum(known.values())
    if len(known) < FEWEST:
        raise ProfileError(
            f"{len(known)} batches are too few to fit, {FEWEST} are needed; give a larger --grid, "
            "or raise --kv-cache or --max-num-seqs if the engine holds too few of it"
        )
    if prefills < FEWEST:
        raise ProfileError(
            f"of {len(known)} batches {prefills} are prefilled in one step, {FEWEST} are needed "
            "to fit; raise --max-num-batched-tokens, or take a --grid of smaller batches"
        )


def _written(text: str) -> tuple[list[int], list[int]]:
    batches, colon, lengths = text.partition(":")
    try:
        parsed = [[int(word) for word in part.split(",")] for part in (batches, lengths)]
    except ValueError:
        parsed = []
    if not colon or not parsed or any(number < 1 for part in parsed for number in part):
        raise ProfileError(
            f"--grid {text!r} is none: give {', '.join(GRIDS)} or BATCHES:LENGTHS such as "
            "1,2,4:16,64,256"
        )
    return parsed[0], parsed[1]
