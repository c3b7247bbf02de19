"""TCP: the source sends out of its pool, the reader receives into its own. No copy in between.

A data connection belongs to one control connection and carries what was asked for there, in that
order: a header, then the bytes (layer, k then v, token, head). Blocking sockets in one thread per
connection: a system call moves megabytes, and the event loop stays free for heartbeats.
"""

import asyncio
import contextlib
import functools
import itertools
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np

from distserve.migrator.errors import TransportError
from distserve.migrator.peer_messages import DATA, PeerHello, ProbeRequest, ReadRequest
from distserve.migrator.pieces import SlotRun
from distserve.migrator.pools import Bytes, rows
from distserve.migrator.transports.base import ReadJob
from distserve.wire import auth
from distserve.wire.sockets import RawStream

T = TypeVar("T")
Move = Callable[[list[memoryview]], int]
"""Moves the first bytes of these buffers over a socket and says how many."""
HEADER: Final = struct.Struct(">QQ")
"""Number of the read, bytes that follow (none: the source refuses it)."""
IDLE_TIMEOUT_SECONDS: Final = 10.0
"""How long a started read may stand still."""
OPEN_TIMEOUT_SECONDS: Final = 3.0
QUIET_SECONDS: Final = 60
"""After so long without a byte the kernel sends a sign of life: filters between nodes forget what
is quiet, some within minutes, and the first transfer of the morning would wait in vain."""
PROBE_BYTES: Final = 64 << 20
"""Most that a source sends for one request of a probe."""
_PROBE_BUFFER_BYTES: Final = 4 << 20
"""Sent and received into again and again. A step is one request: the threads' and loops' ways to
each other, once for every 4 MiB, took a sixth of what a machine's own loop carries."""
BUFFERS_PER_CALL: Final = 512
"""Below the kernel's IOV_MAX of 1024."""


def send_rows(send: Move, read: int, parts: Sequence[Bytes]) -> int:
    """Header and rows, straight from their memory; rows with gaps (a slice of the heads) are
    packed one by one. The rows' bytes. Blocks; raises OSError."""
    size = sum(part.size for part in parts)
    buffers = [memoryview(HEADER.pack(read, size))]
    buffers += [np.ascontiguousarray(part).data.cast("B") for part in parts]
    _each(buffers, send)
    return size


def receive_rows(receive: Move, read: int, parts: Sequence[Bytes]) -> int:
    """Fill rows with the next read's bytes. Blocks; raises OSError, TransportError."""
    header = bytearray(HEADER.size)
    _each([memoryview(header)], receive)
    number, size = HEADER.unpack(header)
    expected = sum(part.size for part in parts)
    if number == read and size == 0:
        raise TransportError("refused")
    if number != read or size != expected:
        raise TransportError(f"read {read} of {expected} bytes came as {number} of {size}")
    packed = [(part, np.empty(part.shape, np.uint8)) for part in parts if not part.data.contiguous]
    into = iter([buffer for _, buffer in packed])
    direct = [part if part.data.contiguous else next(into) for part in parts]
    _each([d.data.cast("B") for d in direct], receive)
    for part, buffer in packed:
        part[:] = buffer
    return expected


def _each(buffers: list[memoryview], move: Move) -> None:
    """Call `move` until it has moved all of `buffers`."""
    position = 0
    while position < len(buffers):
        moved = move(buffers[position : position + BUFFERS_PER_CALL])
        if moved == 0:
            raise ConnectionError("the peer closed the data connection")
        while position < len(buffers) and moved >= len(buffers[position]):
            moved -= len(buffers[position])
            position += 1
        if moved:
            buffers[position] = buffers[position][moved:]


@functools.cache
def _probe_bytes() -> Bytes:
    """Ones: zeros that nobody wrote are one page of memory, faster to read than any pool."""
    return np.ones(_PROBE_BUFFER_BYTES, np.uint8)


def _repeated(buffer: Bytes, size: int) -> list[Bytes]:
    """`size` bytes, all of them in `buffer`."""
    return [buffer[: size - at] for at in range(0, size, buffer.size)]


