"""Attention of some rows over some keys with its log-sum-exp, so that partial results merge.

Torch's CPU flash kernel takes fewer KV heads than query heads as they are (nothing is repeated)
and any strides; where a torch lacks it, the same in plain operations.
"""

from dataclasses import dataclass

import torch

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention over a part of the context."""

    out: torch.Tensor
    """[rows, heads, dim]"""
    log_sum_exp: torch.Tensor
    """[rows, heads], at least float32."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Partial:
    """q [rows, heads, dim] over k, v [keys, kv heads, dim].

    `causal`: row i sees keys 0..i; rows and keys are as many. `mask`: [rows, keys] bool, True
    where a row sees a key; every row sees one at least.
    """
    if _FLASH is None:
        return _attend_plain(q, k, v, scale, causal=causal, mask=mask)
    bias = None if mask is None else _bias(mask, q.dtype)[None, None]
    out, log_sum_exp = _FLASH(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        0.0,
        causal,
        attn_mask=bias,
        scale=scale,
    )
    return Partial(out[0].transpose(0, 1), log_sum_exp[0].transpose(0, 1))


def attend_batch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """One row for each of a batch: q [batch, heads, dim] over k, v [batch, keys, kv heads, dim].

    `bias` [batch, 1, 1, keys]: 0 where a key is seen, -inf where not. Returns [batch, heads, dim].
    Heads that share a KV head are taken as rows of it, which is lossless: nothing is causal here.
    """
    batch, heads, dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    out = torch.nn.functional.scaled_dot_product_attention(
        q.reshape(batch, kv_heads, group, dim),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=bias.expand(batch, 1, group, -1),
        scale=scale,
    )
    return out.reshape(batch, heads, dim)


def merge(first: Partial, second: Partial) -> Partial:
    """The attention over both contexts together."""
    total = torch.logaddexp(first.log_sum_exp, second.log_sum_exp)
    share = torch.exp(first.log_sum_exp - total)[..., None]
    rest = torch.exp(second.log_sum_exp - total)[..., None]
    out = (first.out * share + second.out * rest).to(first.out.dtype)
    return Partial(out, total)


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _attend_plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool,
    mask: torch.Tensor | None,
) -> Partial:
    group = q.shape[1] // k.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = k.repeat_interleave(group, dim=1).to(wide)
    values = v.repeat_interleave(group, dim=1).to(wide)
    scores = torch.einsum("rhd,khd->rhk", q.to(wide), keys) * scale
    if causal:
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
    out = torch.einsum("rhk,khd->rhd", scores.softmax(-1), values)
    return Partial(out.to(q.dtype), scores.logsumexp(-1))
