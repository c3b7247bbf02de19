"""The memory of the KV cache: created by the engine's rank, mapped by its migrator through the fd.

It is anonymous shared memory (memfd), so nothing is left behind when both processes are gone.
Whoever owns a block, the scheduler decides; here are only bytes and their view as a tensor.
"""

import contextlib
import fcntl
import mmap
import os
from dataclasses import dataclass

import torch

from distserve.engine.errors import PoolMemoryError
from distserve.engine.memory import available_bytes
from distserve.engine.rank import Rank
from distserve.wire.pool import NONCE_BYTES, PoolLayout

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Its size is for good: whoever maps it can never be led beyond its end (SIGBUS)."""
_SCRATCH_BYTES = 4 << 20
"""More falls out of the CPU's cache before it is attended to."""
_RESERVE_BYTES = 64 << 20
"""Stays free beside the pool and a step's activations: for requests, messages and logits."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token of the whole model leaves in a KV cache."""

    layers: int
    kv_heads: int
    head_dim: int


def layout_for(
    kv: KvShape, rank: Rank, *, dtype: str, block_tokens: int, budget_bytes: int
) -> PoolLayout:
    """The layout of `rank`'s pool with as many blocks as `budget_bytes` hold.

    Raises PoolMemoryError when not even one block fits, ParallelismError as Rank's ranges do.
    """
    layers, heads = rank.layers(kv.layers), rank.kv_heads(kv.kv_heads)

    def layout(blocks: int) -> PoolLayout:
        return PoolLayout(
            layer_start=layers.start,
            layers=layers.size,
            head_start=heads.start,
            kv_heads=heads.size,
            head_dim=kv.head_dim,
            block_tokens=block_tokens,
            blocks=blocks,
            dtype=dtype,
        )

    block_bytes = layout(0).block_bytes
    blocks = (budget_bytes - NONCE_BYTES) // block_bytes
    if blocks < 1:
        raise PoolMemoryError(
            f"the KV cache of {budget_bytes} bytes holds no block of {block_bytes} bytes: "
            "raise kvCache or lower blockTokens"
        )
    return layout(blocks)


class KvPool:
    """One rank's pool. `tensor` has the layout's shape; it is zero until it is written."""

    def __init__(self, layout: PoolLayout, fd: int, memory: mmap.mmap, tensor: torch.Tensor):
        self.layout = layout
        self.fd = fd
        self.tensor = tensor
        self.scratch = tensor.new_empty(_SCRATCH_BYTES // tensor.itemsize)
        """Of whoever computes a step: where it gathers what it reads."""
        self._memory = memory

    @classmethod
    def create(cls, layout: PoolLayout, device: str = "cpu", step_bytes: int = 0) -> "KvPool":
        """Allocate all pages now: too little memory must show at start-up and not as SIGBUS.

        `step_bytes` must be free beside it: the longest step's, which otherwise is the one that
        is killed, when requests come. Raises PoolMemoryError.
        """
        if device != "cpu":
            raise PoolMemoryError(f"no KV pool on device {device!r}: only cpu is supported")
        _require_memory(layout.pool_bytes, step_bytes, available_bytes())
        fd = os.memfd_create("distserve-kv-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, layout.pool_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(fd, layout.pool_bytes)
        except OSError as error:
            os.close(fd)
            raise PoolMemoryError(
                f"a KV cache of {_mebibytes(layout.pool_bytes)} cannot be allocated "
                f"({error.strerror}): lower kvCache or give the engine more memory"
            ) from error
        flat = torch.frombuffer(memory, dtype=TORCH_DTYPES[layout.dtype], offset=NONCE_BYTES)
        return cls(layout, fd, memory, flat.view(layout.shape))

    def layer(self, layer: int) -> torch.Tensor:
        """[k|v, block, token, kv head, head dim] of the model's layer `layer`; a view."""
        return self.tensor[layer - self.layout.layer_start]

    def keys(self, layer: int) -> torch.Tensor:
        """[block, token, kv head, head dim] of the model's layer `layer`; a view."""
        return self.layer(layer)[0]

    def values(self, layer: int) -> torch.Tensor:
        """As `keys`."""
        return self.layer(layer)[1]

    def close(self) -> None:
        """Let go of fd and mapping; the memory is free when the migrator has let go, too.
        Tensors taken from the pool stay valid: the mapping ends with the last of them."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.tensor = torch.empty(0)
        with contextlib.suppress(BufferError):
            self._memory.close()


def _require_memory(pool_bytes: int, step_bytes: int, free_bytes: int) -> None:
    beside = step_bytes + _RESERVE_BYTES
    if pool_bytes + beside > free_bytes:
        most = max(0, free_bytes - beside) >> 20
        cure = f"lower kvCache to {most}Mi or less" if most else "give the engine more memory"
        raise PoolMemoryError(
            f"a KV cache of {_mebibytes(pool_bytes)} and a step's {_mebibytes(beside)} do not fit "
            f"into the {_mebibytes(free_bytes)} of available memory: {cure}, or lower "
            "maxNumBatchedTokens"
        )


def _mebibytes(amount_bytes: int) -> str:
    return f"{amount_bytes / (1 << 20):.0f} MiB"
