"""Who may connect, over what, and what operators see of it."""

import asyncio
import errno
import json
import os
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from distserve.migrator import peer_messages as peer
from distserve.migrator.http import HttpServer
from distserve.migrator.metrics import Metrics
from distserve.migrator.pools import NONCE_SIZE
from distserve.migrator.process import handlers
from distserve.migrator.transports import tcp
from distserve.wire import auth, messages
from distserve.wire.frames import PREFIX
from distserve.wire.sockets import RawStream, connect_unix


async def test_auto_shares_memory_where_it_can(harness):
    p, d = await harness.pair("Auto")
    assert (await harness.one(p, d)).timings.transport == "SharedMemory"


async def test_a_quiet_lane_gives_signs_of_life_at_both_ends(harness, monkeypatch):
    """What filters between nodes forget, a transfer would wait for in vain."""
    lanes = []

    class Seen(tcp._Lane):
        def __init__(self, sock):
            super().__init__(sock)
            lanes.append(sock)

    monkeypatch.setattr(tcp, "_Lane", Seen)
    p, d = await harness.pair("TCP")
    assert (await harness.one(p, d)).timings.transport == "TCP"
    assert len(lanes) == 2
    for sock in lanes:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_auto_takes_tcp_where_the_peer_shares_nothing_and_says_why(harness):
    await harness.migrator("p", transport="TCP")
    reader = await harness.migrator("d", transport="Auto")
    p, d = await harness.engine("p"), await harness.engine("d")
    assert (await harness.one(p, d)).timings.transport == "TCP"
    (link,) = reader.target.links
    assert link.status.not_used == {"SharedMemory": "the peer shares no memory"}
    metrics = reader.metrics.text().decode()
    assert 'distserve_kv_links{transport="TCP"} 1.0' in metrics
    assert 'distserve_kv_transfer_bytes_total{direction="in",transport="TCP"} 3' in metrics
    assert 'distserve_kv_transfer_seconds_count{transport="TCP"} 1.0' in metrics
    moving, took = (
        float(metrics.split(f'distserve_kv_transfer_{name}{{transport="TCP"}} ')[1].split()[0])
        for name in ("motion_seconds_total", "seconds_sum")
    )
    assert moving == took > 0


def test_the_time_of_failed_transfers_counts_with_their_bytes() -> None:
    metrics = Metrics()
    metrics.failed("TCP", 0.5, "timeout")
    metrics.failed("", 0.0, "gone")
    text = metrics.text().decode()
    assert 'distserve_kv_transfer_motion_seconds_total{transport="TCP"} 0.5' in text
    assert 'distserve_kv_transfer_seconds_count{transport="TCP"} 0.0' in text


async def test_auto_takes_tcp_where_the_socket_cannot_be_reached(harness):
    source = await harness.migrator("p")
    await harness.migrator("d")
    p, d = await harness.engine("p"), await harness.engine("d")
    source._config.peer_socket.unlink()  # another mount namespace
    assert (await harness.one(p, d)).timings.transport == "TCP"


async def test_memory_that_is_not_the_peers_is_found_out_by_its_nonce(harness):
    """Same path, same layout, same key: only reading the nonce tells that it is another pod's."""
    p, d = await harness.pair("SharedMemory")
    with os.fdopen(os.dup(p.pools[0].fd), "r+b", buffering=0) as memory:
        memory.seek(0)
        memory.write(bytes(NONCE_SIZE))
    failed = await harness.one(p, d)
    assert failed.reason.startswith("refused: no transport works (SharedMemory: ")
    assert "nonce differs" in failed.reason


async def test_a_forced_transport_that_cannot_work_fails_clearly(harness):
    await harness.migrator("p", transport="TCP")
    await harness.migrator("d", transport="SharedMemory")
    p, d = await harness.engine("p"), await harness.engine("d")
    failed = await harness.one(p, d)
    assert failed.reason == (
        "refused: no transport works (SharedMemory: the peer shares no memory)"
    )


async def test_another_key_is_refused(harness, transport):
    await harness.migrator("p", transport=transport, key=b"x" * 32)
    await harness.migrator("d", transport=transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    failed = await harness.one(p, d)
    assert failed.reason.startswith("refused: ")
    assert "another deployment" in failed.reason


async def test_another_fingerprint_is_refused_with_its_reason(harness):
    await harness.migrator("p")
    await harness.migrator("d")
    p = await harness.engine("p", fingerprint="one")
    d = await harness.engine("d", fingerprint="two")
    failed = await harness.one(p, d)
    assert "fingerprint" in failed.reason
    assert {"one", "two"} <= set(failed.reason.replace(",", "").split())
    fitting = await harness.engine("d", fingerprint="one")  # a new revision in the same pod
    assert isinstance(await harness.one(p, fitting, "u"), messages.Fetched)


async def test_other_elements_are_refused(harness):
    """A fingerprint should say so, but memory is not trusted to it."""
    await harness.migrator("p")
    await harness.migrator("d")
    p = await harness.engine("p", harness.layout(head_dim=4, dtype="float32"))
    d = await harness.engine("d")
    assert "dtype is float32 at the peer" in (await harness.one(p, d)).reason


async def stranger(address):
    host, port = address.rsplit(":", 1)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return RawStream(sock)


async def test_a_stranger_gets_nothing_not_even_a_size(harness):
    p, d = await harness.pair()
    for data in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 60, auth.MAGIC + b"nothing!" + b"0" * 32):
        stream = await stranger(p.address)
        await stream.send(data)
        async with asyncio.timeout(10):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)) as cut:
                await stream.receive(1)
        assert getattr(cut.value, "partial", b"") == b""
        stream.close()
    path = harness.folder / "p" / "p.sock"
    stream = RawStream(await connect_unix(path))
    with pytest.raises((auth.AuthError, ConnectionError)):
        await auth.prove_as_dialer(stream, b"x" * 32, peer.SHARE)
    stream.close()
    stream = RawStream(await connect_unix(path))
    await auth.prove_as_dialer(stream, harness.key, peer.SHARE)
    await stream.send(b"s" * peer.SESSION_BYTES)  # the key alone is no session
    async with asyncio.timeout(10):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stream.receive(1)
    assert stream.fds == []
    stream.close()
    assert isinstance(await harness.one(p, d), messages.Fetched)


