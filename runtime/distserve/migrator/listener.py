"""The port where other migrators arrive: key first, then control or data connection."""

import asyncio
import contextlib
import itertools
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from distserve.migrator import peer_messages as peer
from distserve.migrator.source import Reader, Source
from distserve.migrator.transports.tcp import TcpSender
from distserve.wire import auth
from distserve.wire.channel import Channel
from distserve.wire.frames import RELAYED_FRAME_BYTES, Codec, ProtocolError
from distserve.wire.sockets import RawStream, accept

log = logging.getLogger(__name__)

OPEN_TIMEOUT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 30.0
"""Six idle heartbeats: a reader behind a cut cable is forgotten. Its leases end much earlier."""
MAX_STRANGERS: Final = 256
"""Connections that have not proved the key yet; the next ones wait in the kernel's queue until one
has, or the oldest has had its time: dialers wait for 3 s, behind a full queue as well."""
FAIR_SECONDS: Final = 1.0
FULL_PAUSE_SECONDS: Final = 0.02


@dataclass(slots=True)
class Session:
    """A control connection on which hello was said."""

    reader: Reader
    token: bytes
    view: peer.InstanceView | None


class Listener:
    """Accepts readers for `source` until it is closed. `hello()` is what they are told."""

    def __init__(
        self,
        listening: socket.socket,
        key: bytes,
        source: Source,
        hello: Callable[[], peer.PeerHello],
    ) -> None:
        self._listening = listening
        self._key = key
        self._source = source
        self._hello = hello
        self._sessions: dict[bytes, Session] = {}
        self._numbers = itertools.count(1)
        self._strangers: dict[socket.socket, float] = {}
        """The oldest first, and when they came."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._keep(asyncio.create_task(self._accept()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def knows(self, token: bytes) -> bool:
        """Whether a session of this token is open (others get no memory)."""
        return token in self._sessions

    def instance_changed(self) -> None:
        """The engine came or went: readers are told, and leave if they do not fit any more."""
        for session in list(self._sessions.values()):
            if reason := self._mismatch(session.view):
                self._refuse(session.reader, reason)
            else:
                session.reader.send(self._own_hello(session.token))

    async def _accept(self) -> None:
        while True:
            sock = await accept(self._listening)
            self._strangers[sock] = asyncio.get_running_loop().time()
            self._keep(asyncio.create_task(self._meet(sock)))
            while len(self._strangers) >= MAX_STRANGERS:
                await self._make_room()

    async def _make_room(self) -> None:
        oldest, came = next(iter(self._strangers.items()))
        if asyncio.get_running_loop().time() - came < FAIR_SECONDS:
            await asyncio.sleep(FULL_PAUSE_SECONDS)
            return
        del self._strangers[oldest]
        with contextlib.suppress(OSError):  # it left by itself
            oldest.shutdown(socket.SHUT_RDWR)  # which ends its `_meet`

    async def _meet(self, sock: socket.socket) -> None:
        stream = RawStream(sock)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                purpose = await auth.prove_as_listener(stream, self._key, peer.PURPOSES)
                if purpose == peer.DATA:
                    await self._attach(stream)
                    return
        except (OSError, auth.AuthError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.warning("turned a connection away: %s", error or "it did not prove its key in time")
            stream.close()
            return
        except BaseException:
            stream.close()
            raise
        finally:
            self._strangers.pop(sock, None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        streams = await asyncio.open_connection(sock=sock)
        channel: Channel[peer.SourceMessage, peer.ReaderMessage] = Channel(
            *streams, Codec(peer.SourceMessage, RELAYED_FRAME_BYTES), Codec(peer.ReaderMessage)
        )
        try:
            async with asyncio.timeout(SILENCE_SECONDS) as silence:
                await self._serve(Reader(next(self._numbers), channel), silence)
        except (ProtocolError, TimeoutError) as error:
            log.warning("closed a control connection: %s", error or "silent for too long")
        finally:
            await channel.close()

    async def _attach(self, stream: RawStream) -> None:
        session = self._sessions.get(await stream.receive(peer.SESSION_BYTES))
        if session is None:
            raise auth.AuthError("a data connection of no session")
        await stream.send(b"\1")
        if session.reader.data is not None:
            session.reader.data.close()
        session.reader.data = TcpSender(stream.sock)

    async def _serve(self, reader: Reader, silence: asyncio.Timeout) -> None:
        session: Session | None = None
        clock = asyncio.get_running_loop().time
        try:
            async for message in reader.channel:
                silence.reschedule(clock() + SILENCE_SECONDS)
                if isinstance(message, peer.PeerHello):
                    if reason := self._mismatch(message.view, message.protocol):
                        self._refuse(reader, reason)
                        return
                    if session is not None:
                        session.view = message.view
                        continue
                    reader.name = message.instance
                    token = secrets.token_bytes(peer.SESSION_BYTES)
                    session = self._sessions[token] = Session(reader, token, message.view)
                    self._source.reader_came(reader)
                    reader.send(self._own_hello(token))
                elif session is None:
                    raise ProtocolError(f"{type(message).__name__} before hello")
                else:
                    self._source.handle(reader, message)
        finally:
            if session is not None:
                del self._sessions[session.token]
                self._source.reader_gone(reader)

    def _own_hello(self, token: bytes) -> peer.PeerHello:
        return structs.replace(self._hello(), session=token)

    def _mismatch(
        self, view: peer.InstanceView | None, protocol: int = peer.PEER_PROTOCOL
    ) -> str | None:
        return mismatch(self._hello(), view, protocol)

    def _refuse(self, reader: Reader, reason: str) -> None:
        log.warning("refused reader %s: %s", reader.name, reason)
        reader.send(peer.Refused(reason))
        self._keep(asyncio.create_task(reader.channel.close()))

    async def close(self) -> None:
        self._listening.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def mismatch(own: peer.PeerHello, view: peer.InstanceView | None, protocol: int) -> str | None:
    """Why the peer's KV is of no use here, None if it is. Instances without engine wait."""
    if protocol != peer.PEER_PROTOCOL:
        return f"protocol {protocol} at the peer, {peer.PEER_PROTOCOL} here"
    if own.view and view and own.view.fingerprint != view.fingerprint:
        return (
            f"fingerprint {view.fingerprint} at the peer, {own.view.fingerprint} here: model, "
            "dtype or block size differ"
        )
    return None
