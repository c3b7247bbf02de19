"""The pool is real memory that another process can map, or it is refused in one line."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distserve.engine import pool as pools
from distserve.engine.errors import ParallelismError, PoolMemoryError
from distserve.engine.memory import available_bytes
from distserve.engine.pool import KvPool, KvShape, layout_for
from distserve.engine.rank import Rank
from distserve.wire.pool import DTYPE_BYTES, NONCE_BYTES

KV = KvShape(layers=4, kv_heads=2, head_dim=8)


def layout(dtype: str = "float32", budget_bytes: int = 1 << 20):
    return layout_for(KV, Rank(), dtype=dtype, block_tokens=16, budget_bytes=budget_bytes)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_shape_and_bytes_are_the_layouts(dtype) -> None:
    made = layout(dtype)
    pool = KvPool.create(made)
    try:
        assert pool.tensor.shape == made.shape
        assert pool.tensor.dtype == getattr(torch, dtype)
        assert pool.tensor.nbytes == made.pool_bytes - NONCE_BYTES
        assert os.fstat(pool.fd).st_size == made.pool_bytes
        assert os.fstat(pool.fd).st_blocks * 512 >= made.pool_bytes, "pages are not allocated"
        assert not pool.tensor.any()
    finally:
        pool.close()


def test_another_process_sees_what_is_written() -> None:
    made = layout()
    pool = KvPool.create(made)
    pool.values(3)[made.blocks - 1, 15, 1, 7] = 42.0
    pool.keys(0)[0, 0, 0, 0] = 7.0
    code = (
        "import mmap, numpy, sys; fd, size, nonce = map(int, sys.argv[1:]);"
        "a = numpy.frombuffer(mmap.mmap(fd, size), 'float32', offset=nonce); print(a[0], a[-1])"
    )
    arguments = [str(pool.fd), str(made.pool_bytes), str(NONCE_BYTES)]
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        pass_fds=[pool.fd],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    pool.close()
    assert out.stdout.split() == ["7.0", "42.0"]


def test_a_mapping_of_this_process_sees_it_too() -> None:
    pool = KvPool.create(layout("float64"))
    with mmap.mmap(pool.fd, pool.layout.pool_bytes) as other:
        view = np.frombuffer(other, "float64", offset=NONCE_BYTES)
        pool.tensor.fill_(3.0)
        assert (view == 3.0).all()
        del view
    pool.close()
    pool.close()
    assert pool.fd == -1


@pytest.mark.parametrize("change_bytes", [-4096, 4096])
def test_nobody_who_has_it_can_change_its_size(change_bytes) -> None:
    pool = KvPool.create(layout())
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, pool.layout.pool_bytes + change_bytes)
    pool.close()


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(PoolMemoryError, match=r"lower kvCache to \d+Mi or less") as error:
        KvPool.create(layout(budget_bytes=1 << 45))
    assert "\n" not in str(error.value)


def test_a_step_s_memory_is_not_the_pool_s(monkeypatch) -> None:
    """100 MiB, of which 64 are kept free and 6 are a step's: 30 remain for the pool."""
    monkeypatch.setattr(pools, "available_bytes", lambda: 100 << 20)
    KvPool.create(layout(budget_bytes=30 << 20), step_bytes=6 << 20).close()
    with pytest.raises(PoolMemoryError, match="lower kvCache to 30Mi or less"):
        KvPool.create(layout(budget_bytes=32 << 20), step_bytes=6 << 20)


def test_a_containers_limit_counts(monkeypatch) -> None:
    monkeypatch.setattr(pools, "available_bytes", lambda: 64 << 20)
    with pytest.raises(PoolMemoryError, match="64 MiB of available memory: give the engine more"):
        KvPool.create(layout())


@pytest.mark.parametrize(
    ("limit", "used", "stat", "droppable"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ],
    ids=["v2", "v1"],
)
def test_a_checkpoint_that_was_read_is_not_in_the_way(
    tmp_path, limit, used, stat, droppable
) -> None:
    """Its pages stay until the memory is wanted, and count as the container's."""
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text(f"{64 << 20}\n")
    (tmp_path / used).write_text(f"{60 << 20}\n")
    (tmp_path / stat).write_text(f"file {50 << 20}\n{droppable} {40 << 20}\nslab 7\n")
    assert available_bytes(tmp_path) == 44 << 20
    (tmp_path / stat).write_text(f"file {50 << 20}\n")
    assert available_bytes(tmp_path) == 4 << 20
    for unread in ("", "only_a_name\n", f"{droppable} many\n"):
        (tmp_path / stat).write_text(unread)
        assert available_bytes(tmp_path) == 4 << 20
    (tmp_path / stat).unlink()
    assert available_bytes(tmp_path) == 4 << 20, "the limit holds without it"


def test_without_a_limit_it_is_the_machines_memory(tmp_path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{60 << 20}\n")
    assert available_bytes(tmp_path) > 64 << 20


def test_a_budget_without_room_for_a_block() -> None:
    with pytest.raises(PoolMemoryError, match="raise kvCache or lower blockTokens"):
        layout(budget_bytes=NONCE_BYTES + 100)


@given(st.integers(NONCE_BYTES, 1 << 30))
def test_the_budget_is_used_and_not_exceeded(budget_bytes) -> None:
    try:
        made = layout(budget_bytes=budget_bytes)
    except PoolMemoryError:
        return
    assert made.pool_bytes <= budget_bytes < made.pool_bytes + made.block_bytes


@given(st.integers(1, 8), st.integers(1, 8), st.integers(8, 40), st.sampled_from([1, 2, 4, 8]))
def test_ranks_cover_the_model(tensor, pipeline, layers, kv_heads) -> None:
    ranks = [Rank(i, tensor, pipeline) for i in range(tensor * pipeline)]
    held = {layer for r in ranks for layer in range(r.layers(layers).start, r.layers(layers).stop)}
    assert held == set(range(layers))
    sizes = {rank.layers(layers).size for rank in ranks}
    assert max(sizes) - min(sizes) <= 1
    if kv_heads % tensor and tensor % kv_heads:
        with pytest.raises(ParallelismError, match="choose a divisor"):
            ranks[0].kv_heads(kv_heads)
        return
    for rank in ranks:
        # A rank's query heads need the KV heads that it holds, and no other.
        heads, kv = rank.heads(kv_heads * tensor), rank.kv_heads(kv_heads)
        assert {h // tensor for h in range(heads.start, heads.stop)} == set(
            range(kv.start, kv.stop)
        )


def test_layouts_of_ranks_are_slices() -> None:
    made = layout_for(KV, Rank(3, 4, 1), dtype="float32", block_tokens=16, budget_bytes=1 << 20)
    assert (made.head_start, made.kv_heads, made.layer_start, made.layers) == (1, 1, 0, 4)
    made = layout_for(KV, Rank(1, 1, 2), dtype="float32", block_tokens=16, budget_bytes=1 << 20)
    assert (made.head_start, made.kv_heads, made.layer_start, made.layers) == (0, 2, 2, 2)


def test_impossible_ranks() -> None:
    with pytest.raises(ParallelismError, match="outside"):
        Rank(4, 2, 2)
    with pytest.raises(ParallelismError, match="cannot fill"):
        Rank(0, 1, 5).layers(4)
    with pytest.raises(ParallelismError, match="not supported"):
        Rank(0, 2, 1).require_single()
