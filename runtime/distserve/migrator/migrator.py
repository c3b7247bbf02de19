"""The migrator: its engine on one side, other migrators on the other; `process` runs it.

What engines say goes to `Source` (offers) and `Target` (expectations); what readers say comes
through `Listener` to `Source`; what sources say comes through each `Link` to `Target`.
"""

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distserve.migrator import addresses
from distserve.migrator.errors import PieceError
from distserve.migrator.instance import LocalInstance
from distserve.migrator.link import LinkSettings, transports_for
from distserve.migrator.listener import Listener
from distserve.migrator.metrics import Metrics
from distserve.migrator.peer_messages import PEER_PROTOCOL, PeerHello
from distserve.migrator.pieces import RankPool
from distserve.migrator.source import Source
from distserve.migrator.target import Target
from distserve.migrator.transports.shared_memory import Share
from distserve.migrator.transports.tcp import PROBE_BYTES
from distserve.wire import channel, messages

log = logging.getLogger(__name__)

TOMBSTONES: Final = 4096
COPY_THREADS: Final = 2
DRAIN_SECONDS: Final = 5.0
"""What SIGTERM leaves to running transfers; the engine, stopped before, has drained longer."""


@dataclass(frozen=True, slots=True)
class Config:
    instance: str
    host: str
    port: int
    socket: Path
    peer_socket: Path
    transport: str
    key: bytes