@pytest.mark.parametrize(
    "frame",
    [PREFIX.pack(messages.MAX_FRAME_BYTES + 1), PREFIX.pack(2) + b"\xc1\xc1", PREFIX.pack(0)],
    ids=["oversized", "garbage", "empty"],
)
async def test_a_malformed_frame_closes_its_connection_only(harness, frame):
    p, d = await harness.pair()
    stream = await stranger(p.address)
    await auth.prove_as_dialer(stream, harness.key, peer.CONTROL)
    await stream.send(frame)
    async with asyncio.timeout(10):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stream.receive(1)
    stream.close()
    assert isinstance(await harness.one(p, d), messages.Fetched)


async def test_shared_memory_is_handed_out_for_reading_only(harness):
    await harness.migrator("p")
    reader = harness.process("d")
    p, d = await harness.engine("p"), await harness.engine("d")
    await harness.one(p, d)
    maps = Path(f"/proc/{reader.popen.pid}/maps").read_text().splitlines()
    pools = sorted(line.split()[1] for line in maps if "/memfd:kv" in line)
    assert pools == ["r--s", "rw-s"]  # the peer's, its own engine's


async def test_metrics_port(harness):
    migrator = await harness.migrator("p")
    reader = await harness.migrator("d")
    p, d = await harness.engine("p"), await harness.engine("d")
    await harness.one(p, d)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = await HttpServer.start(listening, handlers(reader, harness.key))
    harness.stack.push_async_callback(server.close)

    def ask(path, method="GET", **headers):
        request = Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
        try:
            with urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    async def get(*args, **headers):
        return await asyncio.to_thread(ask, *args, **headers)

    assert await get("/healthz") == (200, b"ok\n")
    assert await get("/readyz") == (200, b"ok\n")
    assert (await get("/nothing"))[0] == 404
    for method in ("GET", "POST"):
        for wrong in ({}, {"authorization": auth.bearer(b"x" * 32)}):
            status, body = await get("/links", method, **wrong)
            assert status == 401
            assert migrator.address.encode() not in body
    await harness.until(lambda: reader.target.links[0].status.probe is not None, "the first probe")
    key = {"authorization": auth.bearer(harness.key)}
    status, first = await get("/links", **key)
    assert status == 200
    status, body = await get("/links", "POST", **key)
    assert status == 200
    assert json.loads(first)["links"].keys() == json.loads(body)["links"].keys()
    link = json.loads(body)["links"][migrator.address]
    assert (link["state"], link["transport"], link["instance"]) == ("up", "SharedMemory", "p")
    assert link["probe"]["transport"] == "SharedMemory"
    assert link["probe"]["bandwidth_bytes_per_second"] > 0
    status, body = await get("/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in body.decode().splitlines())
    shared = '{transport="SharedMemory"}'
    measured = float(samples["distserve_kv_link_bandwidth_bytes_per_second" + shared])
    assert measured == link["probe"]["bandwidth_bytes_per_second"]
    latency = float(samples["distserve_kv_link_latency_seconds" + shared])
    assert latency == pytest.approx(link["probe"]["latency_ms"] / 1e3)
    assert float(samples['distserve_kv_link_latency_seconds{transport="TCP"}']) == 0
    for bad in ("?peer=nowhere", f"?peer={migrator.address}&peer={migrator.address}"):
        assert (await get("/links" + bad, "POST", **key))[0] == 400
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(rude, b"\0" * 100 + b"\r\n\r\n")
        assert b"400 Bad Request" in await loop.sock_recv(rude, 100)


async def test_listeners_outlive_a_moment_without_descriptors(harness, monkeypatch):
    """Of engines, of readers, of readers that want to share memory."""
    loop, short = asyncio.get_running_loop(), set()
    accept = loop.sock_accept

    async def short_once(listening):
        if listening not in short:
            short.add(listening)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await accept(listening)

    monkeypatch.setattr(loop, "sock_accept", short_once)
    p, d = await harness.pair("SharedMemory")
    assert isinstance(await harness.one(p, d), messages.Fetched)
    assert len(short) == 6
