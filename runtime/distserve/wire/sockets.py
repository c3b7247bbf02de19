"""Raw non-blocking sockets under asyncio: exact reads, and file descriptors beside bytes.

asyncio's streams cannot carry file descriptors, so whoever hands over a KV pool talks on the
socket itself: the engine's first frame (channel), and migrators that share memory.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_FDS: Final = 64
ACCEPT_PAUSE_SECONDS: Final = 0.1


class RawStream:
    """A ByteStream over a non-blocking socket. File descriptors arrive with the bytes that they
    were sent with; they collect in `fds` and are the caller's to close."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: list[int] = []

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            sent = 0
            while not sent:
                try:
                    sent = socket.send_fds(self.sock, [data], list(fds))
                except BlockingIOError:
                    await _ready(self.sock, writing=True)
            data = data[sent:]
        if data:  # a send of nothing to a partner that has all and left would be an error
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        """Exactly `count` bytes; raises IncompleteReadError at the end of the stream."""
        received = bytearray()
        while len(received) < count:
            try:
                chunk, fds, _, _ = socket.recv_fds(
                    self.sock, min(count - len(received), 1 << 20), MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await _ready(self.sock, writing=False)
                continue
            self.fds.extend(fds)
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(received), count)
            received += chunk
        return bytes(received)

    def take_fds(self) -> list[int]:
        """What has arrived; from now on the caller's."""
        taken, self.fds = self.fds, []
        return taken

    def close(self) -> None:
        close_fds(self.take_fds())
        self.sock.close()


def close_fds(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def listen_unix(path: str | Path) -> socket.socket:
    """A listening socket at `path` that only its user can connect to.

    A file that a killed process left behind is replaced. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Before listen(): until then nobody can connect, so there is no moment of wider access.
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(path)) from error
    return listener


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking. Out of descriptors, or the caller gone already, is said
    and tried again: whoever listens must not stop at it."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return (await loop.sock_accept(listener))[0]
        except OSError as error:
            log.warning("cannot accept: %s", error)
            await asyncio.sleep(ACCEPT_PAUSE_SECONDS)


async def connect_unix(path: str | Path) -> socket.socket:
    """A non-blocking socket connected to `path`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
    except BaseException:
        sock.close()
        raise
    return sock


async def _ready(sock: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    add(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(sock)
