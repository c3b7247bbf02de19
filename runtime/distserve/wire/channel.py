"""The Unix socket between an engine's ranks and their migrator.

The engine connects and sends HELLO with one file descriptor per pool; from then on both sides send
whenever they like. A channel that ends, ends the life of what was agreed over it: the other side
reads that as the death of its partner.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from distserve.wire.frames import PREFIX, RELAYED_FRAME_BYTES, Codec, ProtocolError, read_message
from distserve.wire.messages import EngineMessage, Hello, MigratorMessage
from distserve.wire.sockets import RawStream, accept, close_fds, connect_unix, listen_unix

log = logging.getLogger(__name__)

MAX_UNSENT_BYTES: Final = 64 << 20
"""What may wait for a partner that does not read; several commits of the largest size."""
HELLO_TIMEOUT_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 0.05

Sent = TypeVar("Sent")
Got = TypeVar("Got")


class ChannelError(Exception):
    """The channel cannot be opened; the message says what to look at."""


class ChannelClosed(ChannelError):
    """The partner is gone, or does not read what is sent to it."""


class Channel(Generic[Sent, Got]):
    """Typed messages both ways. For one event loop's thread."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sent: Codec[Sent],
        got: Codec[Got],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = sent
        self._got = got

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()

    def send(self, message: Sent) -> None:
        """Queue a message; never waits. Raises ChannelClosed, also when the partner has left more
        than MAX_UNSENT_BYTES unread: it is stuck, and the channel ends here."""
        if self.closed:
            raise ChannelClosed("the channel is closed")
        self._writer.write(self._sent.encode(message))
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._writer.transport.abort()
            raise ChannelClosed(f"the partner left {MAX_UNSENT_BYTES} bytes unread")

    def __aiter__(self) -> "Channel[Sent, Got]":
        """Messages until the partner is gone. Iterations may follow one another."""
        return self

    async def __anext__(self) -> Got:
        """Raises ProtocolError for a malformed message."""
        try:
            message = await read_message(self._reader, self._got)
        except OSError:
            message = None
        if message is None:
            self._writer.close()
            raise StopAsyncIteration
        return message

    def abort(self) -> None:
        """End it now; what is queued is lost."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Sends what is queued, then closes; a partner that does not read is not waited for."""
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


EngineChannel = Channel[EngineMessage, MigratorMessage]
"""As the engine holds it."""
MigratorChannel = Channel[MigratorMessage, EngineMessage]
"""As the migrator holds it."""
OnHello = Callable[[Hello, list[int], MigratorChannel], Awaitable[None]]


def _engine_codec() -> Codec[EngineMessage]:
    return Codec(EngineMessage)


def _migrator_codec() -> Codec[MigratorMessage]:
    return Codec(MigratorMessage, RELAYED_FRAME_BYTES)


async def connect(
    path: str | Path, hello: Hello, fds: Sequence[int], timeout_seconds: float
) -> EngineChannel:
    """Open the engine's side: HELLO and the pools' descriptors are sent, WELCOME is the first
    message to come. Tries until the migrator listens; raises ChannelError after the timeout.
    The descriptors stay the caller's."""
    if len(fds) != len(hello.pools):
        raise ValueError(f"{len(fds)} descriptors for {len(hello.pools)} pools")
    codec = _engine_codec()
    last: OSError | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                try:
                    sock = await connect_unix(path)
                except OSError as error:
                    last = error
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                try:
                    await RawStream(sock).send(codec.encode(hello), fds)
                    reader, writer = await asyncio.open_connection(sock=sock)
                except OSError as error:
                    sock.close()
                    last = error
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except BaseException:
                    sock.close()
                    raise
                return Channel(reader, writer, codec, _migrator_codec())
    except TimeoutError:
        raise ChannelError(
            f"no migrator answers on {path} ({last}); start `distserve migrator --socket {path}`"
        ) from None


class ChannelServer:
    """Accepts engines until it is closed."""

    def __init__(self, path: str | Path, on_hello: OnHello) -> None:
        self._path = Path(path)
        self._on_hello = on_hello
        self._listener = listen_unix(path)
        self._sessions: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            sock = await accept(self._listener)
            session = asyncio.create_task(self._serve(RawStream(sock)))
            self._sessions.add(session)
            session.add_done_callback(self._sessions.discard)

    async def _serve(self, stream: RawStream) -> None:
        engine = _engine_codec()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_SECONDS):
                size = engine.checked(PREFIX.unpack(await stream.receive(PREFIX.size))[0])
                hello = engine.decode(await stream.receive(size))
            if not isinstance(hello, Hello):
                raise ProtocolError(f"the first message is {type(hello).__name__}, not Hello")
            if len(stream.fds) != len(hello.pools):
                raise ProtocolError(f"{len(stream.fds)} descriptors, {len(hello.pools)} pools")
        except (ProtocolError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.warning("refused a connection on %s: %s", self._path, error or "no HELLO in time")
            stream.close()
            return
        except asyncio.CancelledError:
            stream.close()
            raise
        reader, writer = await asyncio.open_connection(sock=stream.sock)
        channel = Channel(reader, writer, _migrator_codec(), engine)
        fds = stream.take_fds()
        try:
            await self._on_hello(hello, fds, channel)
        except ProtocolError as error:
            log.warning("closed the channel of %s: %s", hello.instance, error)
        finally:
            close_fds(fds)
            await channel.close()

    async def close(self) -> None:
        """Stop listening, end the sessions, remove the file."""
        tasks = [self._accepting, *self._sessions]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        self._path.unlink(missing_ok=True)


async def serve(path: str | Path, on_hello: OnHello) -> ChannelServer:
    """Listen for engines. `on_hello(hello, fds, channel)` runs for the life of each connection;
    the descriptors are closed when it returns, so map them. Raises OSError when the path cannot
    be bound."""
    return ChannelServer(path, on_hello)
