"""Deaths, leases, aborts: nothing is fetched that was not whole, and all is released."""

import asyncio
import signal

import pytest

from distserve.migrator import peer_messages as peer
from distserve.migrator.peer_messages import CONTROL
from distserve.wire import auth, messages
from distserve.wire.channel import Channel
from distserve.wire.frames import Codec
from distserve.wire.pool import TokenRange

FIRST, SECOND = TokenRange(0, 16), TokenRange(16, 32)


async def halfway(harness, p, d, lease_ms=5000):
    """A transfer `t` of which one of two chunks has arrived."""
    there, here = harness.span(0, 32, 0, 2), harness.span(0, 32, 5, 1)
    await p.offer("t", there, lease_ms=lease_ms)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", there, FIRST)
    await harness.until(lambda: d.holds(here, FIRST), "the first chunk")
    return there, here


async def works(harness, p, d, name="again"):
    """Both sides still serve transfers."""
    there, here = harness.span(0, 20, 8, 7), harness.span(0, 20, 9, 3)
    await p.offer(name, there)
    d.expect(name, p.address)
    d.fetch(name, here)
    p.ready(name, there, seed=3)
    p.commit(name)
    assert isinstance(await d.ending(name), messages.Fetched)
    assert d.holds(here, seed=3)
    assert (await p.hear(messages.Released, name)).fetched


# ---- processes that die -------------------------------------------------------------------------


