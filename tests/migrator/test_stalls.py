"""Peers that stand still or lie: transfers end all the same, and blocks come back."""

import asyncio
import socket

import pytest

from distserve.migrator import peer_messages as peer
from distserve.migrator.pieces import Box, RankPool
from distserve.migrator.transports.tcp import HEADER
from distserve.wire import auth, messages
from distserve.wire.channel import Channel
from distserve.wire.frames import Codec
from distserve.wire.pool import TokenRange
from distserve.wire.sockets import RawStream

SESSION = b"s" * peer.SESSION_BYTES


async def test_a_reader_that_stops_reading_does_not_keep_the_blocks(harness):
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
    p.abort("t")
    async with asyncio.timeout(10):
        while not isinstance(message := await anext(control), peer.PullAbort):
            pass
    assert message.transfer == "t"
    control.send(peer.PullAborted("t", 1))
    assert not (await p.hear(messages.Released)).fetched


class LyingSource:
    """Answers as a source does, but sends no KV, or the wrong."""

    def __init__(self, harness, layout, data):
        self.harness = harness
        self.view = peer.InstanceView(
            epoch=1, fingerprint="f", tensor=1, pipeline=1, pools=[RankPool(0, layout)]
        )
        self.data = data
        self.stream = None
        self.asked = asyncio.Event()
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
                    span = self.harness.span(0, 32, 0, 1)
                    control.send(peer.Pulling(transfer=name, generation=generation, spans=[span]))
                    ready = [TokenRange(0, 32)]
                    control.send(peer.Ready(transfer=name, generation=generation, tokens=ready))
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
