"""Prefill on one engine, decode on another: what each does, and what waits for what."""

import random
from typing import Any

import pytest
from tests.engine.scheduling.legs import drive, hand_over

from distserve.engine.commands import StopLeg
from distserve.wire import messages as wire
from distserve.wire.dialect import End, Finish, Handoff, LegError, Phases, Source


@pytest.mark.parametrize("chunk", [64, 8])
def test_the_first_token_is_the_prefills_and_the_rest_the_decodes(
    pair: Any, make_leg: Any, reference: Any, chunk: int
) -> None:
    both = pair(prefill={"tokens": chunk})
    prefill, decode = hand_over(make_leg, range(1, 22), 6, "t1")
    both.prefill.start(prefill)
    both.decode.start(decode)
    drive(both)
    whole = reference.continuation(range(1, 22), 6)
    assert both.prefill.tokens(prefill.id) == whole[:1]
    assert both.decode.tokens(decode.id) == whole[1:]
    assert both.decode.events[decode.id][0].index == 1
    assert not reference.finishes(both.prefill, prefill.id)
    assert [f.reason for f in reference.finishes(both.decode, decode.id)] == ["length"]
    (end,) = both.decode.ends(decode.id)
    assert (end.transport, end.transfer_bytes) == ("Fake", 21)
    assert end.lifecycle.migration_end_ms >= end.lifecycle.migration_begin_ms > 0
    assert both.prefill.is_quiet()
    assert both.decode.is_quiet()


def test_who_is_pulled_ahead_waits_for_a_seat(pair: Any, make_leg: Any, reference: Any) -> None:
    """A step has no more sequences than the instance may; the next one's KV is there already."""
    both = pair(decode={"seqs": 2, "blocks": 200})
    decodes = []
    for nth in range(5):
        prefill, decode = hand_over(make_leg, range(1, 8 + nth), 12, f"t{nth}")
        both.prefill.start(prefill)
        both.decode.start(decode)
        decodes.append(decode)
    ahead = 0
    for _ in range(100):
        both.prefill.run(1)
        both.decode.run(1)
        both.work()
        ahead = max(
            ahead, both.decode.scheduler.waiting_count - len(both.decode.scheduler.expected)
        )
    assert max(len(step) for step in both.decode.runner.steps) == 2
    assert ahead >= 1
    for nth, decode in enumerate(decodes):
        whole = reference.continuation(range(1, 8 + nth), 12)
        assert both.decode.tokens(decode.id) == whole[1:]
    assert both.decode.is_quiet()


def test_the_handover_is_told_once_the_migrator_knows_of_it(pair: Any, make_leg: Any) -> None:
    """And before the end, however fast the prefill is."""
    both = pair()
    prefill, _ = hand_over(make_leg, range(1, 9), 5, "t1")
    both.prefill.start(prefill)
    both.prefill.run()
    assert [type(e).__name__ for e in both.prefill.events[prefill.id]] == ["Token"]
    both.work()
    assert [type(e).__name__ for e in both.prefill.events[prefill.id]] == [
        "Token",
        "Handoff",
        "End",
    ]
    assert both.prefill.state().requests[0].phase == "offered"


def test_an_offer_says_how_long_its_request_may_take(pair: Any, make_leg: Any) -> None:
    """The lease runs once all is computed; if that never is, by then."""
    both = pair()
    prefill, _ = hand_over(make_leg, range(1, 9), 5, "t1", timeout_ms=7000.0)
    both.prefill.start(prefill)
    both.prefill.clock.now += 2
    both.prefill.run(steps=1)
    (offer,) = [message for message in both.prefill.sent if isinstance(message, wire.Offer)]
    assert offer.timeout_ms == pytest.approx(5000, abs=100)


