"""Attention in parts: what a chunked prefill and a draft tree rely on."""

import pytest
import torch

from distserve.engine import kernels
from distserve.engine.attention import AttentionStep, Context, NewSpan
from distserve.engine.pool import KvPool
from distserve.wire.pool import PoolLayout

SCALE = 0.3


@pytest.fixture(params=["flash", "plain"])
def _kernel(request, monkeypatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(kernels, "_FLASH", None)


def tensors(rows: int, keys: int, kv_heads: int = 2):
    generator = torch.Generator().manual_seed(rows * 100 + keys)
    shapes = ((rows, 4, 8), (keys, kv_heads, 8), (keys, kv_heads, 8))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def expected(q, k, v, seen):
    """Attention written out, head by head."""
    out = torch.empty_like(q)
    sums = torch.empty(q.shape[:2], dtype=q.dtype)
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        scores = (q[:, head] @ k[:, shared].T * SCALE).masked_fill(~seen, float("-inf"))
        out[:, head] = scores.softmax(-1) @ v[:, shared]
        sums[:, head] = scores.logsumexp(-1)
    return out, sums


def assert_close(a, b) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_output_and_log_sum_exp(kind, kv_heads) -> None:
    q, k, v = tensors(9, 9, kv_heads)
    seen = torch.ones(9, 9, dtype=torch.bool)
    if kind == "causal":
        seen = seen.tril()
    if kind == "mask":
        seen = torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) > 0.5
        seen.fill_diagonal_(True)
    mask = seen if kind == "mask" else None
    found = kernels.attend(q, k, v, SCALE, causal=kind == "causal", mask=mask)
    out, sums = expected(q, k, v, seen)
    assert_close(found.out, out)
    assert_close(found.log_sum_exp, sums)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("split", [1, 5, 19])
def test_parts_merge_to_the_whole(split) -> None:
    q, k, v = tensors(3, 20)
    whole = kernels.attend(q, k, v, SCALE)
    parts = [
        kernels.attend(q, k[part], v[part], SCALE) for part in (slice(split), slice(split, 20))
    ]
    merged = kernels.merge(*parts)
    assert_close(merged.out, whole.out)
    assert_close(merged.log_sum_exp, whole.log_sum_exp)


@pytest.fixture
def pool():
    layout = PoolLayout(
        layer_start=0,
        layers=1,
        head_start=0,
        kv_heads=2,
        head_dim=8,
        block_tokens=4,
        blocks=16,
        dtype="float64",
    )
    pool = KvPool.create(layout)
    yield pool
    pool.close()


def test_a_draft_tree_sees_its_prefix_and_its_ancestors(pool) -> None:
    """Two branches after a prefix of 6 tokens: 0 - 1 - 2 and 0 - 3."""
    _, k, v = tensors(1, 10)
    table = [7, 2, 9]
    AttentionStep(pool, [], [NewSpan(0, 6, table)], torch.float64).forward(
        0, torch.zeros(6, 4, 8, dtype=torch.float64), k[:6], v[:6], SCALE
    )
    ancestors = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]).bool()
    q, _, _ = tensors(4, 1)
    step = AttentionStep(pool, [], [NewSpan(6, 4, table, ancestors)], torch.float64)
    found = step.forward(0, q, k[6:], v[6:], SCALE)
    seen = torch.cat((torch.ones(4, 6, dtype=torch.bool), ancestors), dim=1)
    assert_close(found, expected(q, k, v, seen)[0])


@pytest.mark.parametrize("padding_bytes", [0, 1 << 20])
@pytest.mark.parametrize("scratch_tokens", [0, 8, 20, 64])
def test_rows_are_attended_to_alike_however_they_are_gathered(
    pool, monkeypatch, scratch_tokens, padding_bytes
) -> None:
    """`scratch_tokens`: keys that fit; from one read for each row to one batch of all."""
    monkeypatch.setattr("distserve.engine.attention._PADDING_BYTES", padding_bytes)
    pool.scratch = pool.scratch[: scratch_tokens * 2 * 2 * 8]
    contexts = [
        Context(3, [4]), Context(9, [9, 1, 6]), Context(4, [5]), Context(17, [0, 2, 3, 12, 8]),
        Context(10, [7, 11, 10]),
    ]  # fmt: skip
    table = pool.tensor[0]
    table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(5)))
    q, k, v = tensors(len(contexts), len(contexts))
    step = AttentionStep(pool, contexts, [], torch.float64)
    found = step.forward(0, q, k, v, SCALE)
    for row, context in enumerate(contexts):
        keys, values = (part[context.blocks].flatten(0, 1)[: context.tokens] for part in table)
        assert torch.equal(keys[-1], k[row])
        seen = torch.ones(1, context.tokens, dtype=torch.bool)
        assert_close(found[row : row + 1], expected(q[row : row + 1], keys, values, seen)[0])


def test_new_keys_lie_where_the_migrator_looks_for_them(pool) -> None:
    """Token 5 of a sequence: second block of its table, second place."""
    q, k, v = tensors(2, 2)
    step = AttentionStep(pool, [Context(6, [7, 2])], [NewSpan(0, 1, [3])], torch.float64)
    step.forward(0, q, k, v, SCALE)
    assert torch.equal(pool.tensor[0, 0, 2, 1], k[0])
    assert torch.equal(pool.tensor[0, 1, 2, 1], v[0])
    assert torch.equal(pool.tensor[0, 1, 3, 0], v[1])
    assert pool.tensor.count_nonzero() == 4 * 2 * 8
