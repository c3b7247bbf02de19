"""What a transfer does between two migrators, the same over every transport."""

import numpy as np
import pytest

from distserve.wire import messages
from distserve.wire.pool import TokenRange


async def test_kv_arrives_with_its_commit_and_the_source_gets_its_blocks_back(harness, transport):
    p, d = await harness.pair(transport)
    there, here = harness.span(0, 40, 5, 9, 10), harness.span(0, 40, 3, 4, 1)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", there)
    p.commit("t", prompt=[4, 5], tokens=[6])
    fetched = await d.ending("t")
    assert isinstance(fetched, messages.Fetched)
    assert fetched.record.prompt == [4, 5]
    assert fetched.record.choices[0].tokens == [6]
    assert fetched.timings.transport == transport
    assert fetched.timings.bytes == 40 * 3 * 2 * 4 * 8 * 8
    assert d.holds(here)
    assert await p.hear(messages.Released) == messages.Released(transfer="t", fetched=True)


async def test_a_chunk_is_read_while_the_next_is_being_computed(harness, transport):
    p, d = await harness.pair(transport)
    there, here = harness.span(0, 64, 0, 1, 2, 3), harness.span(0, 64, 8, 7, 6, 5)
    first, second = TokenRange(0, 32), TokenRange(32, 64)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", there, first)
    await harness.until(lambda: d.holds(here, first), "the first chunk")
    assert not d.endings("t")
    p.ready("t", there, second)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)


async def test_only_what_the_cache_lacks_moves(harness, transport):
    p, d = await harness.pair(transport)
    there, lacking = harness.span(0, 60, 0, 1, 2, 3), harness.span(32, 60, 9, 8)
    await p.offer("t", there)
    p.ready("t", there)
    p.commit("t")
    d.expect("t", p.address)
    d.fetch("t", lacking)
    fetched = await d.ending("t")
    assert fetched.timings.bytes == 28 * 3 * 2 * 4 * 8 * 8
    assert d.holds(lacking)


async def test_a_full_prefix_hit_moves_nothing_and_still_lets_the_source_go(harness, transport):
    p, d = await harness.pair(transport)
    there = harness.span(0, 20, 0, 1)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t")
    p.ready("t", there)
    p.commit("t")
    assert (await d.ending("t")).timings.bytes == 0
    assert (await p.hear(messages.Released, "t")).fetched


async def test_many_at_once_each_gets_its_own(harness, transport):
    p, d = await harness.pair(transport)
    rng = np.random.default_rng(1)
    there, here = rng.permutation(64), rng.permutation(64)
    spans = {}
    for i in range(20):
        spans[f"t{i}"] = (
            harness.span(0, 35 + i % 9, *map(int, there[3 * i : 3 * i + 3])),
            harness.span(0, 35 + i % 9, *map(int, here[3 * i : 3 * i + 3])),
        )
    for i, (name, (source, target)) in enumerate(spans.items()):
        await p.offer(name, source)
        d.expect(name, p.address)
        d.fetch(name, target)
        p.ready(name, source, seed=i)
        p.commit(name)
    for i, (name, (_, target)) in enumerate(spans.items()):
        assert isinstance(await d.ending(name), messages.Fetched), name
        assert d.holds(target, seed=i)
    for name in spans:
        assert (await p.hear(messages.Released, name)).fetched
        assert len(d.endings(name)) == len(p.endings(name)) == 1


@pytest.mark.parametrize(
    ("source", "target"), [((2, 1), (1, 2)), ((1, 2), (4, 1)), ((8, 1), (2, 2))]
)
async def test_other_parallelism_on_the_other_side(harness, transport, source, target):
    """4 layers, 4 KV heads (replicated on TP 8): every rank's pool ends up with its part."""

    def pools(tensor, pipeline):
        heads = max(1, 4 // tensor)
        return [
            harness.layout(
                layer_start=stage * 4 // pipeline,
                layers=4 // pipeline,
                head_start=rank * 4 // tensor,
                kv_heads=heads,
            )
            for stage in range(pipeline)
            for rank in range(tensor)
        ]

    await harness.migrator("p", transport=transport)
    await harness.migrator("d", transport=transport)
    p = await harness.engine("p", *pools(*source), tensor=source[0], pipeline=source[1])
    d = await harness.engine("d", *pools(*target), tensor=target[0], pipeline=target[1])
    there, here = harness.span(0, 45, 5, 9, 10), harness.span(0, 45, 3, 4, 1)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", there)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)


async def test_before_all_ranks_are_here_a_transfer_is_to_go_elsewhere(harness):
    p, _ = await harness.pair()
    await harness.migrator("half")
    half = await harness.engine("half", harness.layout(kv_heads=2), tensor=2)
    half.expect("t", p.address)
    failed = await half.ending("t")
    assert (failed.reason, failed.retryable) == ("refused: a rank is missing", True)
