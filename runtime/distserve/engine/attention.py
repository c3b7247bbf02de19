"""Paged attention over the KV pool, called by transformers' model bodies in every layer.

All that the layers of one step have in common is prepared once, in `AttentionStep`, and travels
through the body's keyword arguments; nothing is kept between steps and nothing is global.
Rows of a step: first one for each sequence that decodes, then the prefill spans one by one::

    rows     0 .. decodes | span 0 ............ | span 1 ....
    reads    whole context| prefix   + itself   | prefix + itself
                            (pool)     (causal)

A prefill span attends to its prefix without any mask and to itself causally; the two are merged by
their log-sum-exp. So causality comes from positions, and no mask of span x context is ever made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distserve.engine.kernels import attend, attend_batch, merge
from distserve.engine.pool import KvPool

ATTENTION_NAME = "distserve_paged"
_PADDING_BYTES = 256 << 10
"""Of a layer, that a batch of decoding rows may gather in vain: about what another call costs."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a sequence's KV is: `tokens` of them from the start of its blocks."""

    tokens: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class NewSpan:
    """New tokens of one sequence: `start` of them are in the pool already."""

    start: int
    tokens: int
    blocks: Sequence[int]
    ancestors: torch.Tensor | None = None
    """[tokens, tokens] bool: who sees whom among the new tokens (a draft tree), instead of
    causality. Positions are the caller's."""


