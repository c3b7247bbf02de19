"""KV pools as this process sees them: mapped bytes, addressed by slot, layer and head."""

import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distserve.migrator.errors import PieceError
from distserve.migrator.pieces import Box, SlotCopy, SlotRun
from distserve.wire.pool import DTYPE_BYTES, NONCE_BYTES, PoolLayout

Bytes = NDArray[np.uint8]
NONCE_SIZE: Final = 32


class MappedPool:
    """A pool's memory. It stays mapped as long as an array taken from it lives.

    `array` is [layer, k|v, slot, token byte]: token-major blocks make slot = block * block_tokens
    + offset one axis, so adjacent blocks are adjacent slots, and heads are columns.
    """

    def __init__(self, fd: int, layout: PoolLayout, *, writable: bool) -> None:
        """Raises PieceError when the memory is smaller than the layout, OSError."""
        if layout.dtype not in DTYPE_BYTES or min(layout.shape) < 1:
            raise PieceError(f"a pool layout that cannot be: {layout}")
        size = os.fstat(fd).st_size
        if size < layout.pool_bytes:
            # Read beyond the end of a mapping is SIGBUS: the process, not the transfer, would end.
            raise PieceError(f"a pool of {size} bytes, its layout says {layout.pool_bytes}")
        self.layout = layout
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(fd, layout.pool_bytes, mmap.MAP_SHARED, access)
        self._page: Bytes = np.frombuffer(memory, np.uint8, NONCE_SIZE)
        slots = layout.blocks * layout.block_tokens
        self.array: Bytes = np.frombuffer(memory, np.uint8, offset=NONCE_BYTES).reshape(
            layout.layers, 2, slots, layout.token_bytes
        )

    @property
    def nonce(self) -> bytes:
        return self._page.tobytes()

    def renew_nonce(self) -> bytes:
        """Write new random bytes where a peer has to read them."""
        self._page[:] = np.frombuffer(secrets.token_bytes(NONCE_SIZE), np.uint8)
        return self.nonce

    def window(self, box: Box) -> Bytes:
        """[layer, k|v, slot, byte] of a box. Raises PieceError when the pool does not hold it."""
        layout = self.layout
        layer, head = box.layer_start - layout.layer_start, box.head_start - layout.head_start
        layers, heads = box.layer_stop - box.layer_start, box.head_stop - box.head_start
        fits = 0 <= layer < layer + layers <= layout.layers
        if not fits or not 0 <= head < head + heads <= layout.kv_heads:
            raise PieceError(f"{box} is not in the pool of {layout}")
        width = layout.head_dim * DTYPE_BYTES[layout.dtype]
        return self.array[layer : layer + layers, :, :, head * width : (head + heads) * width]


def copy(source: Bytes, target: Bytes, copies: Sequence[SlotCopy]) -> None:
    """Copy slots between two windows of equal shape but for the slots. Releases the GIL."""
    for c in copies:
        target[:, :, c.target : c.target + c.slots] = source[:, :, c.source : c.source + c.slots]


def rows(window: Bytes, runs: Sequence[SlotRun]) -> Iterator[Bytes]:
    """[slot, byte] arrays of a window in the wire's order: layer, k then v, token, head.

    They are contiguous memory when the window has all heads of its pool.
    """
    for layer in window:
        for kv in layer:
            for run in runs:
                yield kv[run.start : run.start + run.slots]
