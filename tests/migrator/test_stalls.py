"""Peers that stand still or lie: transfers end all the same, and blocks come back."""

import asyncio
import socket

import pytest

from distserve.migrator import peer_messages as peer
from distserve.migrator.errors import TransportError
from distserve.migrator.pieces import Box, RankPool
from distserve.migrator.transports.shared_memory import SharedMemoryPath
from distserve.migrator.transports.tcp import HEADER, TcpPath
from distserve.wire import auth, messages
from distserve.wire.channel import Channel
from distserve.wire.frames import Codec
from distserve.wire.pool import TokenRange
from distserve.wire.sockets import RawStream

SESSION = b"s" * peer.SESSION_BYTES


@pytest.fixture(autouse=True)
def patient_sockets(monkeypatch):
    """What ends here, ends before the sockets' own time is over."""
    monkeypatch.setattr("distserve.migrator.transports.tcp.IDLE_TIMEOUT_SECONDS", 60)


async def stopped_reading(harness):
    """A source of `t` and the control connection of a reader that takes none of its bytes."""
    await harness.migrator("p")
    p = await harness.engine("p", harness.layout(blocks=2048))
    there = harness.span(0, 32000, *range(2000))
    await p.offer("t", there)
    p.ready("t", there)
    host, port = p.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    await auth.prove_as_dialer(auth.AsyncioStream(reader, writer), harness.key, peer.CONTROL)
    control = Channel(reader, writer, Codec(peer.ReaderMessage), Codec(peer.SourceMessage))
    harness.stack.push_async_callback(control.close)
    control.send(peer.PeerHello(protocol=peer.PEER_PROTOCOL, instance="x", view=None))
    hello = await anext(control)

    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    data = RawStream(sock)
    harness.stack.callback(data.close)
    await auth.prove_as_dialer(data, harness.key, peer.DATA)
    await data.send(hello.session)
    assert await data.receive(1) == b"\1"
    control.send(peer.Pull(transfer="t", generation=1, epoch=hello.view.epoch))
    everything = Box(0, "main", 0, 3, 0, 4)
    request = peer.ReadRequest(
        transfer="t", generation=1, read=1, box=everything, tokens=TokenRange(0, 32000)
    )
    control.send(request)
    await data.receive(HEADER.size)  # 49 MB are on their way, and nobody takes them
    return p, control


async def test_a_reader_that_stops_reading_does_not_keep_the_blocks(harness):
    p, control = await stopped_reading(harness)
    p.abort("t")
    async with asyncio.timeout(10):
        while not isinstance(message := await anext(control), peer.PullAbort):
            pass
    assert message.transfer == "t"
    control.send(peer.PullAborted("t", 1))
    assert not (await p.hear(messages.Released)).fetched


