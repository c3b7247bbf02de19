"""Which bytes of which rank go where: the cut of two instances' pools. Pure.

A *piece* is a box of layers x heads x tokens that one source rank and one target rank both hold::

              heads 0..3          heads 4..7
    layers  +-------------------+-------------------+
     0..3   | source rank 0     | source rank 1     |     target: TP 1, PP 2
            |   -> target 0     |   -> target 0     |     source: TP 2, PP 1
     4..7   |   -> target 1     |   -> target 1     |
            +-------------------+-------------------+

Within a piece the bytes have one order on every transport: layer, k then v, token, head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from msgspec import Struct

from distserve.migrator.errors import PieceError
from distserve.wire.pool import DTYPE_BYTES, BlockSpan, PoolLayout, TokenRange

READ_BYTES = 4 << 20
"""About the size of one read: small enough that transfers take turns and aborts are quick, large
enough that a read's fixed cost does not show."""


class RankPool(Struct, frozen=True):
    """One pool of one rank, as instances tell each other."""

    rank: int
    layout: PoolLayout


class Box(Struct, frozen=True, array_like=True):
    """Layers and KV heads of the model, as half-open ranges, in the pool of a rank."""

    rank: int
    pool: str
    layer_start: int
    layer_stop: int
    head_start: int
    head_stop: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What `source.rank` holds and `target_rank` needs."""

    source: Box
    target_rank: int


@dataclass(frozen=True, slots=True)
class Read:
    """One piece over one token range: the unit that transports move."""

    piece: Piece
    tokens: TokenRange


@dataclass(frozen=True, slots=True)
class SlotRun:
    """Adjacent slots; slot = block * block_tokens + offset in the block."""

    start: int
    slots: int


@dataclass(frozen=True, slots=True)
class SlotCopy:
    source: int
    target: int
    slots: int


def cut(source: Sequence[RankPool], target: Sequence[RankPool]) -> list[Piece]:
    """Pieces that fill every target pool exactly once.

    Where several source ranks hold the same heads (replicated because TP exceeds the heads), each
    target rank takes them from one; target ranks spread over the holders. Raises PieceError when
    something a target needs is held by nobody, or the pools' elements differ.
    """
    pieces: list[Piece] = []
    for wanted in target:
        held = [held for held in source if held.layout.name == wanted.layout.name]
        for other in held:
            _require_same_elements(other.layout, wanted.layout)
        pieces += _cut_for(held, wanted)
    return pieces


def _cut_for(held: Sequence[RankPool], wanted: RankPool) -> Iterator[Piece]:
    boxes: dict[tuple[int, int, int, int], list[int]] = {}
    for pool in held:
        a, b = pool.layout, wanted.layout
        key = (
            max(a.layer_start, b.layer_start),
            min(a.layer_start + a.layers, b.layer_start + b.layers),
            max(a.head_start, b.head_start),
            min(a.head_start + a.kv_heads, b.head_start + b.kv_heads),
        )
        if key[0] < key[1] and key[2] < key[3]:
            boxes.setdefault(key, []).append(pool.rank)
    layout = wanted.layout
    # Ranks of one instance split heads and layers evenly, so boxes are equal or disjoint: their
    # areas add up to the target's exactly when everything is covered once.
    area = sum((l1 - l0) * (h1 - h0) for l0, l1, h0, h1 in boxes)
    if area != layout.layers * layout.kv_heads:
        raise PieceError(
            f"the peer's pools do not hold layers {layout.layer_start}.."
            f"{layout.layer_start + layout.layers - 1} and heads {layout.head_start}.."
            f"{layout.head_start + layout.kv_heads - 1} of pool {layout.name!r} exactly once"
        )
    for (l0, l1, h0, h1), ranks in sorted(boxes.items()):
        source = ranks[wanted.rank % len(ranks)]
        yield Piece(Box(source, layout.name, l0, l1, h0, h1), wanted.rank)


def _require_same_elements(a: PoolLayout, b: PoolLayout) -> None:
    for field in ("dtype", "head_dim", "block_tokens"):
        if getattr(a, field) != getattr(b, field):
            raise PieceError(
                f"pool {a.name!r}: {field} is {getattr(a, field)} at the peer and "
                f"{getattr(b, field)} here"
            )


def reads(
    pieces: Sequence[Piece],
    tokens: TokenRange,
    layout: PoolLayout,
    read_bytes: int = READ_BYTES,
) -> Iterator[Read]:
    """Split pieces over a token range into reads of about `read_bytes`, at block boundaries; where
    one block of a piece is larger, its layers are split. `layout` gives the elements' sizes."""
    element = layout.head_dim * DTYPE_BYTES[layout.dtype]
    for piece in pieces:
        box = piece.source
        per_layer = 2 * layout.block_tokens * (box.head_stop - box.head_start) * element
        layers = max(1, min(read_bytes // per_layer, box.layer_stop - box.layer_start))
        step = max(1, read_bytes // (per_layer * layers)) * layout.block_tokens
        for layer in range(box.layer_start, box.layer_stop, layers):
            part = _with_layers(box, layer, min(layer + layers, box.layer_stop))
            start = tokens.start
            while start < tokens.stop:
                stop = min((start // step + 1) * step, tokens.stop)
                yield Read(replace(piece, source=part), TokenRange(start, stop))
                start = stop


def _with_layers(box: Box, start: int, stop: int) -> Box:
    return Box(box.rank, box.pool, start, stop, box.head_start, box.head_stop)


# ---- token ranges and slots ---------------------------------------------------------------------


def slot_runs(
    spans: Sequence[BlockSpan], tokens: TokenRange, block_tokens: int
) -> Iterator[SlotRun]:
    """Slots of a token range in token order, adjacent blocks joined.

    Raises PieceError when the spans do not hold the whole range.
    """
    position = tokens.start
    run: SlotRun | None = None
    for span in sorted(spans, key=lambda s: s.tokens.start):
        while position < tokens.stop and span.tokens.start <= position < span.tokens.stop:
            index, offset = divmod(position - span.tokens.start, block_tokens)
            slots = min(block_tokens - offset, span.tokens.stop - position, tokens.stop - position)
            start = span.blocks[index] * block_tokens + offset
            if run and run.start + run.slots == start:
                run = SlotRun(run.start, run.slots + slots)
            else:
                if run:
                    yield run
                run = SlotRun(start, slots)
            position += slots
    if position < tokens.stop:
        raise PieceError(f"no block holds token {position} of {tokens.start}..{tokens.stop - 1}")
    if run:
        yield run


def align(source: Sequence[SlotRun], target: Sequence[SlotRun]) -> Iterator[SlotCopy]:
    """Copies of one run to one run each; both sides hold the same number of slots."""
    remaining = list(reversed(target))
    for run in source:
        start, left = run.start, run.slots
        while left:
            into = remaining.pop()
            slots = min(left, into.slots)
            yield SlotCopy(start, into.start, slots)
            if slots < into.slots:
                remaining.append(SlotRun(into.start + slots, into.slots - slots))
            start, left = start + slots, left - slots


def check_spans(spans: Sequence[BlockSpan], layout: PoolLayout) -> None:
    """Raises PieceError unless every span names the right number of blocks that the pool has."""
    end = 0
    for span in sorted(spans, key=lambda s: s.tokens.start):
        start, stop = span.tokens.start, span.tokens.stop
        if start % layout.block_tokens or not end <= start < stop:
            raise PieceError(f"token range {start}..{stop} is empty, overlaps or starts in a block")
        if len(span.blocks) != -(-(stop - start) // layout.block_tokens):
            raise PieceError(f"{len(span.blocks)} blocks for tokens {start}..{stop}")
        if any(not 0 <= block < layout.blocks for block in span.blocks):
            raise PieceError(f"a block outside of the pool's {layout.blocks}")
        end = stop


def subtract(wanted: Sequence[TokenRange], taken: Sequence[TokenRange]) -> list[TokenRange]:
    """What of `wanted` is not in `taken`."""
    rest = list(wanted)
    for cut_out in taken:
        rest = [
            part
            for r in rest
            for part in (
                TokenRange(r.start, min(r.stop, cut_out.start)),
                TokenRange(max(r.start, cut_out.stop), r.stop),
            )
            if part.start < part.stop
        ]
    return rest


def intersect(a: Sequence[TokenRange], b: TokenRange) -> list[TokenRange]:
    """The parts of `a` that are in `b`."""
    parts = (TokenRange(max(r.start, b.start), min(r.stop, b.stop)) for r in a)
    return [part for part in parts if part.start < part.stop]
