"""How many tokens of KV cache an instance holds."""

from __future__ import annotations

from distserve.planner.models import ModelShape

GIB = 1 << 30
BLOCK_TOKENS = 16


def weight_bytes(model: ModelShape, tp: int, pp: int) -> float:
    """Bytes of weights on one accelerator: embeddings whole, layers shared, norms not split."""
    layers = model.layers / pp
    matrices = (model.attention_parameters + model.ffn_parameters) / tp
    parameters = model.embedding_parameters + layers * (matrices + 5 * model.hidden)
    return parameters * model.dtype_bytes


def block_bytes(model: ModelShape, tp: int, pp: int) -> float:
    """Bytes of one KV block on one accelerator. KV heads are copied where TP exceeds them."""
    heads = max(model.kv_heads / tp, 1.0)
    return model.layers / pp * heads * BLOCK_TOKENS * model.head_dim * 2 * model.dtype_bytes


def kv_tokens(model: ModelShape, tp: int, pp: int, budget_bytes: float) -> int:
    """KV tokens that fit an instance whose accelerators give `budget_bytes` each to weights and
    KV cache; 0 where the weights alone do not fit.

    With 74.40446 GiB this is the table that simdistserve ships for the A100-80G.
    """
    room = budget_bytes - weight_bytes(model, tp, pp)
    return max(0, int(room // block_bytes(model, tp, pp))) * BLOCK_TOKENS
