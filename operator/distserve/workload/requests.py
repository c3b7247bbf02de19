"""The nouns of a workload: a set of request lengths, and a trace of requests with arrival times.

Lengths are tokens, times are milliseconds from the start of the run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_TOKENS = 10_000_000
"""Beyond every model's context: a length above it is a mistake, and would fill the memory."""
PREFIX_BLOCK_TOKENS = 512
"""Of a prompt, which have one id, as in Mooncake's traces; the last block may be shorter."""


class WorkloadError(ValueError):
    """A request set or an arrival process that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Objectives:
    """What one request asks for itself, in milliseconds; None where it asks for nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def __post_init__(self) -> None:
        for value in (self.ttft_ms, self.tpot_ms):
            if value is not None and not 0 < value < float("inf"):
                raise WorkloadError(f"an objective must be above 0 ms, got {value}; correct it")


NO_OBJECTIVES = Objectives()


@dataclass(frozen=True)
class RequestSet:
    """Lengths to draw requests from; `arrival_ms` is kept where the source recorded it."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    arrival_ms: Sequence[float] | None = None
    name: str = "requests"
    prompts: Sequence[str] | None = None
    """The prompts' texts, where the source has them; the lengths stay what counts."""
    objectives: Sequence[Objectives] | None = None
    """Of each request, where the source has them: classes of users that are promised different
    things."""
    prefix_blocks: Sequence[Sequence[int]] | None = None
    """The ids of each prompt's blocks, where the source has them: prompts are alike as far as these
    are. Empty where a prompt is like no other."""

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise WorkloadError(f"{self.name} holds no requests; give a file with at least one row")
        for row, (prompt, output) in enumerate(
            zip(self.prompt_tokens, self.output_tokens, strict=True)
        ):
            if not (1 <= prompt <= LONGEST_TOKENS and 1 <= output <= LONGEST_TOKENS):
                raise WorkloadError(
                    f"{self.name}, request {row}: lengths must be from 1 to {LONGEST_TOKENS} "
                    f"tokens, got prompt {prompt} and output {output}; drop or correct that row"
                )

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def sample(self, count: int, seed: int) -> RequestSet:
        """Draw `count` requests without replacement, in the order of drawing.

        The draw is `random.sample` of a generator seeded with `seed`, as simdistserve does it, so
        the same file and seed give the same requests in both.
        """
        if count < 1:
            raise WorkloadError(f"cannot draw {count} requests; ask for at least 1")
        if count > len(self):
            raise WorkloadError(
                f"cannot draw {count} requests from the {len(self)} of {self.name}; "
                f"ask for at most {len(self)} or give a larger file"
            )
        return self._rows(random.Random(seed).sample(range(len(self)), count))

    def resample(self, count: int, seed: int) -> RequestSet:
        """Draw `count` requests with replacement: any number from any set."""
        return self._rows(random.Random(seed).choices(range(len(self)), k=count))

    def first(self, count: int) -> RequestSet:
        """The first `count` requests, with their times."""
        if not 1 <= count <= len(self):
            raise WorkloadError(
                f"{self.name} has {len(self)} requests, {count} were asked for; "
                "ask for as many as it has or give a longer trace"
            )
        return self._rows(range(count), self.arrival_ms)

    def within(self, limit_tokens: int) -> RequestSet:
        """The requests whose prompt and output together are at most this long; servers refuse the
        others, so that they are no load. Raises WorkloadError where none is left."""
        whole = map(sum, zip(self.prompt_tokens, self.output_tokens, strict=True))
        rows = [row for row, tokens in enumerate(whole) if tokens <= limit_tokens]
        if len(rows) == len(self):
            return self
        if not rows:
            raise WorkloadError(
                f"no request of {self.name} fits {limit_tokens} tokens; "
                "give shorter ones or raise maxModelLen"
            )
        return self._rows(rows, self.arrival_ms)

    def _rows(self, rows: Sequence[int], times: Sequence[float] | None = None) -> RequestSet:
        return RequestSet(
            [self.prompt_tokens[row] for row in rows],
            [self.output_tokens[row] for row in rows],
            None if times is None else [times[row] for row in rows],
            self.name,
            None if self.prompts is None else [self.prompts[row] for row in rows],
            None if self.objectives is None else [self.objectives[row] for row in rows],
            None if self.prefix_blocks is None else [self.prefix_blocks[row] for row in rows],
        )

    def recorded(self) -> Trace:
        """The set in its own order at its own arrival times, the first request at 0."""
        if self.arrival_ms is None:
            raise WorkloadError(
                f"{self.name} records no arrival times; add a column arrival_ms or choose "
                "another arrival process"
            )
        first = self.arrival_ms[0]
        return Trace(
            self.prompt_tokens, self.output_tokens, [time - first for time in self.arrival_ms]
        )


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival, each with its instant."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    arrival_ms: Sequence[float]

    def __post_init__(self) -> None:
        previous = 0.0
        for row, time in enumerate(self.arrival_ms):
            if not previous <= time < float("inf"):
                raise WorkloadError(
                    f"request {row} arrives at {time:g} ms, which is not after the request ahead "
                    f"of it ({previous:g} ms); sort the trace by arrival time"
                )
            previous = time

    def __len__(self) -> int:
        return len(self.prompt_tokens)
