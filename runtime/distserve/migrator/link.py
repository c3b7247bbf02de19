"""The reader's connection to one source: dialled when a transfer needs it, kept while both live.

idle -- want --> connecting -- key, hello, transport --> up -- lost --> connecting, if wanted
  '<-- refused, or unreachable for too long: what waits fails --'
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

from distserve.migrator import addresses
from distserve.migrator import peer_messages as peer
from distserve.migrator.errors import LinkRefused, MigratorError, PieceError, TransportError
from distserve.migrator.listener import mismatch
from distserve.migrator.pieces import Piece, check_spans, cut
from distserve.migrator.probe import ProbeResult, probe
from distserve.migrator.transports.base import ReadPath
from distserve.migrator.transports.shared_memory import SharedMemoryPath
from distserve.migrator.transports.tcp import TcpPath
from distserve.wire import auth
from distserve.wire.channel import Channel, ChannelClosed
from distserve.wire.frames import RELAYED_FRAME_BYTES, Codec, ProtocolError
from distserve.wire.pool import BlockSpan
from distserve.wire.sockets import RawStream

log = logging.getLogger(__name__)

DIAL_TIMEOUT_SECONDS: Final = 3.0
GIVE_UP_SECONDS: Final = 3.0
"""How long a source may be unreachable before the transfers that wait for it fail: the time of a
sidecar's restart, after which its offers are gone anyway."""
FIRST_BACKOFF_SECONDS: Final = 0.05
LONGEST_BACKOFF_SECONDS: Final = 1.0
FIRST_HEARTBEAT_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 5.0
"""A source that leaves a heartbeat unanswered for so long, and three intervals, is lost."""

SourceChannel = Channel[peer.ReaderMessage, peer.SourceMessage]


