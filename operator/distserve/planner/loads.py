"""What clients saw of a deployment under load, and what passed there at each of its moments.

A load is requests that several clients send, each one after another, and as many that come whenever
they come. Their instants tell who decoded and what was prefilled at any moment; all times are
milliseconds since the load's begin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from distserve.planner.errors import InvalidProfile
from distserve.planner.records import Origin, origin_of, rows_of
from distserve.strategies.time_model import TimeModel

_SAME_MS = 0.2
"""A step ends for its requests one after another."""
_JITTER_MS = 5.0
"""Of ways. What overlaps by more are pieces of steps, or of a prompt that took several."""
WINDOW_STEPS = 8
"""Of a stream at a time: tokens reach a client a little sooner or later than their step ends."""


class LoadRequest(msgspec.Struct, frozen=True):
    """One request of a load, answered to its end.

    Of what the server tells only distances are known: it is put on the client's clock as if the
    request had come when it was sent, and so is early by the way there.
    """

    input_tokens: int
    sent_ms: float
    prefill_ms: float
    """When its prefill began, as the server tells; `prefilled_ms` when it ended."""
    prefilled_ms: float
    ready_ms: float | None
    """When its KV was where it decodes; None where it was prefilled there."""
    token_ms: tuple[float, ...]
    """As they came to the client."""

    @property
    def last_ms(self) -> float:
        return self.token_ms[-1]


def encoded(requests: Sequence[LoadRequest]) -> str:
    return msgspec.json.encode(requests).decode()


def decoded(text: str) -> tuple[LoadRequest, ...]:
    """Raises InvalidProfile."""
    try:
        return msgspec.json.decode(text, type=tuple[LoadRequest, ...])
    except msgspec.DecodeError as error:
        raise InvalidProfile(f"no requests of a load: {error}; measure it again") from error


class Prefill(NamedTuple):
    """One step that prefilled these requests' prompts."""

    begun_ms: float
    ended_ms: float
    requests: Sequence[LoadRequest]

    @property
    def tokens(self) -> int:
        return sum(request.input_tokens for request in self.requests)

    @property
    def squared_tokens(self) -> int:
        return sum(request.input_tokens**2 for request in self.requests)


class Cover:
    """Moments in which something went on: a union of intervals."""

    def __init__(self, intervals: Iterable[tuple[float, float]]) -> None:
        self._begins: list[float] = []
        self._ends: list[float] = []
        self._before: list[float] = [0.0]
        for begin, end in sorted(intervals):
            if self._ends and begin <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._begins.append(begin)
                self._ends.append(end)
        for begin, end in zip(self._begins, self._ends, strict=True):
            self._before.append(self._before[-1] + end - begin)

    def until(self, at: float) -> float:
        """Their time up to a moment."""
        begun = bisect_right(self._begins, at)
        return self._before[begun] - (max(0.0, self._ends[begun - 1] - at) if begun else 0.0)

    def within(self, begin: float, end: float) -> float:
        return self.until(end) - self.until(begin)

    def share(self, begin: float, end: float) -> float:
        return self.within(begin, end) / (end - begin) if end > begin else 0.0


class Window(NamedTuple):
    """A few steps of one stream, and what passed meanwhile."""

    middle_ms: float
    """Since the load's begin."""
    ms: float
    steps_ms: float
    """What the engine alone takes for these steps."""
    steps: int
    tokens: int
    """Of all streams."""
    padding_tokens: int
    """By which contexts were shorter than the longest of their step."""
    came: int
    """Requests that were sent, were `prefilled`, `joined` those who decode, and `ended`: what one
    costs those who decode beside its tokens, it costs at these moments."""
    prefilled: int
    joined: int
    ended: int
    prefilling_ms: float
    """In which something was prefilled."""
    prefills: Sequence[Prefill]
    """That ended in it."""

    @property
    def streams(self) -> float:
        """That decode, in the mean."""
        return self.tokens / self.steps

    @property
    def between_ms(self) -> float:
        """Without prefills, where these pass between the steps."""
        return self.ms - self.prefilling_ms

    @property
    def once(self) -> float:
        """Its weight: each stream of a step tells the same of it, and it counts once."""
        return self.steps / self.tokens

    @property
    def tells(self) -> bool:
        """Of what is next to nothing beside such prefills nothing can be said."""
        return self.between_ms > self.steps_ms / 2


