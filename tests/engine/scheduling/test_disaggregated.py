"""Prefill on one engine, decode on another, and all that can happen between them."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distserve.engine.commands import DropTransfer, MigratorDown, MigratorUp, StartDrain, StopLeg
from distserve.wire import messages as wire
from distserve.wire.dialect import End, Finish, Handoff, LegError, Phases, Source


def hand_over(make_leg: Any, prompt: Any, tokens: int, name: str, **fields: Any) -> Any:
    """A prefill leg and the decode leg that continues it."""
    prefill = make_leg(
        prompt, tokens, id=f"{name}-p", phases=Phases.PREFILL, transfer=name, **fields
    )
    decode = make_leg(
        prompt, tokens, id=f"{name}-d", phases=Phases.DECODE, source=Source(name, "h:1"), **fields
    )
    return prefill, decode


def drive(migrator: Any, rounds: int = 50) -> None:
    for _ in range(rounds):
        ran = migrator.prefill.run() + migrator.decode.run()
        if not ran and not migrator.prefill.sent and not migrator.decode.sent:
            return
        migrator.work()


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


def test_a_fetch_that_completes_after_the_abort_is_discarded(pair: Any, make_leg: Any) -> None:
    both = pair()
    _, decode = hand_over(make_leg, range(1, 22), 6, "t1")
    both.decode.start(decode)
    both.decode.run()
    both.decode.engine.handle(StopLeg(decode.id))
    record = wire.CommitRecord(list(range(1, 22)), [wire.ChoiceProgress(0, [5])])
    timings = wire.Timings("Fake", 0, 0.0, 0.0)
    both.decode.hear(wire.Fetched(transfer="t1", record=record, timings=timings))
    both.decode.hear(wire.Failed(transfer="t1", reason="late", retryable=True))
    both.decode.run()
    assert not both.decode.runner.steps
    assert not both.decode.stored
    assert both.decode.is_quiet()


def test_kv_of_other_tokens_is_never_decoded_from(pair: Any, make_leg: Any) -> None:
    both = pair()
    _, decode = hand_over(make_leg, range(1, 22), 6, "t1")
    both.decode.start(decode)
    both.decode.run()
    record = wire.CommitRecord(list(range(2, 23)), [wire.ChoiceProgress(0, [5])])
    timings = wire.Timings("Fake", 0, 0.0, 0.0)
    both.decode.hear(wire.Fetched(transfer="t1", record=record, timings=timings))
    both.decode.run()
    (end,) = both.decode.ends(decode.id)
    assert isinstance(end, LegError)
    assert not both.decode.runner.steps
    assert not both.decode.stored
    assert both.decode.is_quiet()


def test_a_failed_transfer_is_told(pair: Any, make_leg: Any) -> None:
    both = pair()
    _, decode = hand_over(make_leg, range(1, 22), 6, "t1")
    both.decode.start(decode)
    both.decode.run()
    both.decode.hear(wire.Failed(transfer="t1", reason="peer is gone", retryable=True))
    (end,) = both.decode.ends(decode.id)
    assert isinstance(end, LegError)
    assert end.retryable
    assert "peer is gone" in end.message
    assert both.decode.is_quiet()


def test_an_offer_whose_lease_ran_out_fails_its_prefill(pair: Any, make_leg: Any) -> None:
    both = pair(prefill={"tokens": 8})
    prefill, _ = hand_over(make_leg, range(1, 30), 5, "t1")
    both.prefill.start(prefill)
    both.prefill.run(steps=1)
    both.prefill.hear(wire.Released(transfer="t1", fetched=False))
    both.prefill.run()
    (end,) = both.prefill.ends(prefill.id)
    assert isinstance(end, LegError)
    assert end.retryable
    assert both.prefill.is_quiet()


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("by", ["release", "abort"])
def test_what_nobody_will_fetch_is_let_go_of(
    pair: Any, make_leg: Any, ended: bool, by: str
) -> None:
    both = pair(prefill={"tokens": 8})
    prefill, _ = hand_over(make_leg, range(1, 30), 5, "t1")
    both.prefill.start(prefill)
    both.prefill.run(steps=1)
    if ended:
        drive(both)
    command = DropTransfer("t1") if by == "release" else StopLeg(prefill.id)
    for _ in range(2):
        both.prefill.engine.handle(command)
    drive(both)
    assert len(both.prefill.ends(prefill.id)) == 1
    assert both.prefill.is_quiet()


def test_a_drain_lets_what_is_here_be_handed_over(pair: Any, make_leg: Any, reference: Any) -> None:
    """A migrator that drains refuses offers, so it hears of it after the last one."""
    both = pair(prefill={"tokens": 8})
    legs = [hand_over(make_leg, range(i, i + 8), 3, f"t{i}") for i in (1, 2, 3)]
    for prefill, _ in legs:
        both.prefill.start(prefill)
    both.prefill.engine.handle(StartDrain())
    both.prefill.run()
    assert wire.Drain() not in both.prefill.sent
    for _, decode in legs:
        both.decode.start(decode)
    both.work()
    assert both.prefill.sent == [wire.Drain()]
    drive(both)
    for prefill, decode in legs:
        assert both.decode.tokens(decode.id) == reference.continuation(prefill.prompt, 3)[1:]


def test_a_release_that_overtakes_its_leg_wins(pair: Any, make_leg: Any) -> None:
    both = pair()
    prefill, _ = hand_over(make_leg, range(1, 9), 5, "t1")
    both.prefill.engine.handle(DropTransfer("t1"))
    both.prefill.start(prefill)
    drive(both)
    assert isinstance(both.prefill.ends(prefill.id)[0], LegError)
    assert not both.prefill.sent


def test_without_its_migrator_an_instance_sends_legs_elsewhere(
    make_bench: Any, make_leg: Any, reference: Any
) -> None:
    bench = make_bench(strategy="Disaggregated")
    prefill, decode = hand_over(make_leg, range(1, 9), 5, "t1")
    for leg in (prefill, decode):
        bench.start(leg)
        bench.run()
        (end,) = bench.ends(leg.id)
        assert isinstance(end, LegError)
        assert end.retryable
    local = bench.start(make_leg(range(1, 9), 5))
    bench.run()
    assert bench.tokens(local.id) == reference.continuation(range(1, 9), 5)


def test_offered_blocks_outlive_their_migrator_until_the_lease_is_over(
    pair: Any, make_leg: Any
) -> None:
    both = pair(prefill={"tokens": 8})
    done, _ = hand_over(make_leg, range(1, 9), 5, "t1")
    running, _ = hand_over(make_leg, range(9, 30), 5, "t2")
    both.prefill.start(done)
    drive(both)
    both.prefill.start(running)
    both.prefill.run(steps=1)
    held = both.prefill.blocks.held
    both.prefill.engine.handle(MigratorDown())
    both.prefill.run()
    (end,) = both.prefill.ends(running.id)
    assert isinstance(end, LegError)
    assert end.retryable
    assert both.prefill.blocks.held == held
    both.prefill.engine.handle(MigratorUp("h:2"))
    both.prefill.clock.now += 29
    both.prefill.run()
    assert both.prefill.blocks.held == held
    both.prefill.clock.now += 2
    both.prefill.run()
    assert both.prefill.is_quiet()


def test_fetches_fail_at_once_with_their_migrator(pair: Any, make_leg: Any) -> None:
    both = pair()
    _, decode = hand_over(make_leg, range(1, 9), 5, "t1")
    both.decode.start(decode)
    both.decode.run()
    held = both.decode.blocks.held
    assert held
    both.decode.engine.handle(MigratorDown())
    both.decode.run()
    (end,) = both.decode.ends(decode.id)
    assert isinstance(end, LegError)
    assert end.retryable
    # Only its channel is known to be gone: it may still write.
    assert both.decode.blocks.held == held
    both.decode.clock.now += 31
    both.decode.run()
    assert both.decode.is_quiet()


@given(data=st.data())
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they are makers
)
def test_no_leg_hangs_and_no_block_leaks_whatever_comes_when(
    pair: Any, make_leg: Any, reference: Any, data: Any
) -> None:
    """Legs, aborts, releases, migrator deaths and steps in any order; then quiet."""
    blocks = data.draw(st.sampled_from([14, 200]))  # of many, some are pulled ahead of a seat
    both = pair(
        prefill={"blocks": 14, "tokens": 16, "seqs": 3},
        decode={"blocks": blocks, "tokens": 16, "seqs": 3},
    )
    started: list[Any] = []
    for number in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from("lllllssssaard")):
            case "l":
                length = data.draw(st.integers(1, 24))
                name = f"t{number}"
                choices = list(range(data.draw(st.sampled_from([1, 1, 2]))))
                legs = hand_over(make_leg, range(1, length + 1), 6, name, choices=choices)
                both.prefill.start(legs[0])
                both.decode.start(legs[1])
                started.append((*legs, name))
            case "s":
                both.prefill.run(steps=1)
                both.decode.run(steps=1)
                if data.draw(st.booleans()):
                    both.work()
            case "a" if started:
                prefill, decode, _ = data.draw(st.sampled_from(started))
                side, leg = data.draw(
                    st.sampled_from([(both.prefill, prefill), (both.decode, decode)])
                )
                side.engine.handle(StopLeg(leg.id))
            case "r" if started:
                both.prefill.engine.handle(DropTransfer(data.draw(st.sampled_from(started))[2]))
            case "d":
                side = data.draw(st.sampled_from([both.prefill, both.decode]))
                side.engine.handle(MigratorDown())
                side.engine.flush()
                both.forget(side)
                side.engine.handle(MigratorUp("h:3"))
    drive(both)
    for side in (both.prefill, both.decode):
        side.clock.now += 100  # beyond every deadline
    drive(both)
    both.expire()
    drive(both)
    for prefill, decode, _ in started:
        for side, leg in ((both.prefill, prefill), (both.decode, decode)):
            assert len(side.ends(leg.id)) == 1, side.events.get(leg.id)
        for choice in decode.choices:
            whole = reference.continuation(prefill.prompt, 6, choice)
            assert both.prefill.tokens(prefill.id, choice) in ([], whole[:1])
            found = both.decode.tokens(decode.id, choice)
            assert found == whole[1 : 1 + len(found)]
    assert max(map(len, both.decode.runner.steps), default=0) <= 3
    assert both.prefill.is_quiet()
    assert both.decode.is_quiet()


def test_handoff_names_the_migrators_address(pair: Any, make_leg: Any) -> None:
    both = pair()
    prefill, _ = hand_over(make_leg, [1, 2, 3], 5, "t1")
    both.prefill.start(prefill)
    drive(both)
    (handoff,) = [e for e in both.prefill.events[prefill.id] if isinstance(e, Handoff)]
    assert handoff.source == Source("t1", "127.0.0.1:0")
