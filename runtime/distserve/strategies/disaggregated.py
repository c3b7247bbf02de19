"""DistServe: prefill instances batch prompts first come first served, decode instances pull KV.

Prefill side: `grant_whole`, with the blocks of prompts that nobody has fetched yet counted as held,
so that prefill memory is the queue. Decode side: `may_pull` says when to fetch the next request.
"""

from dataclasses import dataclass

from distserve.strategies.colocated import grant_whole

__all__ = ["WAITING_BLOCK_SHARE", "Pull", "grant_whole", "may_pull"]

WAITING_BLOCK_SHARE = 0.05
"""Share of the pool that requests without a seat in the batch may occupy ahead of their turn
(DistServe's waiting_block_prop_threshold)."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A decode instance at the moment when it may fetch the request at the head of its line."""

    blocks: int
    """That the request needs and the instance's prefix cache lacks."""
    sequences: int
    """Seats that the request needs."""
    free_blocks: int
    free_sequences: int
    """Seats that neither running nor already pulled requests have."""
    running: int
    """Sequences that decode: each may want a block soon."""
    waiting_blocks: int
    """Blocks of requests that were pulled and do not decode yet."""
    total_blocks: int


def may_pull(pull: Pull) -> bool:
    """Blocks must be free, with one to grow for each running sequence. Without a seat a request
    is pulled ahead only while those that wait occupy a small share of the pool."""
    if pull.blocks + pull.running > pull.free_blocks:
        return False
    if pull.sequences <= pull.free_sequences:
        return True
    return pull.waiting_blocks + pull.blocks <= WAITING_BLOCK_SHARE * pull.total_blocks
