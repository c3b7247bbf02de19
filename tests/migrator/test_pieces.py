"""Cutting pools: every (layer, head, token) arrives exactly once, for any pair of shapes."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.migrator import pieces
from distserve.migrator.errors import PieceError
from distserve.wire.pool import BlockSpan, PoolLayout, TokenRange

BLOCK = 4


def instance(tensor, pipeline, layers, heads, blocks=8):
    """Pools as engines cut them: TP over heads (replicated beyond their number), PP over layers."""
    result = []
    for stage in range(pipeline):
        for shard in range(tensor):
            layer = stage * layers // pipeline
            head = shard * heads // tensor
            layout = PoolLayout(
                layer_start=layer,
                layers=(stage + 1) * layers // pipeline - layer,
                head_start=head,
                kv_heads=max(1, heads // tensor),
                head_dim=2,
                block_tokens=BLOCK,
                blocks=blocks,
                dtype="float16",
            )
            result.append(pieces.RankPool(stage * tensor + shard, layout))
    return result


DEGREES = st.sampled_from([1, 2, 4, 8])


@given(DEGREES, DEGREES, DEGREES, DEGREES, st.integers(8, 13), DEGREES)
def test_every_layer_and_head_of_every_target_rank_is_filled_once(
    source_tensor, source_pipeline, tensor, pipeline, layers, heads
):
    source = instance(source_tensor, source_pipeline, layers, heads)
    target = instance(tensor, pipeline, layers, heads)
    held = {pool.rank: pool.layout for pool in source}
    filled = Counter()
    for piece in pieces.cut(source, target):
        box, layout = piece.source, held[piece.source.rank]
        assert layout.layer_start <= box.layer_start
        assert box.layer_stop <= layout.layer_start + layout.layers
        assert layout.head_start <= box.head_start
        assert box.head_stop <= layout.head_start + layout.kv_heads
        for layer in range(box.layer_start, box.layer_stop):
            for head in range(box.head_start, box.head_stop):
                filled[piece.target_rank, layer, head] += 1
    wanted = {
        (pool.rank, layer, head): 1
        for pool in target
        for layer in range(pool.layout.layer_start, pool.layout.layer_start + pool.layout.layers)
        for head in range(pool.layout.head_start, pool.layout.head_start + pool.layout.kv_heads)
    }
    assert filled == wanted


def test_targets_spread_over_the_holders_of_a_replicated_head():
    """1 KV head, TP 4 on both sides: each target rank asks another source rank."""
    found = pieces.cut(instance(4, 1, 2, 1), instance(4, 1, 2, 1))
    assert sorted(piece.source.rank for piece in found) == [0, 1, 2, 3]


def test_pools_that_do_not_fit_are_named():
    full = instance(1, 1, 4, 4)
    with pytest.raises(PieceError, match=r"layers 0\.\.3 and heads 0\.\.3"):
        pieces.cut(instance(2, 1, 4, 4)[:1], full)
    with pytest.raises(PieceError, match="exactly once"):
        pieces.cut(instance(1, 1, 4, 2), full)
    other = PoolLayout(
        **{f: getattr(full[0].layout, f) for f in PoolLayout.__struct_fields__}
        | {"dtype": "float32"}
    )
    with pytest.raises(PieceError, match="dtype is float32 at the peer and float16 here"):
        pieces.cut([pieces.RankPool(0, other)], full)


@given(st.integers(0, 30), st.integers(1, 30), DEGREES, st.integers(1, 3000))
def test_reads_cover_the_range_once_and_stay_near_their_size(start, length, heads, size):
    tokens = TokenRange(start, start + length)
    source = instance(1, 1, 5, heads)
    layout = source[0].layout
    seen = Counter()
    for read in pieces.reads(pieces.cut(source, source), tokens, layout, size):
        box = read.piece.source
        one = 2 * BLOCK * (box.head_stop - box.head_start) * layout.head_dim * 2
        layers = box.layer_stop - box.layer_start
        assert layers * one * -(-read.tokens.tokens // BLOCK) <= max(size, one)
        for layer in range(box.layer_start, box.layer_stop):
            for head in range(box.head_start, box.head_stop):
                for token in range(read.tokens.start, read.tokens.stop):
                    seen[layer, head, token] += 1
    assert set(seen.values()) == {1}
    assert len(seen) == 5 * heads * length


@st.composite
def spans(draw, blocks=40):
    """Spans of one request with permuted blocks, and a range inside of one of them."""
    order = draw(st.permutations(range(blocks)))
    result, start, used = [], 0, 0
    for count in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)):
        stop = start + count * BLOCK
        result.append(BlockSpan(TokenRange(start, stop), list(order[used : used + count])))
        start, used = stop, used + count
    cut = draw(st.integers(0, BLOCK - 1))
    last = result[-1]
    result[-1] = BlockSpan(TokenRange(last.tokens.start, last.tokens.stop - cut), last.blocks)
    first = draw(st.integers(0, result[-1].tokens.stop - 1))
    return result, TokenRange(first, draw(st.integers(first + 1, result[-1].tokens.stop)))


def slots(runs):
    return [slot for run in runs for slot in range(run.start, run.start + run.slots)]


def slot_of(found, token):
    for span in found:
        if span.tokens.start <= token < span.tokens.stop:
            index, offset = divmod(token - span.tokens.start, BLOCK)
            return span.blocks[index] * BLOCK + offset
    raise AssertionError(token)


@given(spans(), spans())
def test_slots_follow_the_blocks_and_copies_pair_them(source, target):
    found, tokens = source
    runs = list(pieces.slot_runs(found, tokens, BLOCK))
    assert slots(runs) == [slot_of(found, t) for t in range(tokens.start, tokens.stop)]
    assert all(a.start + a.slots != b.start for a, b in itertools.pairwise(runs))
    size = min(tokens.tokens, target[1].tokens)
    left = list(pieces.slot_runs(found, TokenRange(tokens.start, tokens.start + size), BLOCK))
    first = target[1].start
    right = list(pieces.slot_runs(target[0], TokenRange(first, first + size), BLOCK))
    copies = list(pieces.align(left, right))
    assert [c.source + i for c in copies for i in range(c.slots)] == slots(left)
    assert [c.target + i for c in copies for i in range(c.slots)] == slots(right)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (BlockSpan(TokenRange(0, 5), [1]), "1 blocks for tokens"),
        (BlockSpan(TokenRange(0, 4), [8]), "outside"),
        (BlockSpan(TokenRange(0, 4), [-1]), "outside"),
        (BlockSpan(TokenRange(2, 4), [1]), "starts in a block"),
        (BlockSpan(TokenRange(4, 4), []), "empty"),
    ],
)
def test_spans_are_checked_before_memory_is_touched(bad, why):
    layout = instance(1, 1, 2, 2)[0].layout
    pieces.check_spans([BlockSpan(TokenRange(0, 5), [0, 7])], layout)
    with pytest.raises(PieceError, match=why):
        pieces.check_spans([bad], layout)
    with pytest.raises(PieceError, match="overlaps"):
        both = [BlockSpan(TokenRange(0, 8), [0, 7]), BlockSpan(TokenRange(4, 8), [1])]
        pieces.check_spans(both, layout)


def test_a_range_that_no_block_holds_is_refused():
    with pytest.raises(PieceError, match="no block holds token 4"):
        list(pieces.slot_runs([BlockSpan(TokenRange(0, 4), [0])], TokenRange(2, 6), BLOCK))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4),
)
def test_range_arithmetic_is_set_arithmetic(wanted, taken):
    def ranges(pairs):
        return [TokenRange(min(p), max(p)) for p in pairs if p[0] != p[1]]

    def members(found):
        return {t for r in found for t in range(r.start, r.stop)}

    a, b = ranges(wanted), ranges(taken)
    assert members(pieces.subtract(a, b)) == members(a) - members(b)
    for one in b:
        assert members(pieces.intersect(a, one)) == members(a) & members([one])
