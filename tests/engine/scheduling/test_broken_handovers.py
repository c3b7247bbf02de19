"""Prefill on one engine, decode on another, and what goes wrong between them."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.scheduling.legs import drive, hand_over

from distserve.engine.commands import DropTransfer, MigratorDown, MigratorUp, StartDrain, StopLeg
from distserve.wire import messages as wire
from distserve.wire.dialect import LegError


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
    assert end.status == 503
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
    assert end.status == 503, "not a failed transfer: its source is well"
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
