"""What a transport is to the reader: a path over which it reads parts of a peer's pools.

The reader drives on every transport: it asks for a part when its source said that it is ready, so
that aborting means to stop asking, and a peer never writes into memory that it does not own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from distserve.migrator.pieces import Box, SlotRun
from distserve.migrator.pools import Bytes
from distserve.wire.pool import TokenRange


@dataclass(frozen=True, slots=True)
class ReadJob:
    """One read of one pull: what, where it is there, where it goes here."""

    transfer: str
    generation: int
    box: Box
    tokens: TokenRange
    source_runs: Sequence[SlotRun]
    target: Bytes
    """Window of the pool here, of the box's layers and heads."""
    target_runs: Sequence[SlotRun]


class ReadPath(Protocol):
    """Reads return when the bytes are in place. After `close` no byte moves any more once the
    reads that were going on have ended, which it makes them do."""

    @property
    def name(self) -> str: ...

    async def read(self, job: ReadJob) -> int:
        """Bytes copied. Raises TransportError, PieceError. Must not be cancelled: the memory is
        written to until it returns."""
        ...

    async def probe(self, size: int) -> float:
        """Seconds that `size` bytes take from the peer to here. Raises TransportError."""
        ...

    def still_seconds(self) -> float:
        """For how long no byte of any read has moved; 0 where reads end by themselves."""
        ...

    def close(self) -> None: ...
