"""PrefixAware: which blocks an instance has, by its events, and who is chosen for them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.fleets import SIZE, choose, fleet_of, member, report

from distserve.gateway import client
from distserve.gateway.prefix import EventGap, PrefixIndex
from distserve.wire.dialect import (
    KvEvent,
)
from distserve.wire.hashing import chain

PROMPT = list(range(1, 9)) * 4


def stored(*blocks: bytes, sequence: int = 1, epoch: int = 1, reset: bool = True) -> KvEvent:
    return KvEvent(epoch=epoch, sequence=sequence, reset=reset, stored=[b.hex() for b in blocks])


def test_the_longest_cached_prefix_wins_within_a_batch_of_load() -> None:
    hashes = list(chain(PROMPT, SIZE))
    index = PrefixIndex()
    index.apply("p1", stored(*hashes[:2]))
    index.apply("p2", stored(*hashes[:5]))
    index.apply("p3", stored(*hashes[3:]))
    fleet = fleet_of(member("p1"), member("p2"), member("p3"), member("d", "decode"))
    asked: dict[str, Any] = {"policy": "PrefixAware", "index": index, "prompt": PROMPT}
    assert choose(fleet, **asked)[0] == ("p2", "prefill")
    report(fleet.members["p2"], requests=[("x", "waiting", 32, 1)])
    assert choose(fleet, **asked)[0] == ("p2", "prefill"), "one batch more is borne"
    report(fleet.members["p2"], requests=[("x", "waiting", 33, 1)])
    assert choose(fleet, **asked)[0] == ("p1", "prefill")


def test_a_cached_block_at_the_decode_instance_counts_like_a_free_one() -> None:
    index = PrefixIndex()
    index.apply("d2", stored(*list(chain(PROMPT, SIZE))[:5]))
    fleet = fleet_of(member("p"), member("d1", "decode"), member("d2", "decode", free=96))
    asked: dict[str, Any] = {"policy": "PrefixAware", "index": index, "prompt": PROMPT}
    assert choose(fleet, **asked)[1] == ("d2", "decode")
    report(fleet.members["d2"], free=94)
    assert choose(fleet, **asked)[1] == ("d1", "decode")


def test_short_uncached_prompts_skip_the_transfer() -> None:
    index = PrefixIndex()
    fleet = fleet_of(member("p"), member("d1", "decode", free=50), member("d2", "decode"))
    asked: dict[str, Any] = {"index": index, "min_remote": 20, "prompt": PROMPT}
    assert choose(fleet, **{**asked, "prompt": 19}) == [("d2", "both")]
    assert choose(fleet, **{**asked, "prompt": 20}) == [("p", "prefill"), ("d2", "decode")]
    index.apply("d1", stored(*list(chain(PROMPT, SIZE))[:4]))
    assert choose(fleet, **asked) == [("d1", "both")], "32 tokens, 16 of them cached there"


def test_a_replay_is_as_long_as_all_that_it_computes_again() -> None:
    fleet = fleet_of(member("p"), member("d", "decode"))
    asked: dict[str, Any] = {"min_remote": 20, "prompt": 8, "max_tokens": 100}
    assert choose(fleet, **asked, prior=11) == [("d", "both")]
    assert choose(fleet, **asked, prior=12) == [("p", "prefill"), ("d", "decode")]


def test_a_gap_or_another_life_voids_what_was_known() -> None:
    hashes = list(chain(PROMPT, SIZE))
    for wrong in (stored(sequence=7, reset=False), stored(sequence=3, epoch=2, reset=False)):
        index = PrefixIndex()
        index.apply("p", stored(*hashes, sequence=2))
        with pytest.raises(EventGap):
            index.apply("p", wrong)
        assert index.cached_blocks("p", hashes) == 0
        with pytest.raises(EventGap):
            index.apply("p", stored(sequence=8, reset=False))
        index.apply("p", stored(*hashes[:1], sequence=9))
        assert index.cached_blocks("p", hashes) == 1


@given(st.lists(st.tuples(st.sampled_from("sr"), st.integers(0, 7)), max_size=40))
def test_the_index_is_what_the_events_say(steps: list[tuple[str, int]]) -> None:
    hashes = list(chain(PROMPT, SIZE))
    index, known = PrefixIndex(), set[int]()
    index.apply("p", stored(sequence=0))
    for sequence, (kind, block) in enumerate(steps, start=1):
        one = [hashes[block].hex()]
        if kind == "s":
            known.add(block)
            event = KvEvent(epoch=1, sequence=sequence, stored=one)
        else:
            known.discard(block)
            event = KvEvent(epoch=1, sequence=sequence, removed=one)
        index.apply("p", event)
        leading = next((n for n in range(8) if n not in known), 8)
        assert index.cached_blocks("p", hashes) == leading


async def test_the_index_is_fed_by_the_engines(houses: Any) -> None:
    prompt = [5, 6, 7, 8] * 4
    hashes = list(chain(prompt, SIZE))
    house = await houses(prefill=2, policy="PrefixAware")
    second = house.prefills[1]
    for event in (stored(sequence=1), stored(*hashes, sequence=2, reset=False)):
        second.kv_lines.append(event)
    second.changed()
    index = house.gateway._index
    await house.until(lambda: index.cached_blocks("prefill-1", hashes) == 4)
    assert (await house.complete(prompt=prompt))[0] == 200
    assert [len(engine.legs) for engine in house.prefills] == [0, 1]
    # A gap: the gateway connects anew, and gets all from the first line on.
    second.kv_lines[:] = [second.kv_lines[0], stored(*hashes, sequence=9, reset=False)]
    second.kv_lines += [stored(*hashes[:1], sequence=10)] * 2
    second.changed()
    await house.until(lambda: index.cached_blocks("prefill-1", hashes) == 1)


async def test_what_a_cut_network_kept_from_the_index_is_asked_for_again(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream of events has not ended: nobody was there to say so."""
    monkeypatch.setattr(client, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(client, "CALL_SECONDS", 0.2)
    hashes = list(chain([5, 6, 7, 8] * 4, SIZE))
    house = await houses(prefill=2, policy="PrefixAware")
    second, index = house.prefills[1], house.gateway._index
    second.kv_lines.append(stored(*hashes))
    second.changed()
    await house.until(lambda: index.cached_blocks("prefill-1", hashes) == 4)
    second.silent = True
    second.changed()
    await house.until(lambda: house.gateway.fleet.members["prefill-1"].state is None)
    second.kv_lines[:] = [stored(*hashes[:1])]
    second.silent = False
    await house.until(lambda: index.cached_blocks("prefill-1", hashes) == 1)