class AttentionStep:
    """One step's index tensors over `pool`, used by every layer.

    `decodes`: contexts of the decoding rows, the new token included. `spans`: the rest.
    """

    def __init__(
        self, pool: KvPool, decodes: Sequence[Context], spans: Sequence[NewSpan], dtype: torch.dtype
    ) -> None:
        layout = pool.layout
        self._pool = pool
        self._block_tokens = layout.block_tokens
        self._decodes = len(decodes)
        self.slots = torch.tensor(_slots(decodes, spans, layout.block_tokens))
        self._parts = [
            (torch.tensor(rows), _part([decodes[row] for row in rows], pool, dtype))
            for rows in _alike([c.tokens for c in decodes], pool)
        ]
        self._spans: list[tuple[int, int, _Read | None, torch.Tensor | None]] = []
        row = len(decodes)
        for span in spans:
            prefix = None
            if span.start:
                prefix = _Read.of(span.blocks, span.start, layout.block_tokens)
            self._spans.append((row, row + span.tokens, prefix, span.ancestors))
            row += span.tokens

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Write k, v [rows, kv heads, dim] into the pool, then attend with q [rows, heads, dim].

        Returns [rows, heads, dim]. Rows beyond the step's are padding: not written, and zeros.
        """
        paged = self._pool.layer(layer)
        keys, values = paged
        step_rows = len(self.slots)
        keys.view(-1, *keys.shape[2:]).index_copy_(0, self.slots, k[:step_rows])
        values.view(-1, *values.shape[2:]).index_copy_(0, self.slots, v[:step_rows])
        if self._decodes == q.shape[0]:
            return self._decode(q, paged, scale)
        out = torch.empty_like(q)
        out[step_rows:] = 0  # finite, and no denormals, with which all arithmetic is slow
        if self._decodes:
            rows = q[: self._decodes]
            out[: self._decodes] = self._decode(rows, paged, scale)
        for start, stop, prefix, ancestors in self._spans:
            out[start:stop] = self._span(
                q[start:stop], k[start:stop], v[start:stop], keys, values, prefix, ancestors, scale
            )
        return out

    def _decode(self, q: torch.Tensor, paged: torch.Tensor, scale: float) -> torch.Tensor:
        out = torch.empty_like(q)
        for rows, part in self._parts:
            out.index_copy_(0, rows, part.attend(q.index_select(0, rows), paged, scale))
        return out

    def _span(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        prefix: "_Read | None",
        ancestors: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        own = attend(q, k, v, scale, causal=ancestors is None, mask=ancestors)
        if prefix is None:
            return own.out
        before = attend(q, prefix(keys), prefix(values), scale)
        return merge(before, own).out


class _Read:
    """The first `tokens` tokens of a list of blocks: a view where the blocks are adjacent."""

    def __init__(self, first: int | None, blocks: torch.Tensor | None, tokens: int) -> None:
        self._first = first
        self._blocks = blocks
        self._tokens = tokens

    @classmethod
    def of(cls, blocks: Sequence[int], tokens: int, block_tokens: int) -> "_Read":
        used = list(blocks[: -(-tokens // block_tokens)])
        if used == list(range(used[0], used[0] + len(used))):
            return cls(used[0] * block_tokens, None, tokens)
        return cls(None, torch.tensor(used), tokens)

    def __call__(self, paged: torch.Tensor) -> torch.Tensor:
        """[block, token, kv head, dim] -> [tokens, kv head, dim]"""
        if self._first is not None:
            flat = paged.view(-1, *paged.shape[2:])
            return flat[self._first : self._first + self._tokens]
        assert self._blocks is not None
        taken = paged.index_select(0, self._blocks)
        return taken.view(-1, *paged.shape[2:])[: self._tokens]

    def attend(self, q: torch.Tensor, paged: torch.Tensor, scale: float) -> torch.Tensor:
        """One decoding row; as `_Batch.attend`."""
        keys, values = paged
        return attend(q, self(keys), self(values), scale).out


class _Batch:
    """Contexts gathered block by block into one padded batch, keys and values by one call.

    They are gathered into the pool's scratch: memory that each layer took from the allocator and
    gave back would be mapped anew, page by page.
    """

    def __init__(self, table: torch.Tensor, bias: torch.Tensor, scratch: torch.Tensor) -> None:
        self._table = table
        self._bias = bias
        self._scratch = scratch

    @classmethod
    def of(cls, contexts: Sequence[Context], pool: KvPool, dtype: torch.dtype) -> "_Batch":
        block_tokens = pool.layout.block_tokens
        tokens = torch.tensor([context.tokens for context in contexts])
        width = -(-int(tokens.max()) // block_tokens)
        table: list[int] = []
        for context in contexts:
            used = list(context.blocks[: -(-context.tokens // block_tokens)])
            table += used + used[-1:] * (width - len(used))  # padding must hold finite numbers
        hidden = torch.arange(width * block_tokens)[None] >= tokens[:, None]
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        keys = torch.tensor(table)
        both = torch.cat((keys, keys + pool.layout.blocks))  # the values' follow the keys'
        block_values = pool.layout.kv_heads * pool.layout.head_dim * block_tokens
        return cls(both, bias[:, None, None, :], pool.scratch[: len(both) * block_values])

    def attend(self, q: torch.Tensor, paged: torch.Tensor, scale: float) -> torch.Tensor:
        """`q`: a row for each context, [row, head, head dim]; `paged`: a layer's
        [k|v, block, token, kv head, head dim]."""
        blocks = paged.flatten(0, 1)
        gathered = self._scratch.view(-1, *blocks.shape[1:])
        torch.index_select(blocks, 0, self._table, out=gathered)
        k, v = gathered.view(2, len(q), -1, *blocks.shape[2:])
        return attend_batch(q, k, v, self._bias, scale)


def _part(contexts: Sequence[Context], pool: KvPool, dtype: torch.dtype) -> "_Batch | _Read":
    if _gathered_bytes(contexts[0].tokens, pool) * len(contexts) <= pool.scratch.nbytes:
        return _Batch.of(contexts, pool, dtype)
    (context,) = contexts
    return _Read.of(context.blocks, context.tokens, pool.layout.block_tokens)


def _alike(tokens: Sequence[int], pool: KvPool) -> list[list[int]]:
    """Rows whose contexts are gathered together, the longest first: as many as the scratch holds
    and as are of nearly one length. What is longer than the scratch stays alone."""
    groups: list[list[int]] = []
    longest_bytes = padding_bytes = 0
    for row in sorted(range(len(tokens)), key=lambda row: -tokens[row]):
        row_bytes = _gathered_bytes(tokens[row], pool)
        padding_bytes += longest_bytes - row_bytes
        if (
            not groups
            or padding_bytes > _PADDING_BYTES
            or (len(groups[-1]) + 1) * longest_bytes > pool.scratch.nbytes
        ):
            groups.append([])
            longest_bytes, padding_bytes = row_bytes, 0
        groups[-1].append(row)
    return groups


def _gathered_bytes(tokens: int, pool: KvPool) -> int:
    """Of a layer, keys and values."""
    blocks = -(-tokens // pool.layout.block_tokens)
    return 2 * blocks * pool.layout.block_tokens * pool.layout.token_bytes


def _slots(decodes: Sequence[Context], spans: Sequence[NewSpan], block_tokens: int) -> list[int]:
    """Where the new rows' keys and values go: block * block_tokens + place in the block."""
    slots = []
    for context in decodes:
        block, place = divmod(context.tokens - 1, block_tokens)
        slots.append(context.blocks[block] * block_tokens + place)
    for span in spans:
        for position in range(span.start, span.start + span.tokens):
            block, place = divmod(position, block_tokens)
            slots.append(span.blocks[block] * block_tokens + place)
    return slots


def _paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kv_step: AttentionStep,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: [1, heads, rows, dim] in, [1, rows, heads, dim] out."""
    assert attention_mask is None, "a mask was built for an attention that makes its own"
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return kv_step.forward(module.layer_idx, q, k, v, scaling)[None], None


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers; idempotent, the function has no state."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _paged_attention)