class Migrator:
    """`start` binds, `close` ends everything. Ports of 0 are chosen by the kernel."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.metrics = Metrics()
        self._threads = ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="kv-copy")
        settings = LinkSettings(
            config.key, transports_for(config.transport), self._hello, self._threads
        )
        self.source = Source(self.metrics, self._transfer_ended)
        self.target = Target(settings, self.metrics, self._transfer_ended)
        self._instance: LocalInstance | None = None
        self._aborted: OrderedDict[str, None] = OrderedDict()
        self._draining = self._owes_drained = False
        self.address = ""

    async def start(self) -> None:
        """Raises OSError when a port or path cannot be bound."""
        config = self._config
        listening = addresses.listen(config.host, config.port)
        self.address = addresses.join(config.host, listening.getsockname()[1])
        self._listener = Listener(listening, config.key, self.source, self._hello)
        self._share = Share(config.peer_socket, config.key, self._shared)
        self._engines = await channel.serve(config.socket, self._engine)
        log.info("listening on %s and %s", self.address, config.socket)

    async def close(self) -> None:
        await self._engines.close()
        await self._share.close()
        await self._listener.close()
        await self.target.close()
        self.source.close()
        self._threads.shutdown(wait=False)

    async def drain(self) -> None:
        """Take nothing new; wait for what runs, at most DRAIN_SECONDS."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self._busy and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)

    @property
    def _busy(self) -> bool:
        return len(self.source) + len(self.target) > 0

    # ---- what peers are shown -------------------------------------------------------------------

    def _hello(self) -> PeerHello:
        config, instance = self._config, self._instance
        view = instance.view() if instance else None
        sharing = "SharedMemory" in transports_for(config.transport)
        return PeerHello(
            protocol=PEER_PROTOCOL,
            instance=config.instance,
            view=view,
            share=str(config.peer_socket.absolute()) if sharing else "",
            nonces=instance.nonces() if instance and view else [],
            probe_bytes=PROBE_BYTES,
        )

    def _shared(self, session: bytes) -> list[tuple[RankPool, int]] | None:
        if self._instance is None or not self._listener.knows(session):
            return None
        return self._instance.shared()

    # ---- engine ---------------------------------------------------------------------------------

    async def _engine(
        self, hello: messages.Hello, fds: list[int], session: channel.MigratorChannel
    ) -> None:
        """One rank's life."""
        instance = self._admit(hello, fds, session)
        if instance is None:
            return
        session.send(messages.Welcome(address=self.address, epoch=hello.epoch))
        if instance.complete:
            log.info("engine %s of epoch %d is here", hello.instance, hello.epoch)
            self.source.engine_came(instance)
            self.target.engine_came(instance)
            self._listener.instance_changed()
        try:
            async for message in session:
                if self._instance is not instance:
                    return
                self._handle(instance, message)
        except channel.ChannelClosed as error:
            log.warning("engine %s: %s", hello.instance, error)
        finally:
            if self._instance is instance:
                log.info("engine %s of epoch %d is gone", hello.instance, hello.epoch)
                self._end()

    def _admit(
        self, hello: messages.Hello, fds: list[int], session: channel.MigratorChannel
    ) -> LocalInstance | None:
        instance = self._instance
        if instance is not None and hello.epoch < instance.epoch:
            log.warning("refused a rank of epoch %d, %d is here", hello.epoch, instance.epoch)
            return None
        if instance is not None and hello.epoch > instance.epoch:
            self._end()
            instance = None
        if instance is None:
            instance = LocalInstance(hello)
        elif hello.rank in instance.channels or not instance.fits(hello):
            log.warning("refused rank %d: not of this instance, or here already", hello.rank)
            return None
        try:
            instance.join(hello, fds, session)
        except (PieceError, OSError, ValueError) as error:
            log.error("cannot map the pool of rank %d: %s", hello.rank, error)
            return None
        self._instance = instance
        return instance

    def _end(self) -> None:
        """The engine is gone, or another life of it is here: all that it had ends."""
        instance, self._instance = self._instance, None
        self._draining = self._owes_drained = False
        self.source.engine_gone()
        self.target.engine_gone()
        self._listener.instance_changed()
        for session in instance.channels.values() if instance else ():
            session.abort()

    def _handle(self, instance: LocalInstance, message: messages.EngineMessage) -> None:
        match message:
            case messages.Offer(transfer=name):
                log.info("offered", extra=_of(message))
                if self._welcome(name):
                    self.source.offer(message)
                else:
                    instance.send(messages.Released(transfer=name, fetched=False))
            case messages.ChunkReady():
                self.source.chunk_ready(message)
            case messages.Commit():
                self.source.commit(message)
            case messages.Expect(transfer=name):
                log.info("expected from %s", message.peer, extra=_of(message))
                if self._welcome(name):
                    self.target.expect(message)
                else:
                    reason = (
                        "refused: a rank is missing" if not instance.complete
                        else "refused: draining" if self._draining
                        else "aborted"
                    )  # fmt: skip
                    retryable = reason != "aborted"
                    failed = messages.Failed(transfer=name, reason=reason, retryable=retryable)
                    instance.send(failed)
            case messages.Fetch():
                self.target.fetch(message)
            case messages.Abort(transfer=name):
                offered, expected = self.source.abort(name), self.target.abort(name)
                if not offered and not expected:
                    self._bury(name)
            case messages.Drain():
                self._draining = self._owes_drained = True
            case messages.Hello():
                log.warning("ignored a second HELLO of rank %d", message.rank)
        self._transfer_ended()

    def _welcome(self, name: str) -> bool:
        """Whether a transfer may begin: all ranks are here, and no abort has overtaken it."""
        if self._instance is None or not self._instance.complete:
            return False
        if name in self._aborted:
            del self._aborted[name]
            return False
        return not self._draining

    def _bury(self, name: str) -> None:
        self._aborted[name] = None
        while len(self._aborted) > TOMBSTONES:
            self._aborted.popitem(last=False)

    def _transfer_ended(self) -> None:
        if self._owes_drained and not self._busy and self._instance is not None:
            self._owes_drained = False
            self._instance.send(messages.Drained())


def _of(message: messages.Offer | messages.Expect) -> dict[str, str]:
    """Log fields: later lines name the transfer alone, this one joins it to its request."""
    return {"transfer": message.transfer, "request_id": message.request_id}