class LyingSource:
    """Answers as a source does, but sends no KV, or the wrong, or names what it has not."""

    def __init__(self, harness, layout, data, *spans):
        self.harness = harness
        self.view = peer.InstanceView(
            epoch=1, fingerprint="f", tensor=1, pipeline=1, pools=[RankPool(0, layout)]
        )
        self.data = data
        self.spans = list(spans) or [harness.span(0, 32, 0, 1)]
        self.stream = None
        self.asked = asyncio.Event()
        self.left = False
        self.tasks = []

    async def start(self):
        self.server = await asyncio.start_server(self.meet, "127.0.0.1", 0)
        host, port = self.server.sockets[0].getsockname()
        self.harness.stack.push_async_callback(self.close)
        return f"{host}:{port}"

    async def close(self):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def meet(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        stream = auth.AsyncioStream(reader, writer)
        purpose = await auth.prove_as_listener(stream, self.harness.key, peer.PURPOSES)
        try:
            if purpose == peer.DATA:
                await stream.receive(peer.SESSION_BYTES)
                await stream.send(b"\1")
                self.stream = stream
                await asyncio.Event().wait()
            await self.talk(
                Channel(reader, writer, Codec(peer.SourceMessage), Codec(peer.ReaderMessage))
            )
        finally:
            writer.close()

    async def talk(self, control):
        async for message in control:
            match message:
                case peer.PeerHello():
                    control.send(
                        peer.PeerHello(
                            protocol=peer.PEER_PROTOCOL,
                            instance="liar",
                            view=self.view,
                            session=SESSION,
                        )
                    )
                case peer.Heartbeat(sequence=sequence, live=live):
                    control.send(
                        peer.HeartbeatAnswer(
                            sequence=sequence, epoch=1, live=live, interval_ms=1000
                        )
                    )
                case peer.Pull(transfer=name, generation=generation):
                    pulling = peer.Pulling(transfer=name, generation=generation, spans=self.spans)
                    control.send(pulling)
                    ready = [TokenRange(0, 32)]
                    control.send(peer.Ready(transfer=name, generation=generation, tokens=ready))
                case peer.PullAbort():
                    self.left = True
                case peer.ReadRequest(read=read):
                    self.asked.set()
                    if self.data is not None:
                        await self.stream.send(self.data(read))


async def test_a_source_that_sends_nothing_does_not_hold_an_aborted_fetch(harness):
    """The copy is in motion until its connection is broken; only then comes FAILED."""
    await harness.migrator("d")
    d = await harness.engine("d")
    source = LyingSource(harness, harness.layout(), None)
    d.expect("t", await source.start())
    d.fetch("t", harness.span(0, 32, 5, 1))
    async with asyncio.timeout(10):
        await source.asked.wait()
    d.abort("t")
    assert (await d.ending("t")).reason == "aborted"


@pytest.mark.parametrize(
    "data",
    [
        lambda read: HEADER.pack(read + 1, 10),
        lambda read: HEADER.pack(read, 1 << 60),
        lambda read: b"x" * 16,
    ],
    ids=["another read", "another size", "garbage"],
)
async def test_bytes_that_were_not_asked_for_end_the_transfer(harness, data):
    await harness.migrator("d")
    d = await harness.engine("d")
    source = LyingSource(harness, harness.layout(), data)
    d.expect("t", await source.start())
    d.fetch("t", harness.span(0, 32, 5, 1))
    failed = await d.ending("t")
    assert (failed.reason, failed.retryable) == ("connection lost", True)


@pytest.mark.parametrize(
    "span",
    [(0, 32, 0), (-16, 32, 0, 1, 2), (0, 32, -1, 0), (0, 32, 0, 64), (8, 40, 0, 1), (0, 0)],
    ids=["too few", "before the first", "below zero", "beyond the pool", "askew", "empty"],
)
async def test_blocks_that_a_source_cannot_have_end_the_transfer(harness, span):
    await harness.migrator("d")
    d = await harness.engine("d")
    source = LyingSource(harness, harness.layout(blocks=64), None, harness.span(*span))
    d.expect("t", await source.start())
    d.fetch("t", harness.span(0, 32, 5, 1))
    failed = await d.ending("t")
    assert failed.reason.startswith("refused: ")
    assert failed.retryable
    assert not source.asked.is_set()
    await harness.until(lambda: source.left, "the word that the pull is over")


async def test_a_read_that_fails_as_none_should_gives_the_blocks_back(
    harness, transport, monkeypatch
):
    """Whatever is wrong here: the engine waits for the transfer's end, and for nothing else."""

    async def read(self, job):
        raise IndexError("of nothing that was thought of")

    for path in (SharedMemoryPath, TcpPath):
        monkeypatch.setattr(path, "read", read)
    p, d = await harness.pair(transport)
    there = harness.span(0, 32, 0, 1)
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", harness.span(0, 32, 5, 1))
    p.ready("t", there)
    failed = await d.ending("t")
    assert failed.reason == "refused: IndexError('of nothing that was thought of')"
    assert not len(harness.migrators["d"].target)


# ---- a lane that many transfers share -----------------------------------------------------------

PIECE = 64 << 10


class SlowNet:
    """Stands between a reader and its source: on data connections, what the source sends passes in
    small pieces with a pause after each, or nothing passes at all, not even their end."""

    def __init__(self, harness, address):
        self.harness = harness
        self.host, self.port = address.rsplit(":", 1)
        self.passes = asyncio.Event()
        self.passes.set()
        self.passed = 0
        self.writers = []
        self.connections = 0

    async def start(self):
        self.server = await asyncio.start_server(self.meet, "127.0.0.1", 0)
        self.harness.stack.push_async_callback(self.close)
        host, port = self.server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def close(self):
        self.passes.set()
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def meet(self, reader, writer):
        self.connections += 1
        is_data = self.connections % 2 == 0  # each link's control connection comes first
        sock = socket.socket()
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE
        )  # so that it waits at the source
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, int(self.port)))
        upstream, sender = await asyncio.open_connection(sock=sock, limit=PIECE)
        self.writers += [writer, sender]
        back = self.pump(upstream, writer, is_data)
        await asyncio.gather(self.pump(reader, sender, is_data), back)

    async def pump(self, reader, writer, slow=False):
        try:
            while data := await reader.read(PIECE):
                if slow:
                    await asyncio.sleep(0.01)
                    await self.passes.wait()
                    self.passed += len(data) > 64  # not what opens it
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            if slow:
                await self.passes.wait()
            writer.close()


