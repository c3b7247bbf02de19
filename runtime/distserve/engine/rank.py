"""Which part of the model one process holds; loading, pool and migration handshake read it here.

Tensor ranks of a stage are adjacent::

    index    0        1        2        3        (tensor=2, pipeline=2)
    stage    0        0        1        1        -> range of layers
    slice    0        1        0        1        -> range of heads

Fewer KV heads than tensor ranks: a KV head is kept by several neighbouring ranks.
"""

from dataclasses import dataclass

from distserve.engine.errors import ParallelismError


@dataclass(frozen=True, slots=True)
class Range:
    """Half-open range of layers or heads."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Rank:
    """Place of one process among the `tensor * pipeline` ranks of its instance."""

    index: int = 0
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.pipeline < 1:
            raise ParallelismError("tensor and pipeline sizes are at least 1")
        if not 0 <= self.index < self.tensor * self.pipeline:
            raise ParallelismError(
                f"rank {self.index} is outside of tensor {self.tensor} x pipeline {self.pipeline}"
            )

    @property
    def stage(self) -> int:
        return self.index // self.tensor

    @property
    def slice(self) -> int:
        return self.index % self.tensor

    def layers(self, layers: int) -> Range:
        """Layers of this stage; the first stages hold one more when they do not divide evenly.

        Raises ParallelismError when a stage would be empty.
        """
        if layers < self.pipeline:
            raise ParallelismError(
                f"{layers} layers cannot fill {self.pipeline} pipeline stages: lower pipeline"
            )
        base, extra = divmod(layers, self.pipeline)
        start = self.stage * base + min(self.stage, extra)
        return Range(start, start + base + (self.stage < extra))

    def heads(self, heads: int) -> Range:
        """Query heads of this rank. Raises ParallelismError when they do not divide evenly."""
        if heads % self.tensor:
            raise ParallelismError(
                f"{heads} attention heads do not divide by tensor {self.tensor}: choose a divisor"
            )
        size = heads // self.tensor
        return Range(self.slice * size, (self.slice + 1) * size)

    def kv_heads(self, kv_heads: int) -> Range:
        """KV heads of this rank, one kept by several ranks where there are fewer than ranks."""
        if kv_heads % self.tensor and self.tensor % kv_heads:
            raise ParallelismError(
                f"{kv_heads} KV heads and tensor {self.tensor} do not divide: choose a divisor"
            )
        if kv_heads >= self.tensor:
            return self.heads(kv_heads)
        head = self.slice * kv_heads // self.tensor
        return Range(head, head + 1)

    def require_single(self) -> None:
        """Raise ParallelismError unless this is the only rank: the runner has no collectives."""
        if self.tensor * self.pipeline > 1:
            raise ParallelismError(
                f"tensor {self.tensor} x pipeline {self.pipeline} is not supported: "
                "set parallelism tensor: 1, pipeline: 1"
            )