@dataclass(frozen=True)
class LoadRecord:
    """So many clients, and their requests in order of sending."""

    tp: int
    clients: int
    requests: Sequence[LoadRequest]
    origin: Origin = field(default_factory=Origin)

    @cached_property
    def migrated(self) -> bool:
        return any(request.ready_ms is not None for request in self.requests)

    @cached_property
    def prefills(self) -> list[Prefill]:
        """Requests of one step are told the same interval, but for the way of the news."""
        steps: list[list[LoadRequest]] = []
        for request in sorted(self.requests, key=lambda r: r.prefilled_ms):
            if steps and _same_step(steps[-1][0], request):
                steps[-1].append(request)
            else:
                steps.append([request])
        return [Prefill(some[0].prefill_ms, some[0].prefilled_ms, some) for some in steps]

    @cached_property
    def prefilling(self) -> Cover:
        """On the clock of the tokens: a prefill ends when its first token comes to the client.
        Where two followed each other and seem to overlap, news of the first was late: then it was
        as much earlier."""
        found: list[tuple[float, float]] = []
        later: Prefill | None = None
        for prefill in sorted(self.prefills, key=_told_ms, reverse=True):
            end = _told_ms(prefill)
            if later is not None and prefill.ended_ms - later.begun_ms < _JITTER_MS:
                end = min(end, found[-1][0])
            found.append((end - (prefill.ended_ms - prefill.begun_ms), end))
            later = prefill
        return Cover(found)

    @cached_property
    def decoding(self) -> Cover:
        """While somebody's tokens were made one by one."""
        return Cover(
            (r.token_ms[0] if r.ready_ms is None else r.ready_ms, r.last_ms)
            for r in self.requests
            if len(r.token_ms) > 1
        )

    @cached_property
    def steps(self) -> list[tuple[float, float]]:
        """Beginnings and ends of decode steps as each stream has them, by their ends."""
        return sorted(
            (step for r in self.requests for step in pairwise(r.token_ms[1:])), key=lambda s: s[1]
        )

    def step_ms(self, begin: float, end: float) -> float:
        """Of a decode step that passed then, in the mean, without prefills; 0 where none did."""
        first = bisect_right(self.steps, begin, key=lambda step: step[1])
        last = bisect_left(self.steps, end + self._longest_ms, key=lambda step: step[1])
        found = [self.own_ms(*step) for step in self.steps[first:last] if step[0] < end]
        return sum(found) / len(found) if found else 0.0

    @cached_property
    def _longest_ms(self) -> float:
        return max((end - begin for begin, end in self.steps), default=0.0)

    def own_ms(self, begin: float, end: float) -> float:
        """Of a few steps, without prefills that passed between them on the same instance."""
        return end - begin - (0.0 if self.migrated else self.prefilling.within(begin, end))

    def streams(self, at: float) -> int:
        """That decode at a moment."""
        return sum(len(r.token_ms) > 1 and r.token_ms[0] <= at < r.last_ms for r in self.requests)

    def nearest_ms(self, at: float) -> float:
        """From the nearest end of a decode step, as a stream has it."""
        after = bisect_left(self.steps, at, key=lambda step: step[1])
        return min((abs(at - end) for _, end in self.steps[max(0, after - 1) : after + 1]))

    def windows(self, times: TimeModel) -> list[Window]:
        """Of each stream, one after another. A stream that is too short has none."""
        several = [r for r in self.requests if len(r.token_ms) > 1]
        moments = [
            sorted(r.sent_ms for r in self.requests),
            sorted(r.token_ms[0] for r in self.requests),
            sorted(r.token_ms[1] for r in several),
            sorted(r.last_ms for r in several),
        ]
        steps = [prefill.ended_ms for prefill in self.prefills]
        found: list[Window] = []
        for stream, batches in self._batches():
            for start in range(0, len(stream) - WINDOW_STEPS, WINDOW_STEPS):
                begin, end = stream[start], stream[start + WINDOW_STEPS]
                if end <= begin:
                    continue
                part = batches[start : start + WINDOW_STEPS]
                # What comes with the last of these steps may come a little after it.
                half = self.own_ms(begin, end) / WINDOW_STEPS / 2
                came, prefilled, joined, ended = (
                    bisect_right(of, end + half) - bisect_right(of, begin + half) for of in moments
                )
                between = slice(bisect_right(steps, begin), bisect_right(steps, end))
                found.append(
                    Window(
                        middle_ms=(begin + end) / 2,
                        ms=end - begin,
                        steps_ms=sum(times.decode_ms(size, context) for size, context, _ in part),
                        steps=WINDOW_STEPS,
                        tokens=sum(size for size, _, _ in part),
                        padding_tokens=sum(padding for _, _, padding in part),
                        came=came,
                        prefilled=prefilled,
                        joined=joined,
                        ended=ended,
                        prefilling_ms=self.prefilling.within(begin, end),
                        prefills=self.prefills[between],
                    )
                )
        return found

    def _batches(self) -> list[tuple[Sequence[float], Any]]:
        """Each stream's decoded tokens, and of each step between two of them the batch: its
        requests, their contexts' sum and padding."""
        import numpy

        streams = [r for r in self.requests if len(r.token_ms) > 2]
        begins = numpy.array([t for r in streams for t in r.token_ms[1:-1]])
        ends = numpy.array([t for r in streams for t in r.token_ms[2:]])
        own = numpy.array(
            [self.own_ms(begin, end) for begin, end in zip(begins, ends, strict=True)]
        )
        # Tokens of one step reach the client one after another: it lasts until half of the next.
        middles, late = ends - own / 2, ends + own / 2
        sizes, contexts, longest = (numpy.zeros(len(ends), dtype=int) for _ in range(3))
        for request in self.requests:
            if len(request.token_ms) < 2:
                continue
            tokens = numpy.array(request.token_ms[1:])
            at = numpy.flatnonzero((tokens[0] <= late) & (tokens[-1] > middles))
            context = request.input_tokens + 1 + numpy.searchsorted(tokens, middles[at])
            sizes[at] += 1
            contexts[at] += context
            longest[at] = numpy.maximum(longest[at], context)
        rows = numpy.stack([sizes, contexts, sizes * longest - contexts], axis=1).tolist()
        found: list[tuple[Sequence[float], Any]] = []
        begun = 0
        for request in streams:
            steps = len(request.token_ms) - 2
            found.append((request.token_ms[1:], rows[begun : begun + steps]))
            begun += steps
        return found


def read_loads(path: Path | str, origins: Collection[Origin]) -> list[LoadRecord]:
    """Of these; others' may be of a release that told other things. Empty where no deployment was
    measured. Raises InvalidProfile."""
    return [
        LoadRecord(int(row["tp_world_size"]), int(row["clients"]), decoded(row["requests"]), origin)
        for row in rows_of(Path(path), "loads", optional=True)
        if (origin := origin_of(row)) in origins
    ]


def _told_ms(prefill: Prefill) -> float:
    """When its end was told to a client, at the earliest."""
    return prefill.ended_ms + min(r.token_ms[0] - r.prefilled_ms for r in prefill.requests)


def _same_step(one: LoadRequest, other: LoadRequest) -> bool:
    """They overlap: for most of their time, or for any where they took as long as each other, and
    only their ways differ."""
    both = min(one.prefilled_ms, other.prefilled_ms) - max(one.prefill_ms, other.prefill_ms)
    took, other_took = one.prefilled_ms - one.prefill_ms, other.prefilled_ms - other.prefill_ms
    return both > max(took, other_took) / 2 or (both > 0 and abs(took - other_took) < _SAME_MS)
