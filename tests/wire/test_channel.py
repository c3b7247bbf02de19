"""Engine and migrator on a real Unix socket: messages, descriptors, and who is refused."""

import asyncio
import os
import socket
import stat

import pytest

from distserve.wire import channel, frames, messages
from distserve.wire.pool import BlockSpan, PoolLayout, TokenRange

LAYOUT = PoolLayout(
    layer_start=0, layers=1, head_start=0, kv_heads=1, head_dim=4, block_tokens=4, blocks=2,
    dtype="float32",
)  # fmt: skip
HELLO = messages.Hello(instance="a", epoch=1, fingerprint="f", pools=[LAYOUT])
OFFER = messages.Offer(
    transfer="t", spans=[BlockSpan(TokenRange(0, 3), [1])], timeout_ms=1000, lease_ms=1000
)


@pytest.fixture
def memory():
    fd = os.memfd_create("pool")
    os.write(fd, b"hello")
    yield fd
    os.close(fd)


@pytest.fixture
async def echo(tmp_path):
    """Answers HELLO with what it read from the pool, and each offer with OFFERED."""
    seen = []

    async def on_hello(hello, fds, session):
        address = os.pread(fds[0], 5, 0).decode()
        session.send(messages.Welcome(address=address, epoch=hello.epoch))
        async for message in session:
            seen.append(message)
            session.send(messages.Offered(message.transfer))
        seen.append("ended")

    server = await channel.serve(tmp_path / "run" / "m.sock", on_hello)
    yield tmp_path / "run" / "m.sock", seen
    await server.close()


async def test_hello_carries_the_pool_and_messages_go_both_ways(echo, memory):
    path, seen = echo
    session = await channel.connect(path, HELLO, [memory], 5)
    messages_in = aiter(session)
    assert await anext(messages_in) == messages.Welcome(address="hello", epoch=1)
    session.send(OFFER)
    assert await anext(messages_in) == messages.Offered("t")
    await session.close()
    while "ended" not in seen:
        await asyncio.sleep(0.01)
    assert seen == [OFFER, "ended"]
    with pytest.raises(channel.ChannelClosed):
        session.send(OFFER)


async def test_only_its_user_may_connect_and_the_file_goes_away(tmp_path, memory):
    async def on_hello(hello, fds, session): ...

    path = tmp_path / "m.sock"
    path.touch()  # left behind by a killed process
    server = await channel.serve(path, on_hello)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    session = await channel.connect(path, HELLO, [memory], 5)
    assert [message async for message in session] == []
    await session.close()
    await server.close()
    assert not path.exists()


async def test_connecting_waits_for_the_migrator_but_not_for_ever(tmp_path, memory):
    with pytest.raises(channel.ChannelError, match="distserve migrator --socket"):
        await channel.connect(tmp_path / "nobody.sock", HELLO, [memory], 0.2)


@pytest.mark.parametrize(
    "sent",
    [
        frames.PREFIX.pack(messages.MAX_FRAME_BYTES + 1),
        frames.PREFIX.pack(3) + b"\xc1\xc1\xc1",
        frames.Codec(messages.EngineMessage).encode(OFFER),
        frames.Codec(messages.EngineMessage).encode(HELLO),  # without its descriptor
        b"\0\0",
    ],
    ids=["oversized", "garbage", "no hello first", "no descriptor", "cut"],
)
async def test_a_stranger_is_closed_without_an_answer(echo, sent):
    path, _ = echo
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stranger, str(path))
        await loop.sock_sendall(stranger, sent)
        stranger.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            assert await loop.sock_recv(stranger, 100) == b""


async def test_a_partner_that_does_not_read_ends_the_channel(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(channel, "MAX_UNSENT_BYTES", 1 << 20)
    hold = asyncio.Event()

    async def on_hello(hello, fds, session):
        await hold.wait()

    server = await channel.serve(tmp_path / "m.sock", on_hello)
    session = await channel.connect(tmp_path / "m.sock", HELLO, [memory], 5)
    with pytest.raises(channel.ChannelClosed, match="unread"):
        for _ in range(100_000):
            session.send(OFFER)
    await session.close()
    hold.set()
    await server.close()