def test_a_leg_grows_where_it_is_decoded(pair: Any, make_leg: Any) -> None:
    """Else a chat, which may use the rest of the context, would seem to fill its prefill side."""
    both = pair()
    prefill, decode = hand_over(make_leg, range(1, 9), 50, "t1", choices=[0, 1])

    def told(bench: Any) -> tuple[str, int, int]:
        (request,) = bench.state().requests
        return request.phase, request.tokens_left, request.seats

    both.prefill.start(prefill)
    both.decode.start(decode)
    assert told(both.prefill) == ("waiting", 0, 2)
    assert told(both.decode) == ("expected", 2 * 50, 2)
    both.prefill.run()
    both.work()
    assert told(both.prefill) == ("offered", 0, 0)
    drive(both)


def test_many_requests_with_prefix_hits_on_both_sides(
    pair: Any, make_leg: Any, reference: Any
) -> None:
    both = pair(decode={"blocks": 40})
    draw = random.Random(5)
    head = list(range(1, 14))
    legs = []
    for i in range(30):
        tail = [draw.randrange(1, 90) for _ in range(draw.randint(1, 12))]
        legs.append(hand_over(make_leg, head + tail, draw.randint(2, 9), f"t{i}"))
    for prefill, decode in legs:
        both.prefill.start(prefill)
        both.decode.start(decode)
    drive(both)
    for prefill, decode in legs:
        whole = reference.continuation(prefill.prompt, prefill.sampling.max_tokens)
        assert both.prefill.tokens(prefill.id) + both.decode.tokens(decode.id) == whole
    assert any(both.decode.ends(d.id)[0].cached_tokens for _, d in legs)
    assert any(both.prefill.ends(p.id)[0].cached_tokens for p, _ in legs)
    assert both.prefill.is_quiet()
    assert both.decode.is_quiet()


def test_a_whole_hit_at_the_decode_side_moves_no_bytes(
    pair: Any, make_leg: Any, reference: Any
) -> None:
    both = pair()
    for i in range(2):
        prefill, decode = hand_over(make_leg, range(1, 17), 4, f"t{i}")
        both.prefill.start(prefill)
        both.decode.start(decode)
        drive(both)
        assert both.decode.tokens(decode.id) == reference.continuation(prefill.prompt, 4)[1:]
    assert both.decode.ends(decode.id)[0].cached_tokens == 16
    assert both.decode.ends(decode.id)[0].transfer_bytes == 0


def test_choices_are_forked_at_the_decode_side(pair: Any, make_leg: Any, reference: Any) -> None:
    both = pair()
    prefill, decode = hand_over(make_leg, range(1, 11), 7, "t1", choices=[0, 1, 2, 3])
    both.prefill.start(prefill)
    both.decode.start(decode)
    drive(both)
    for choice in range(4):
        found = both.prefill.tokens(prefill.id, choice) + both.decode.tokens(decode.id, choice)
        assert found == reference.continuation(prefill.prompt, 7, choice)
    assert len(both.fetches) == 0
    assert both.decode.is_quiet()


def test_a_replay_goes_through_a_prefill_again(pair: Any, make_leg: Any, reference: Any) -> None:
    both = pair()
    whole = reference.continuation(range(1, 11), 9)
    prefill, decode = hand_over(make_leg, range(1, 11), 9, "t1", prior=whole[:4])
    both.prefill.start(prefill)
    both.decode.start(decode)
    drive(both)
    assert both.prefill.tokens(prefill.id) == whole[4:5]
    assert both.decode.tokens(decode.id) == whole[5:]


def test_a_request_that_ends_at_its_first_token_makes_no_transfer(pair: Any, make_leg: Any) -> None:
    both = pair()
    leg = both.prefill.start(make_leg([1, 2, 3], 1, phases=Phases.PREFILL, transfer="t1"))
    both.prefill.run()
    assert not both.prefill.sent
    kinds = [type(e) for e in both.prefill.events[leg.id]]
    assert kinds[1:] == [Finish, End]
    assert both.prefill.is_quiet()