class _Lane:
    """One data connection and the thread that owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET_SECONDS)
        sock.settimeout(IDLE_TIMEOUT_SECONDS)
        self.sock = sock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-data")
        self._moved_at = time.monotonic()
        self.closed = False

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do `work` after all that was given before."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def send(self, buffers: list[memoryview]) -> int:
        return self._moved(self.sock.sendmsg(buffers))

    def receive(self, buffers: list[memoryview]) -> int:
        return self._moved(self.sock.recvmsg_into(buffers)[0])

    def _moved(self, count: int) -> int:
        self._moved_at = time.monotonic()
        return count

    def still_seconds(self) -> float:
        """For how long no byte of any read has moved, though some may wait here."""
        return time.monotonic() - self._moved_at

    def close(self) -> None:
        """Ends what blocks on the socket at once; the thread then closes it."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.submit(self.sock.close)
        self._thread.shutdown(wait=False)


class TcpSender:
    """The source's end of a data connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._lane = _Lane(sock)

    async def send(
        self, read: int, window: Bytes, runs: Sequence[SlotRun], wanted: Callable[[], bool]
    ) -> int:
        """Bytes sent. `wanted` is asked, in the lane's thread, when the read's turn has come: if it
        is not any more, the read is refused. Raises OSError."""
        parts = list(rows(window, runs))
        return await self._send(read, lambda: parts if wanted() else [])

    async def refuse(self, read: int) -> None:
        await self._send(read, list)

    async def probe(self, read: int, size: int) -> None:
        await self._send(read, lambda: _repeated(_probe_bytes(), size))

    async def _send(self, read: int, parts: Callable[[], Sequence[Bytes]]) -> int:
        if self._lane.closed:
            raise ConnectionError("the data connection is closed")
        try:
            return await self._lane.run(lambda: send_rows(self._lane.send, read, parts()))
        except OSError:
            self._lane.close()
            raise

    def still_seconds(self) -> float:
        """For how long no byte has gone out."""
        return self._lane.still_seconds()

    def close(self) -> None:
        self._lane.close()


class TcpPath:
    """The reader's end. `ask` sends a request on the control connection."""

    name: Final = "TCP"

    def __init__(
        self,
        sock: socket.socket,
        ask: Callable[[ReadRequest | ProbeRequest], None],
        probe_bytes: int = PROBE_BYTES,
    ) -> None:
        self._lane = _Lane(sock)
        self._ask = ask
        self._probe_bytes = probe_bytes
        self._reads = itertools.count(1)

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        hello: PeerHello,
        key: bytes,
        ask: Callable[[ReadRequest | ProbeRequest], None],
    ) -> "TcpPath":
        """`sock` is connected to the peer. Raises TransportError."""
        stream = RawStream(sock)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await auth.prove_as_dialer(stream, key, DATA)
                await stream.send(hello.session)
                await stream.receive(1)
        except (OSError, auth.AuthError, TimeoutError, asyncio.IncompleteReadError) as error:
            stream.close()
            raise TransportError(f"no data connection: {error or 'no answer'}") from error
        except BaseException:
            stream.close()
            raise
        return cls(sock, ask, hello.probe_bytes)

    async def read(self, job: ReadJob) -> int:
        read = next(self._reads)
        request = ReadRequest(
            transfer=job.transfer,
            generation=job.generation,
            read=read,
            box=job.box,
            tokens=job.tokens,
        )
        return await self._receive(read, request, list(rows(job.target, job.target_runs)))

    async def probe(self, size: int) -> float:
        # Pages exist before the clock starts.
        buffer = np.ones(min(size, _PROBE_BUFFER_BYTES), np.uint8)
        parts = [min(self._probe_bytes, size - at) for at in range(0, size, self._probe_bytes)]
        start = time.perf_counter()
        await asyncio.gather(*(self._probe(part, buffer) for part in parts))
        return time.perf_counter() - start

    async def _probe(self, size: int, buffer: Bytes) -> None:
        read = next(self._reads)
        await self._receive(read, ProbeRequest(read=read, bytes=size), _repeated(buffer, size))

    async def _receive(
        self, read: int, request: ReadRequest | ProbeRequest, parts: Sequence[Bytes]
    ) -> int:
        if self._lane.closed:
            raise TransportError("connection lost")
        # Asked and queued in one step of the event loop: bytes come in the order of the requests.
        self._ask(request)
        try:
            return await self._lane.run(lambda: receive_rows(self._lane.receive, read, parts))
        except (OSError, TransportError) as error:
            if str(error) == "refused":
                raise
            self._lane.close()
            raise TransportError("connection lost") from error

    def still_seconds(self) -> float:
        return self._lane.still_seconds()

    def close(self) -> None:
        self._lane.close()
