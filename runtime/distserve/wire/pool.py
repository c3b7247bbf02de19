"""The KV pool's memory layout: engine and migrator map the same bytes, so both read it here.

One pool per rank, one buffer per pool::

    0            NONCE_BYTES (one page)
    |- nonce page -|- [layer, k|v, block, token, kv head, head dim] --------------|

The nonce page belongs to the migrator: a peer that claims to reach this memory proves it by
reading the random bytes written there. Everything after it belongs to the engine.
Token-major order keeps a token's heads adjacent, which gathers 2-7x faster on CPU than head-major.
"""

from typing import Final

from msgspec import Struct

NONCE_BYTES: Final = 4096
DTYPE_BYTES: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class PoolLayout(Struct, frozen=True, kw_only=True):
    """Shape of one rank's pool. Layer and head ranges say which part of the model it holds."""

    name: str = "main"
    layer_start: int
    layers: int
    head_start: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    blocks: int
    dtype: str
    """A key of DTYPE_BYTES."""

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """[layer, k|v, block, token, kv head, head dim]"""
        return (self.layers, 2, self.blocks, self.block_tokens, self.kv_heads, self.head_dim)

    @property
    def token_bytes(self) -> int:
        """One token of one of k and v in one layer: the smallest contiguous run."""
        return self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """One block over all layers, k and v."""
        return self.layers * 2 * self.block_tokens * self.token_bytes

    @property
    def pool_bytes(self) -> int:
        """Size of the buffer, nonce page included."""
        return NONCE_BYTES + self.blocks * self.block_bytes


class TokenRange(Struct, frozen=True, array_like=True):
    """Half-open range of token positions of one request."""

    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


class BlockSpan(Struct, frozen=True, array_like=True):
    """A token range and the blocks that hold it, in order.

    `tokens.start` is a multiple of the block size; only the last block may be partly filled.
    """

    tokens: TokenRange
    blocks: list[int]
