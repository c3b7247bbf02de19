"""Hands what the engine's thread delivers to the streams that clients hold. Event loop only."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from distserve.engine.outbox import Output
from distserve.wire.dialect import (
    Declined,
    End,
    InstanceState,
    KvEvent,
    LegError,
    LegEvent,
)
from distserve.wire.messages import EngineMessage

STATE_REPEAT_SECONDS = 1.0
KV_EVENTS_BEHIND = 1024
"""A reader of cache events that is further behind is cut off; it connects again and starts anew."""

Events = asyncio.Queue[list[LegEvent]]


def closes(event: LegEvent) -> bool:
    """Whether it is the last event of its leg."""
    return isinstance(event, End | LegError | Declined)


class Hub:
    def __init__(
        self,
        epoch: int,
        send: Callable[[EngineMessage], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epoch = epoch
        self._send = send
        self._clock = clock
        self._legs: dict[str, Events] = {}
        self._state: InstanceState | None = None
        self._state_at = 0.0
        self._busy_until = clock()
        self._state_readers: set[asyncio.Event] = set()
        self._hashes: dict[str, None] = {}
        self._cache_sequence = 0
        self._cache_readers: set[asyncio.Queue[KvEvent | None]] = set()
        self._closed = False

    @property
    def state(self) -> InstanceState | None:
        return self._state

    @property
    def idle_seconds(self) -> float:
        """Since the last leg or offer ended, or since the start; 0 while there is any."""
        return 0.0 if self._is_busy else self._clock() - self._busy_until

    @property
    def _is_busy(self) -> bool:
        return bool(self._legs) or (self._state is not None and bool(self._state.requests))

    def receive(self, output: Output) -> None:
        """One step's output."""
        for message in output.messages:
            self._send(message)
        events: dict[str, list[LegEvent]] = {}
        for leg, event in output.events:
            events.setdefault(leg, []).append(event)
        for leg, batch in events.items():
            if stream := self._legs.get(leg):
                stream.put_nowait(batch)
        if output.cache:
            self._tell_cache(
                [key.hex() for key in output.cache.stored],
                [key.hex() for key in output.cache.removed],
            )
        if output.state:
            if self._is_busy:
                self._busy_until = self._clock()
            self._state, self._state_at = output.state, self._clock()
            self._wake()

    def close(self) -> None:
        """End the endless streams. Legs end by the engine's word."""
        self._closed = True
        self._wake()
        for reader in self._cache_readers:
            _put_or_cut(reader, None)

    # ---- legs ------------------------------------------------------------------------------------

    def open_leg(self, leg: str) -> Events | None:
        """Events of a new leg in batches; None when one of this id is open."""
        if leg in self._legs:
            return None
        self._legs[leg] = asyncio.Queue()
        return self._legs[leg]

    def close_leg(self, leg: str) -> None:
        if self._legs.pop(leg, None) is not None:
            self._busy_until = self._clock()

    # ---- state -----------------------------------------------------------------------------------

    async def states(self) -> AsyncIterator[InstanceState]:
        """The newest state on each change, and at least once a second."""
        changed = asyncio.Event()
        self._state_readers.add(changed)
        try:
            while not self._closed:
                changed.clear()
                if self._state is not None:
                    yield aged(self._state, (self._clock() - self._state_at) * 1000)
                try:
                    await asyncio.wait_for(changed.wait(), STATE_REPEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            self._state_readers.discard(changed)

    def _wake(self) -> None:
        for reader in self._state_readers:
            reader.set()

    # ---- prefix cache ----------------------------------------------------------------------------

    async def cache_events(self) -> AsyncIterator[KvEvent]:
        """All hashes first, then what changes."""
        reader: asyncio.Queue[KvEvent | None] = asyncio.Queue(KV_EVENTS_BEHIND)
        self._cache_readers.add(reader)
        try:
            yield KvEvent(
                epoch=self._epoch,
                sequence=self._cache_sequence,
                reset=True,
                stored=list(self._hashes),
            )
            while not self._closed and (event := await reader.get()) is not None:
                yield event
        finally:
            self._cache_readers.discard(reader)

    def _tell_cache(self, stored: list[str], removed: list[str]) -> None:
        self._hashes.update(dict.fromkeys(stored))
        for key in removed:
            self._hashes.pop(key, None)
        self._cache_sequence += 1
        event = KvEvent(
            epoch=self._epoch, sequence=self._cache_sequence, stored=stored, removed=removed
        )
        for reader in self._cache_readers:
            _put_or_cut(reader, event)


def aged(state: InstanceState, by_ms: float) -> InstanceState:
    """The state as it is `by_ms` after it was made: durations go on meanwhile."""
    return replace(
        state,
        step_rest_ms=max(0.0, state.step_rest_ms - by_ms),
        requests=[replace(r, age_ms=r.age_ms + by_ms) for r in state.requests],
    )


def _put_or_cut(reader: "asyncio.Queue[KvEvent | None]", event: KvEvent | None) -> None:
    if reader.full():
        while not reader.empty():
            reader.get_nowait()
        event = None
    reader.put_nowait(event)
