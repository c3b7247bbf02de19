"""Frames: what is sent is read, and anything else is a ProtocolError."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.wire import frames, messages

CODEC = frames.Codec(messages.EngineMessage)


async def read(data: bytes, codec=CODEC):
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await frames.read_message(reader, codec)


@given(st.text(max_size=40), st.text(max_size=40), st.floats(0, 1e9))
def test_what_is_sent_is_read(transfer, peer, timeout_ms):
    message = messages.Expect(transfer=transfer, peer=peer, timeout_ms=timeout_ms)
    assert asyncio.run(read(CODEC.encode(message))) == message


@given(st.binary(max_size=200))
def test_anything_else_is_refused_by_type(payload):
    async def check():
        with pytest.raises(frames.ProtocolError):
            await read(frames.PREFIX.pack(len(payload)) + payload)

    asyncio.run(check())


@given(st.integers(1, 20))
def test_a_cut_frame_is_refused_and_a_clean_end_is_none(cut):
    async def check():
        frame = CODEC.encode(messages.Drain())
        with pytest.raises(frames.ProtocolError, match="inside"):
            await read(frame[: min(cut, len(frame) - 1)])
        assert await read(b"") is None

    asyncio.run(check())


async def test_length_is_bounded_before_anything_is_read():
    small = frames.Codec(messages.EngineMessage, limit=64)
    with pytest.raises(frames.ProtocolError, match="over the limit of 64"):
        await read(frames.PREFIX.pack(65), small)
    with pytest.raises(frames.ProtocolError, match="over the limit of 64"):
        small.encode(messages.Abort("x" * 65))