async def one_behind_another(harness):
    """A transfer `t` that fills a slow lane, and `u`, whose reads wait behind it at the source."""
    await harness.migrator("p", transport="TCP")
    await harness.migrator("d", transport="TCP")
    pool = harness.layout(blocks=2048)
    p, d = await harness.engine("p", pool), await harness.engine("d", pool)
    net = SlowNet(harness, p.address)
    address = await net.start()
    there, here = harness.span(0, 14400, *range(900)), harness.span(0, 14400, *range(1000, 1900))
    await p.offer("t", there, lease_ms=60_000)
    d.expect("t", address, timeout_ms=60_000)
    d.fetch("t", here)
    for start in range(0, 14400, 2400):  # 22 MB: two reads of each chunk are under way
        p.ready("t", there, TokenRange(start, start + 2400))
    p.commit("t")
    await harness.until(lambda: net.passed, "the first bytes")
    behind = harness.span(0, 32, 1950, 1951)
    await p.offer("u", behind, lease_ms=60_000)
    d.expect("u", address, timeout_ms=60_000)
    d.fetch("u", harness.span(0, 32, 2000, 2001))
    p.ready("u", behind)
    offers = harness.migrators["p"].source._transfers
    await harness.until(lambda: offers["u"].reads, "the read of `u`")
    return p, d, net, here


async def test_a_client_that_leaves_a_slow_lane_breaks_nobodys_transfer(harness):
    """Its reads wait behind others' for longer than a stalled lane is left alone."""
    p, d, _, here = await one_behind_another(harness)
    (link,) = harness.migrators["d"].target.links
    path = link.path
    d.abort("u")
    p.abort("u")
    assert (await d.ending("u")).reason == "aborted"
    assert not (await p.hear(messages.Released, "u")).fetched
    fetched = await d.ending("t")
    assert isinstance(fetched, messages.Fetched)
    assert d.holds(here)
    assert link.path is path
    out = 'distserve_kv_transfer_bytes_total{direction="out",transport="TCP"} '
    sent = harness.migrators["p"].metrics.text().decode().split(out)[1].split()[0]
    assert float(sent) == fetched.timings.bytes, "nothing of what nobody wants any more was sent"


@pytest.mark.parametrize("side", ["source", "reader"])
async def test_a_lane_that_stands_still_is_broken_for_who_waits_behind(harness, side):
    p, d, net, _ = await one_behind_another(harness)
    net.passes.clear()
    if side == "reader":
        d.abort("u")
        assert (await d.ending("u")).reason == "aborted"
    else:
        p.abort("u")
        assert not (await p.hear(messages.Released, "u")).fetched
    net.passes.set()
    failed = await d.ending("t")
    assert (failed.reason, failed.retryable) == ("connection lost", True)


@pytest.mark.parametrize("side", ["source", "reader"])
async def test_a_lane_is_not_waited_for_when_the_engine_is_gone(harness, monkeypatch, side):
    """It takes its blocks back after the lease, and does not ask. Here every lane seems to move."""
    for end in ("TcpPath", "TcpSender"):
        monkeypatch.setattr(
            f"distserve.migrator.transports.tcp.{end}.still_seconds", lambda self: 0.0
        )
    if side == "reader":
        _, d, net, _ = await one_behind_another(harness)
        net.passes.clear()
        await d.die()
        await harness.until(lambda: not len(harness.migrators["d"].target), "the end of all reads")
    else:
        p, _ = await stopped_reading(harness)
        await p.die()
        await harness.until(lambda: not len(harness.migrators["p"].source), "the end of all sends")


async def test_a_read_that_ends_late_leaves_the_next_connection_alone(harness, monkeypatch):
    ends = asyncio.Event()

    async def read(path, job):
        await ends.wait()
        raise TransportError("connection lost")

    monkeypatch.setattr(TcpPath, "read", read)
    await harness.migrator("p", transport="TCP")
    await harness.migrator("d", transport="TCP")
    p, d = await harness.engine("p"), await harness.engine("d")
    there = harness.span(0, 32, 0, 1)
    await p.offer("t", there)
    p.ready("t", there)
    d.expect("t", p.address)
    d.fetch("t", harness.span(0, 32, 5, 1))
    target = harness.migrators["d"].target
    await harness.until(lambda: any(t.outstanding for t in target._transfers.values()), "a read")
    (link,) = target.links
    before = link.path
    link.drop()
    d.expect("u", p.address)
    await harness.until(lambda: link.path not in (None, before), "the next connection")
    after = link.path
    ends.set()
    assert isinstance(await d.ending("t"), messages.Failed)
    assert link.path is after