def test_an_end_at_the_first_token_takes_the_offer_back(
    pair: Any, make_leg: Any, reference: Any
) -> None:
    both = pair()
    first = reference.continuation([1, 2, 3], 1)
    prefill, decode = hand_over(make_leg, [1, 2, 3], 5, "t1", sampling={"stop_token_ids": first})
    both.prefill.start(prefill)
    both.decode.start(decode)
    drive(both)
    assert reference.finishes(both.prefill, prefill.id)[0].stop == first[0]
    assert isinstance(both.prefill.ends(prefill.id)[0], End)
    assert "t1" not in both.commits
    both.decode.engine.handle(StopLeg(decode.id))
    drive(both)
    assert both.prefill.is_quiet()
    assert both.decode.is_quiet()


def test_prefill_memory_is_the_queue(pair: Any, make_leg: Any) -> None:
    """What nobody has fetched holds its blocks, so the next prompt waits."""
    both = pair(prefill={"blocks": 8})
    legs = [hand_over(make_leg, [i] * 14, 3, f"t{i}") for i in range(1, 5)]
    for prefill, _ in legs:
        both.prefill.start(prefill)
    both.prefill.run()
    both.work()
    both.prefill.run()
    waiting = [r for r in both.prefill.state().requests if r.phase == "waiting"]
    assert len(waiting) == 2
    for _, decode in legs:
        both.decode.start(decode)
    drive(both)
    assert all(isinstance(both.decode.ends(d.id)[0], End) for _, d in legs)
    assert both.prefill.is_quiet()


def test_a_decode_instance_fetches_only_what_it_has_room_for(
    pair: Any, make_leg: Any, reference: Any
) -> None:
    both = pair(decode={"blocks": 10, "seqs": 2})
    legs = [hand_over(make_leg, [i] * 9, 6, f"t{i}") for i in range(1, 7)]
    for prefill, decode in legs:
        both.prefill.start(prefill)
        both.decode.start(decode)
    both.prefill.run()
    both.decode.run()
    fetches = [m for m in both.decode.sent if isinstance(m, wire.Fetch)]
    expects = [m for m in both.decode.sent if isinstance(m, wire.Expect)]
    assert (len(expects), len(fetches)) == (6, 2), "leases are kept, blocks are not taken"
    drive(both)
    for prefill, decode in legs:
        assert both.decode.tokens(decode.id) == reference.continuation(prefill.prompt, 6)[1:]


def test_a_migrated_sequence_that_is_preempted_is_computed_again_here(
    pair: Any, make_leg: Any, reference: Any
) -> None:
    both = pair(decode={"blocks": 12})
    legs = [hand_over(make_leg, [i] * 5, 30, f"t{i}") for i in range(1, 6)]
    for prefill, decode in legs:
        both.prefill.start(prefill)
        both.decode.start(decode)
    drive(both)
    assert sum(both.decode.ends(d.id)[0].preemptions for _, d in legs) > 0
    for prefill, decode in legs:
        assert both.decode.tokens(decode.id) == reference.continuation(prefill.prompt, 30)[1:]
    assert both.decode.is_quiet()


def test_blocks_are_not_reused_while_the_migrator_may_write_into_them(
    pair: Any, make_leg: Any
) -> None:
    both = pair()
    _, decode = hand_over(make_leg, range(1, 22), 6, "t1")
    both.decode.start(decode)
    both.decode.run()
    held = both.decode.blocks.held
    assert held == 6
    both.decode.engine.handle(StopLeg(decode.id))
    both.decode.run()
    assert isinstance(both.decode.ends(decode.id)[0], LegError)
    assert both.decode.blocks.held == held
    both.work()  # FAILED
    assert both.decode.is_quiet()


def test_handoff_names_the_migrators_address(pair: Any, make_leg: Any) -> None:
    both = pair()
    prefill, _ = hand_over(make_leg, [1, 2, 3], 5, "t1")
    both.prefill.start(prefill)
    drive(both)
    (handoff,) = [e for e in both.prefill.events[prefill.id] if isinstance(e, Handoff)]
    assert handoff.source == Source("t1", "127.0.0.1:0")
