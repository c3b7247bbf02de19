"""The deployment key: its file, its header, and the proof on sockets."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.wire import auth
from distserve.wire.sockets import RawStream

KEY = b"k" * 32
PURPOSES = frozenset({"control", "data"})


def test_key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"\n" + KEY + b"\r\n")
    assert auth.read_key(path) == KEY
    path.write_bytes(b"short\n")
    with pytest.raises(auth.KeyFileError, match=r"5 bytes.*openssl rand"):
        auth.read_key(path)
    for unsendable in (bytes(range(128, 160)), KEY + b"\n" + KEY, b"\0" * 32, KEY + b"\x7fk"):
        path.write_bytes(unsendable)
        with pytest.raises(auth.KeyFileError, match=r"printable ASCII.*openssl rand -hex"):
            auth.read_key(path)
    with pytest.raises(auth.KeyFileError, match=r"No such file.*--key-file"):
        auth.read_key(tmp_path / "missing")


@given(st.binary(min_size=32, max_size=80))
def test_a_key_that_is_taken_passes_as_bearer(tmp_path_factory, key):
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(key)
    with contextlib.suppress(auth.KeyFileError):
        taken = auth.read_key(path)
        assert auth.has_key(auth.bearer(taken), taken)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=32))
def test_printable_keys_are_taken(tmp_path_factory, key):
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_text("x" + key + "x")
    assert auth.read_key(path) == b"x" + key.encode() + b"x"
    assert auth.has_key(auth.bearer(auth.read_key(path)), auth.read_key(path))


@given(st.none() | st.text(max_size=80))
def test_only_the_key_passes_as_bearer(header):
    assert not auth.has_key(header, KEY)
    assert auth.has_key(auth.bearer(KEY), KEY)
    assert auth.has_key("bearer  " + KEY.decode(), KEY)


@pytest.fixture
def pair():
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    streams = [RawStream(end) for end in ends]
    yield streams
    for stream in streams:
        stream.close()


async def meet(pair, dialer_key, listener_key, purpose="control"):
    async def end(stream, proof):
        try:
            return await proof
        finally:
            stream.sock.shutdown(socket.SHUT_RDWR)

    async with asyncio.timeout(5):
        return await asyncio.gather(
            auth.prove_as_dialer(pair[0], dialer_key, purpose),
            end(pair[1], auth.prove_as_listener(pair[1], listener_key, PURPOSES)),
            return_exceptions=True,
        )


async def test_equal_keys_meet(pair):
    assert await meet(pair, KEY, KEY) == [None, "control"]


@pytest.mark.parametrize(("key", "purpose"), [(b"x" * 32, "control"), (KEY, "else")])
async def test_others_do_not(pair, key, purpose):
    assert [type(r) for r in await meet(pair, key, KEY, purpose)] == [auth.AuthError] * 2


async def test_a_listener_that_reflects_is_found_out(pair):
    async def reflect(stream):
        opening = await stream.receive(len(auth.MAGIC) + auth.PURPOSE_BYTES + auth.NONCE_BYTES)
        await stream.send(opening[-auth.NONCE_BYTES :])  # the dialer's own nonce
        await stream.send(await stream.receive(auth.PROOF_BYTES))  # and its own proof

    async with asyncio.timeout(5):
        reflection = asyncio.create_task(reflect(pair[1]))
        with pytest.raises(auth.AuthError, match="does not hold"):
            await auth.prove_as_dialer(pair[0], KEY, "control")
        await reflection


@given(st.binary(min_size=45, max_size=200))
def test_a_stranger_gets_a_nonce_at_most(data):
    async def check():
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
        here, there = (RawStream(end) for end in ends)
        await here.send(data)
        ends[0].shutdown(socket.SHUT_WR)
        with pytest.raises(auth.AuthError):
            await auth.prove_as_listener(there, KEY, PURPOSES)
        there.close()
        with contextlib.suppress(ConnectionResetError):  # closed with unread bytes: got nothing
            assert len(await asyncio.get_running_loop().sock_recv(ends[0], 1000)) in (0, 32)
        here.close()

    asyncio.run(check())
