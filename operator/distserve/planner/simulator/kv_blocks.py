"""An instance's KV memory in blocks: who holds how many of them.

Whole contexts are reserved when a request begins, so that nothing grows and nobody is preempted.
"""

from __future__ import annotations

from distserve.planner.errors import OversizedRequest
from distserve.planner.memory import BLOCK_TOKENS
from distserve.planner.simulator.steps import InstanceSpec


class KvBlocks:
    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.total = spec.kv_tokens // BLOCK_TOKENS
        self.reserved = 0
        self._held: dict[int, int] = {}

    @property
    def free(self) -> int:
        return self.total - self.reserved

    def reserve(self, request: int, tokens: int) -> None:
        blocks = blocks_for(tokens)
        self._held[request] = blocks
        self.reserved += blocks

    def release(self, request: int) -> None:
        self.reserved -= self._held.pop(request)

    def must_hold(self, tokens: int) -> None:
        """Raises OversizedRequest."""
        if blocks_for(tokens) > self.total:
            raise OversizedRequest(
                f"a request of {tokens} tokens exceeds the {self.spec.kv_tokens} tokens of KV "
                f"cache of TP {self.spec.tp} x PP {self.spec.pp}; leave it out or give the role "
                "more accelerators"
            )


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