async def test_the_source_migrator_is_killed(harness, transport):
    source = harness.process("p", transport)
    await harness.migrator("d", transport=transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    await halfway(harness, p, d)
    source.kill()
    failed = await d.ending("t")
    assert isinstance(failed, messages.Failed)
    assert failed.retryable
    await p.hear("closed")  # its engine knows, too

    harness.process("p", transport)  # the sidecar is restarted; the engine comes back to it
    await works(harness, await harness.engine("p"), d)
    assert len(d.endings("t")) == 1


async def test_the_reading_migrator_is_killed(harness, transport):
    """The offer outlives it, up to its lease: another instance may fetch."""
    await harness.migrator("p", transport=transport)
    reader = harness.process("d", transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    await harness.migrator("e", transport=transport)
    e = await harness.engine("e")
    there, _ = await halfway(harness, p, d)
    reader.kill()
    await d.hear("closed")
    p.ready("t", there, SECOND)
    p.commit("t")
    here = harness.span(0, 32, 4, 3)
    e.expect("t", p.address)
    e.fetch("t", here)
    assert isinstance(await e.ending("t"), messages.Fetched)
    assert e.holds(here)
    assert (await p.hear(messages.Released)).fetched


async def test_without_another_reader_the_lease_runs_out(harness, transport):
    await harness.migrator("p", transport=transport)
    reader = harness.process("d", transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    there, _ = await halfway(harness, p, d, lease_ms=1000)
    reader.kill()
    p.ready("t", there, SECOND)
    p.commit("t")
    assert await p.hear(messages.Released) == messages.Released(transfer="t", fetched=False)


async def test_a_frozen_reader_comes_back_too_late(harness, transport):
    """SIGSTOP for longer than the lease: what it read meanwhile counts for nothing."""
    await harness.migrator("p", transport=transport)
    reader = harness.process("d", transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    there, _ = await halfway(harness, p, d, lease_ms=1000)
    reader.kill(signal.SIGSTOP)
    p.ready("t", there, SECOND)
    p.commit("t")
    released = await p.hear(messages.Released)
    reader.kill(signal.SIGCONT)
    if released.fetched:  # it had finished before it was stopped
        pytest.fail("the reader was not stopped in time")
    failed = await d.ending("t")
    assert isinstance(failed, messages.Failed)
    assert failed.retryable
    await works(harness, p, d)


async def test_the_source_engine_dies(harness, transport):
    p, d = await harness.pair(transport)
    await halfway(harness, p, d)
    await p.die()
    failed = await d.ending("t")
    assert isinstance(failed, messages.Failed)
    assert failed.retryable
    await works(harness, await harness.engine("p"), d)  # another epoch, other memory


async def test_the_reading_engine_dies(harness, transport):
    p, d = await harness.pair(transport)
    there, _ = await halfway(harness, p, d)
    await d.die()
    again = await harness.engine("d")
    p.ready("t", there, SECOND)
    p.commit("t")
    here = harness.span(0, 32, 4, 3)
    again.expect("t", p.address)
    again.fetch("t", here)
    assert isinstance(await again.ending("t"), messages.Fetched)
    assert again.holds(here)
    assert not d.endings("t")


async def test_an_engine_that_restarts_unnoticed_replaces_its_former_life(harness, transport):
    p, d = await harness.pair(transport)
    await halfway(harness, p, d)
    again = await harness.engine("p")
    await p.hear("closed")
    assert isinstance(await d.ending("t"), messages.Failed)
    await works(harness, again, d)


# ---- leases -------------------------------------------------------------------------------------


async def wait_out(harness, p, lease_ms):
    """Until such a lease has run out."""
    there = harness.span(0, 16, 3)
    await p.offer("alone", there, lease_ms=lease_ms)
    p.ready("alone", there)
    p.commit("alone")
    assert not (await p.hear(messages.Released, "alone")).fetched


async def test_an_offer_nobody_expects_ends_with_its_lease(harness):
    p, _ = await harness.pair()
    await wait_out(harness, p, lease_ms=100)


async def test_a_step_longer_than_the_lease_does_not_end_its_offer(harness):
    """Nobody hears of the offer before the step is over, so nobody can keep its lease alive."""
    p, d = await harness.pair()
    there, here = harness.span(0, 32, 0, 2), harness.span(0, 32, 5, 1)
    await p.offer("t", there, lease_ms=1000)
    p.ready("t", there, FIRST)  # was cached
    await wait_out(harness, p, lease_ms=2000)
    assert not p.endings("t")
    p.ready("t", there, SECOND)
    p.commit("t")
    d.expect("t", p.address)
    d.fetch("t", here)
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)


async def test_an_offer_that_is_never_computed_ends_after_its_requests_time(harness):
    p, _ = await harness.pair()
    await p.offer("t", harness.span(0, 16, 1), lease_ms=100, timeout_ms=100)
    assert not (await p.hear(messages.Released)).fetched


async def test_heartbeats_keep_an_expected_offer_while_there_is_no_room(harness, transport):
    """EXPECT alone, without blocks, holds the lease over several times its length, although the
    link was idle before, and its heartbeats rare."""
    p, d = await harness.pair(transport)
    link = await harness.migrators["d"].target.meet(p.address)
    await harness.until(lambda: link._interval > 3, "rare heartbeats")
    there, here = harness.span(0, 16, 1), harness.span(0, 16, 2)
    await p.offer("t", there, lease_ms=1000)
    p.ready("t", there)
    p.commit("t")
    d.expect("t", p.address)
    await wait_out(harness, p, lease_ms=3000)
    assert not p.endings("t")
    d.fetch("t", here)
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)


async def test_what_ended_at_the_source_fails_at_the_reader_without_a_fetch(harness):
    p, d = await harness.pair()
    await p.offer("t", harness.span(0, 16, 1))
    d.expect("t", p.address)
    await works(harness, p, d)
    p.abort("t")
    assert not (await p.hear(messages.Released, "t")).fetched
    failed = await d.ending("t")
    assert (failed.reason, failed.retryable) == ("gone", True)


async def raw_reader(harness, address, hello):
    """A control connection as a reader opens it; (channel, source's hello)."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    await auth.prove_as_dialer(auth.AsyncioStream(reader, writer), harness.key, CONTROL)
    channel = Channel(reader, writer, Codec(peer.ReaderMessage), Codec(peer.SourceMessage))
    channel.send(hello)
    harness.stack.push_async_callback(channel.close)
    return channel


HELLO = peer.PeerHello(protocol=peer.PEER_PROTOCOL, instance="x", view=None)


async def test_done_after_the_lease_is_answered_expired(harness):
    """A reader that reads slowly and sends no heartbeat: one-sided reads notice nothing."""
    p, _ = await harness.pair()
    there = harness.span(0, 16, 1)
    await p.offer("t", there, lease_ms=1000)
    p.ready("t", there)
    p.commit("t")
    reader = await raw_reader(harness, p.address, HELLO)
    source = await anext(reader)
    reader.send(peer.Pull(transfer="t", generation=1, epoch=source.view.epoch))
    async with asyncio.timeout(10):
        answers = [await anext(reader) for _ in range(4)]
        kinds = [peer.Pulling, peer.Ready, peer.Committed, peer.PullFailed]
        assert [type(answer) for answer in answers] == kinds
        assert answers[-1].reason == "expired"
        reader.send(peer.Done("t", 1))
        assert await anext(reader) == peer.LeaseEnd(transfer="t", generation=1, ok=False)
    assert not (await p.hear(messages.Released)).fetched


async def test_pulls_of_what_is_not_there_are_answered(harness):
    p, d = await harness.pair()
    reader = await raw_reader(harness, p.address, HELLO)
    epoch = (await anext(reader)).view.epoch
    gone = [peer.PullFailed("early", 1, "gone"), peer.PullFailed("t", 2, "gone")]
    async with asyncio.timeout(10):
        reader.send(peer.Pull(transfer="early", generation=1, epoch=epoch))
        assert await anext(reader) == gone[0]
        await p.offer("t", harness.span(0, 16, 1))
        reader.send(peer.Pull(transfer="t", generation=2, epoch=epoch - 1))  # a dead engine's
        assert await anext(reader) == gone[1]
        reader.send(peer.PullAbort("nothing", 3))
        assert await anext(reader) == peer.PullAborted("nothing", 3)
        reader.send(peer.PullAborted("nothing", 3))
    await works(harness, p, d)


async def test_the_newest_pull_holds(harness):
    p, _ = await harness.pair()
    await p.offer("t", harness.span(0, 16, 1))
    first = await raw_reader(harness, p.address, HELLO)
    second = await raw_reader(harness, p.address, HELLO)
    epoch = (await anext(first)).view.epoch
    await anext(second)
    async with asyncio.timeout(10):
        first.send(peer.Pull(transfer="t", generation=1, epoch=epoch))
        assert isinstance(await anext(first), peer.Pulling)
        second.send(peer.Pull(transfer="t", generation=1, epoch=epoch))
        assert isinstance(await anext(second), peer.Pulling)
        assert await anext(first) == peer.PullFailed("t", 1, "gone: another reader pulls it")
        first.send(peer.Done("t", 1))
        assert await anext(first) == peer.LeaseEnd(transfer="t", generation=1, ok=False)
    assert not p.endings("t")


# ---- aborts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["source", "reader", "both"])
@pytest.mark.parametrize("when", ["offered", "expected", "fetching", "committed"])
async def test_abort_at_any_time(harness, transport, who, when):
    p, d = await harness.pair(transport)
    there, here = harness.span(0, 32, 0, 2), harness.span(0, 32, 5, 1)
    await p.offer("t", there, lease_ms=1000, timeout_ms=0)
    d.expect("t", p.address)
    if when in ("fetching", "committed"):
        d.fetch("t", here)
        p.ready("t", there, FIRST)
        await harness.until(lambda: d.holds(here, FIRST), "the first chunk")
    if when == "committed":
        p.ready("t", there, SECOND)
        p.commit("t")
    if who in ("source", "both"):
        p.abort("t")
    if who in ("reader", "both"):
        d.abort("t")
    ended = await d.ending("t")
    released = await p.hear(messages.Released)
    if when != "committed":  # a finished transfer may win the race, and then on both sides
        assert isinstance(ended, messages.Failed)
        assert not released.fetched
    if isinstance(ended, messages.Fetched):
        assert released.fetched
        assert d.holds(here)
    p.abort("t")
    d.abort("t")
    await works(harness, p, d)
    assert len(p.endings("t")) == len(d.endings("t")) == 1


async def test_an_abort_that_overtakes_wins(harness):
    p, d = await harness.pair()
    p.abort("t")
    p.announce("t", harness.span(0, 16, 1))
    assert not (await p.hear(messages.Released, "t")).fetched
    d.abort("u")
    d.expect("u", p.address)
    assert (await d.ending("u")).reason == "aborted"
    await works(harness, p, d)


async def test_latecomers_and_repetitions_change_nothing(harness, transport):
    p, d = await harness.pair(transport)
    await works(harness, p, d, "t")
    for side in (p, d):
        side.ready("t", harness.span(0, 20, 8, 7), seed=5)
        side.commit("t")
        side.fetch("t", harness.span(0, 20, 8, 7))
        side.abort("t")
    await works(harness, p, d)
    assert len(p.endings("t")) == len(d.endings("t")) == 1


# ---- deadlines, drain ---------------------------------------------------------------------------


async def test_a_fetch_that_gets_nothing_ends_at_its_deadline(harness):
    p, d = await harness.pair()
    await p.offer("t", harness.span(0, 16, 1))
    d.expect("t", p.address, timeout_ms=200)
    d.fetch("t", harness.span(0, 16, 1))
    assert (await d.ending("t")).reason == "timeout"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "nobody.invalid:8101"])
async def test_an_unreachable_source(harness, address):
    _, d = await harness.pair()
    d.expect("t", address)
    failed = await d.ending("t")
    assert failed.reason.startswith("unreachable: ")
    assert failed.retryable


async def test_blocks_that_the_pool_does_not_have_are_refused(harness):
    p, d = await harness.pair()
    p.announce("o", harness.span(0, 16, 64))
    assert not (await p.hear(messages.Released, "o")).fetched
    await p.offer("t", harness.span(0, 16, 1))
    d.expect("t", p.address)
    d.fetch("t", harness.span(0, 16, -1))
    failed = await d.ending("t")
    assert failed.reason.startswith("refused")
    assert not failed.retryable
    await works(harness, p, d)


async def test_fetching_more_than_was_offered_fails(harness, transport):
    p, d = await harness.pair(transport)
    there = harness.span(0, 16, 1)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", harness.span(0, 32, 1, 2))
    p.ready("t", there)
    p.commit("t")
    assert (await d.ending("t")).reason.startswith("incomplete")
    await works(harness, p, d)


async def test_drain_refuses_the_new_and_waits_for_the_old(harness):
    p, d = await harness.pair()
    there, here = await halfway(harness, p, d)
    p.send(messages.Drain())
    d.send(messages.Drain())
    d.expect("new", p.address)
    assert (await d.ending("new")).reason == "refused: draining"
    p.announce("new", there)
    await p.hear(messages.Released, "new")
    assert not [m for m in p.heard + d.heard if isinstance(m, messages.Drained)]
    p.ready("t", there, SECOND)
    p.commit("t")
    await p.hear(messages.Drained)
    await d.hear(messages.Drained)
    assert d.holds(here)
    assert isinstance(d.endings("t")[0], messages.Fetched)