class LinkOwner(Protocol):
    """Who has the transfers."""

    def live(self, link: "Link") -> list[str]: ...
    def link_up(self, link: "Link") -> None: ...
    def link_down(self, link: "Link", reason: str) -> None: ...
    def link_failed(self, link: "Link", reason: str) -> None: ...
    def not_live(self, link: "Link", transfers: set[str]) -> None: ...
    def handle(self, link: "Link", message: peer.SourceMessage) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links of a migrator share."""

    key: bytes
    transports: tuple[str, ...]
    """In the order to try."""
    hello: Callable[[], peer.PeerHello]
    threads: ThreadPoolExecutor
    """Copies of shared memory."""


@dataclass(slots=True)
class LinkStatus:
    """What `/links` shows."""

    state: str = "idle"
    instance: str = ""
    transport: str = ""
    not_used: dict[str, str] = field(default_factory=dict)
    """Transports tried in vain, with the reason."""
    error: str = ""
    probe: ProbeResult | None = None


class Link:
    def __init__(self, address: str, settings: LinkSettings, owner: LinkOwner) -> None:
        self.address = address
        self.status = LinkStatus()
        self.path: ReadPath | None = None
        self.pieces: list[Piece] = []
        self._settings = settings
        self._owner = owner
        self._hello: peer.PeerHello | None = None
        self._channel: SourceChannel | None = None
        self._task: asyncio.Task[None] | None = None
        self._kick = asyncio.Event()
        self._interval = FIRST_HEARTBEAT_SECONDS
        self._unanswered: dict[int, tuple[float, set[str]]] = {}
        self._open_path = asyncio.Event()
        self._probing = asyncio.Lock()

    @property
    def epoch(self) -> int | None:
        """Of the source's engine; None unless KV can be read."""
        up = self.path is not None and self._hello is not None and self._hello.view is not None
        return self._hello.view.epoch if up and self._hello and self._hello.view else None

    @property
    def idle(self) -> bool:
        return self._task is None or self._task.done()

    def check(self, spans: Sequence[BlockSpan]) -> None:
        """Raises PieceError unless the source's pools, as it announced them, have these blocks."""
        view = self._hello.view if self._hello is not None else None
        for pool in view.pools if view is not None else ():
            check_spans(spans, pool.layout)

    def want(self) -> None:
        """A transfer needs this link: dial, or tell the source at once that its lease is on."""
        if self.idle:
            self._task = asyncio.create_task(self._run())
        self._kick.set()

    def send(self, message: peer.ReaderMessage) -> None:
        """A lost source is noticed where its messages are read."""
        try:
            if self._channel is not None:
                self._channel.send(message)
        except ChannelClosed as error:
            log.debug("source %s: %s", self.address, error)

    def hello_changed(self) -> None:
        """The engine here came or went: its pools are others. The link starts anew if wanted."""
        if self._task is not None:
            self.drop()

    def drop(self) -> None:
        """End the connection; the link makes a new one if transfers wait for it."""
        if self.path is not None:
            self._close_path()  # from now on transfers wait for the next connection
        if self._channel is not None:
            self._channel.abort()

    async def meet(self, seconds: float) -> None:
        """Dial without a transfer; until KV can be read, or it is clear that it cannot be."""
        self.want()
        assert self._task is not None
        opened = asyncio.create_task(self._open_path.wait())
        await asyncio.wait(
            {opened, self._task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        opened.cancel()

    async def probe(self) -> ProbeResult | None:
        """Measure the path, if there is one. Never raises for a lost link."""
        async with self._probing:
            path = self.path
            if path is None:
                return None
            try:
                result = await probe(path)
            except TransportError as error:
                log.debug("no probe of %s: %s", self.address, error)
                return None
            if self.path is not path:
                return None  # closed meanwhile: nobody reads over it
            self.status.probe = result
            return result

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ---- life -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        failing_since, backoff = clock(), FIRST_BACKOFF_SECONDS
        while True:
            try:
                self.status.state = "connecting"
                await self._connect()
                await self._converse()
                reason = "connection lost"
            except (LinkRefused, PieceError) as error:
                self._disconnected(str(error))
                log.warning("no KV from %s: %s", self.address, error)
                self._owner.link_failed(self, f"refused: {error}")
                return
            except MigratorError as error:
                reason = str(error)
            except (ProtocolError, OSError, TimeoutError) as error:
                reason = f"connection lost: {error or 'no answer'}"
            except BaseException:
                self._disconnected("closed")
                raise
            if self.status.state == "up":
                failing_since, backoff = clock(), FIRST_BACKOFF_SECONDS
            self._disconnected(reason)
            self._owner.link_down(self, reason)
            if not self._owner.live(self):
                return
            if clock() - failing_since >= GIVE_UP_SECONDS:
                self._owner.link_failed(self, reason)
                return
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    async def _connect(self) -> None:
        sock = await addresses.dial(self.address, DIAL_TIMEOUT_SECONDS)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_SECONDS):
                await auth.prove_as_dialer(RawStream(sock), self._settings.key, peer.CONTROL)
                streams = await asyncio.open_connection(sock=sock)
        except auth.AuthError as error:
            sock.close()
            raise LinkRefused(str(error)) from error
        except BaseException:
            sock.close()
            raise
        self._channel = Channel(
            *streams, Codec(peer.ReaderMessage), Codec(peer.SourceMessage, RELAYED_FRAME_BYTES)
        )
        own = self._settings.hello()
        self._channel.send(own)

    async def _converse(self) -> None:
        """Until the source is gone (returns or raises)."""
        assert self._channel is not None
        beating = asyncio.create_task(self._beat())
        try:
            async for message in self._channel:
                match message:
                    case peer.PeerHello():
                        await self._greeted(message)
                    case peer.Refused(reason=reason):
                        raise LinkRefused(reason)
                    case peer.HeartbeatAnswer():
                        self._answered(message)
                    case _:
                        self._owner.handle(self, message)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _greeted(self, hello: peer.PeerHello) -> None:
        """First, and whenever the source's engine came or went."""
        own = self._settings.hello()
        if reason := mismatch(own, hello.view, hello.protocol):
            raise LinkRefused(reason)
        if self.path is not None:
            self._close_path()
            self._owner.link_down(self, "engine gone")
        self._hello = hello
        self.status.state, self.status.error, self.status.instance = "up", "", hello.instance
        if own.view is None or hello.view is None:
            where = "here" if own.view is None else "at the source"
            self.status.error = f"there is no engine {where}"
            self._kick.set()  # heartbeats say that nothing is live there
            return
        self.pieces = cut(hello.view.pools, own.view.pools)
        self.path = await self._open(hello)
        self.status.transport = self.path.name
        self._open_path.set()
        log.info("reading from %s (%s) over %s", hello.instance, self.address, self.path.name)
        self._kick.set()
        self._owner.link_up(self)

    def _close_path(self) -> None:
        if self.path is not None:
            self.path.close()
        self.path = None
        self.status.transport, self.status.probe = "", None  # they were of that path
        self._open_path.clear()

    async def _open(self, hello: peer.PeerHello) -> ReadPath:
        """The first transport that works. Raises LinkRefused when none does."""
        self.status.not_used = {}
        for name in self._settings.transports:
            try:
                if name == SharedMemoryPath.name:
                    settings = self._settings
                    return await SharedMemoryPath.open(hello, settings.key, settings.threads)
                sock = await addresses.dial(self.address, DIAL_TIMEOUT_SECONDS)
                return await TcpPath.open(sock, hello, self._settings.key, self.send)
            except TransportError as error:
                log.info("not over %s from %s: %s", name, self.address, error)
                self.status.not_used[name] = str(error)
        tried = "; ".join(f"{name}: {why}" for name, why in self.status.not_used.items())
        raise LinkRefused(f"no transport works ({tried})")

    def _disconnected(self, reason: str) -> None:
        self.drop()
        self._channel = self._hello = None
        self._unanswered.clear()
        self._interval = FIRST_HEARTBEAT_SECONDS
        self.status.state, self.status.error = "idle", reason

    # ---- heartbeats -----------------------------------------------------------------------------

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        own = self._settings.hello()
        for sequence in itertools.count(1):
            live = self._owner.live(self)
            self._unanswered[sequence] = (clock(), set(live))
            epoch = own.view.epoch if own.view else 0
            self.send(peer.Heartbeat(sequence=sequence, epoch=epoch, live=live))
            self._kick.clear()
            try:
                async with asyncio.timeout(self._interval):
                    await self._kick.wait()
            except TimeoutError:
                pass
            oldest = min((sent for sent, _ in self._unanswered.values()), default=clock())
            if clock() - oldest > max(SILENCE_SECONDS, 3 * self._interval):
                log.warning("source %s does not answer heartbeats", self.address)
                self.drop()
                return

    def _answered(self, answer: peer.HeartbeatAnswer) -> None:
        _, listed = self._unanswered.pop(answer.sequence, (0.0, set[str]()))
        interval = min(max(answer.interval_ms / 1e3, 0.01), 5.0)
        if interval < self._interval:
            self._kick.set()  # the wait that runs is an idle link's, and may outlast the lease
        self._interval = interval
        if lost := listed - set(answer.live):
            self._owner.not_live(self, lost)


def transports_for(choice: str) -> tuple[str, ...]:
    """Order of `--transport`: copying within the machine before sending."""
    return (SharedMemoryPath.name, TcpPath.name) if choice == "Auto" else (choice,)
