"""The engine's ledger of KV transfers: which blocks a migrator may read or write, and until when.

Called by the engine's thread only; the channel itself is `migrator_link`'s. Blocks of a transfer
have the transfer as an owner of their own, so they survive their request:

    offer:  OFFER .. RELEASED                    peers read; ends here also at the lease's deadline
    fetch:  EXPECT .. FETCH .. FETCHED | FAILED  the migrator writes

When the migrator is gone its fetches have failed. But only the channel is known to be gone: a peer
may still be reading what was offered, and the migrator still be writing what it fetched, so these
blocks wait until the lease has run out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distserve.engine.blocks import BlockManager, Owner
from distserve.engine.scheduler import fetch_owner, offer_owner
from distserve.wire.messages import (
    Abort,
    ChunkReady,
    Commit,
    CommitRecord,
    Drain,
    EngineMessage,
    Expect,
    Fetch,
    Offer,
)
from distserve.wire.pool import BlockSpan, TokenRange


@dataclass(slots=True)
class _Entry:
    reclaim_at: float | None = None
    """Set when the migrator that kept the lease is gone."""
    aborted: bool = False


class Transfers:
    def __init__(
        self, blocks: BlockManager, send: Callable[[EngineMessage], None], lease_seconds: float
    ) -> None:
        self._blocks = blocks
        self._send = send
        self._lease_seconds = lease_seconds
        self._offers: dict[str, _Entry] = {}
        self._expected: dict[str, _Entry] = {}
        self.address: str | None = None
        """Where peers reach this instance's migrator; None while it is not there."""

    def __len__(self) -> int:
        return len(self._offers) + len(self._expected)

    def __contains__(self, transfer: str) -> bool:
        return transfer in self._offers or transfer in self._expected

    @property
    def owners(self) -> Iterable[Owner]:
        """Owners of blocks that live because of a transfer."""
        yield from map(offer_owner, self._offers)
        yield from map(fetch_owner, self._expected)

    @property
    def next_due(self) -> float | None:
        return min((e.reclaim_at for _, e in self._entries if e.reclaim_at), default=None)

    @property
    def _entries(self) -> Iterable[tuple[str, _Entry]]:
        yield from self._offers.items()
        yield from self._expected.items()

    # ---- prefill side ----------------------------------------------------------------------------

    def offer(
        self,
        transfer: str,
        tokens: int,
        table: Sequence[int],
        timeout_ms: float,
        request_id: str = "",
    ) -> None:
        """These blocks will hold the KV of the first `tokens` tokens."""
        self._offers[transfer] = _Entry()
        self._blocks.share(offer_owner(transfer), table)
        self._send(
            Offer(
                transfer=transfer,
                spans=[BlockSpan(TokenRange(0, tokens), list(table))],
                timeout_ms=timeout_ms,
                lease_ms=self._lease_seconds * 1000,
                request_id=request_id,
            )
        )

    def chunk_ready(self, transfer: str, start: int, stop: int) -> None:
        if start < stop and transfer in self._offers:
            self._send(ChunkReady(transfer, TokenRange(start, stop)))

    def commit(self, transfer: str, record: CommitRecord) -> None:
        if transfer in self._offers:
            self._send(Commit(transfer, record))

    # ---- decode side -----------------------------------------------------------------------------

    def expect(self, transfer: str, peer: str, timeout_ms: float, request_id: str = "") -> None:
        self._expected[transfer] = _Entry()
        self._send(
            Expect(transfer=transfer, peer=peer, timeout_ms=timeout_ms, request_id=request_id)
        )

    def fetch(self, transfer: str, have_tokens: int, tokens: int) -> None:
        """Fill the fetch owner's blocks with what the prefix cache lacks."""
        table = self._blocks.table(fetch_owner(transfer))
        lacking = table[have_tokens // self._blocks.block_tokens :]
        spans = [BlockSpan(TokenRange(have_tokens, tokens), list(lacking))] if lacking else []
        self._send(Fetch(transfer=transfer, spans=spans))

    # ---- both ------------------------------------------------------------------------------------

    def abort(self, transfer: str) -> None:
        """Nobody here wants it. Its blocks stay held until the migrator has answered."""
        entry = self._offers.get(transfer) or self._expected.get(transfer)
        if entry is not None and not entry.aborted and self.address is not None:
            entry.aborted = True
            self._send(Abort(transfer))

    def over(self, transfer: str) -> bool:
        """The migrator has answered: nobody else touches the blocks. False when it is unknown,
        which is harmless: an answer to what this process has given up."""
        known = transfer in self
        if self._offers.pop(transfer, None):
            self._blocks.release(offer_owner(transfer))
        if self._expected.pop(transfer, None):
            self._blocks.release(fetch_owner(transfer))
        return known

    def drain(self) -> None:
        if self.address is not None:
            self._send(Drain())

    def migrator_gone(self, now: float) -> list[str]:
        """Returns the fetches that failed by it."""
        self.address = None
        failed = [t for t, expected in self._expected.items() if expected.reclaim_at is None]
        for transfer in failed:
            if not self._blocks.table(fetch_owner(transfer)):
                self.over(transfer)
        for _, entry in self._entries:
            entry.reclaim_at = entry.reclaim_at or now + self._lease_seconds
        return failed

    def reclaim(self, now: float) -> list[str]:
        """Take back what a migrator that is gone was to read or write, once its lease has run
        out."""
        due = [t for t, e in self._entries if e.reclaim_at and e.reclaim_at <= now]
        for transfer in due:
            self.over(transfer)
        return due
