"""The source's side of all transfers: offers and their leases, and the readers that pull them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Final

from distserve.migrator import peer_messages as peer
from distserve.migrator.alarm import Alarm
from distserve.migrator.errors import PieceError
from distserve.migrator.instance import LocalInstance
from distserve.migrator.metrics import Metrics
from distserve.migrator.pieces import check_spans, slot_runs
from distserve.migrator.source_transfer import (
    ACK_SECONDS,
    CutReader,
    SourceAction,
    SourceTransfer,
    ToReader,
    unknown,
)
from distserve.migrator.transports.tcp import PROBE_BYTES, TcpSender
from distserve.wire import messages
from distserve.wire.channel import Channel, ChannelClosed

log = logging.getLogger(__name__)

ReaderChannel = Channel[peer.SourceMessage, peer.ReaderMessage]
HEARTBEATS_PER_LEASE: Final = 6
IDLE_HEARTBEAT_SECONDS: Final = 5.0


@dataclass(slots=True)
class Reader:
    """A migrator that reads from here: its control connection, and its data connection if any."""

    number: int
    channel: ReaderChannel
    name: str = ""
    data: TcpSender | None = None
    sends: set[asyncio.Task[None]] = field(default_factory=set)

    def send(self, message: peer.SourceMessage) -> None:
        """A reader's death is noticed where its messages are read."""
        try:
            self.channel.send(message)
        except ChannelClosed as error:
            log.debug("reader %s: %s", self.name, error)


class Source:
    """Feeds events into the transfers and carries out what they answer."""

    def __init__(self, metrics: Metrics, ended: Callable[[], None]) -> None:
        """`ended` is called whenever a transfer is over."""
        self._ended = ended
        self._metrics = metrics
        self._instance: LocalInstance | None = None
        self._transfers: dict[str, SourceTransfer] = {}
        self._readers: dict[int, Reader] = {}
        self._alarm = Alarm(self._tick)

    def __len__(self) -> int:
        return len(self._transfers)

    # ---- engine ---------------------------------------------------------------------------------

    def engine_came(self, instance: LocalInstance) -> None:
        self._instance = instance

    def engine_gone(self) -> None:
        """Its offers end; nobody is there to be told RELEASED."""
        self._instance = None
        for transfer in list(self._transfers.values()):
            self._act(transfer, transfer.abort(self._now, "engine gone"))

    def offer(self, offer: messages.Offer) -> None:
        instance = self._instance
        known = self._transfers.get(offer.transfer)
        if instance is None or (known is not None and known.epoch == instance.epoch):
            log.debug("ignored offer of %s", offer.transfer)
            return
        try:
            check_spans(offer.spans, instance.layout)
            if not 0 < offer.lease_ms < 86_400_000:
                raise PieceError(f"a lease of {offer.lease_ms} ms")
        except PieceError as error:
            log.warning("no offer of %s: %s", offer.transfer, error)
            instance.send(messages.Released(transfer=offer.transfer, fetched=False))
            return
        timeout, lease = min(max(offer.timeout_ms, 0.0), 86_400_000) / 1e3, offer.lease_ms / 1e3
        deadline = self._now + timeout + lease
        transfer = SourceTransfer(offer.transfer, instance.epoch, offer.spans, lease, deadline)
        self._transfers[offer.transfer] = transfer
        self._metrics.leases.set(len(self._transfers))
        instance.send(messages.Offered(offer.transfer))
        self._alarm.at(transfer.deadline)

    def chunk_ready(self, message: messages.ChunkReady) -> None:
        if transfer := self._transfers.get(message.transfer):
            self._act(transfer, transfer.chunk_ready(message.tokens))

    def commit(self, message: messages.Commit) -> None:
        if transfer := self._transfers.get(message.transfer):
            self._act(transfer, transfer.commit(message.record, self._now))

    def abort(self, name: str) -> bool:
        """Whether there was such an offer."""
        transfer = self._transfers.get(name)
        if transfer:
            self._act(transfer, transfer.abort(self._now))
        return transfer is not None

    # ---- readers --------------------------------------------------------------------------------

    def reader_came(self, reader: Reader) -> None:
        self._readers[reader.number] = reader

    def reader_gone(self, reader: Reader) -> None:
        self._readers.pop(reader.number, None)
        if reader.data:
            reader.data.close()
        for transfer in list(self._transfers.values()):
            self._act(transfer, transfer.reader_gone(reader.number))

    def handle(self, reader: Reader, message: peer.ReaderMessage) -> None:
        """One message of a reader that said hello."""
        match message:
            case peer.Heartbeat():
                self._heartbeat(reader, message)
            case peer.ProbeRequest():
                self._probe(reader, message)
            case peer.ReadRequest():
                self._read(reader, message)
            case peer.Pull(transfer=name, generation=generation):
                if transfer := self._transfers.get(name):
                    pulled = transfer.pulled(reader.number, generation, message.epoch, self._now)
                    self._act(transfer, pulled)
                else:
                    reader.send(unknown(name, generation))
            case peer.Done(transfer=name, generation=generation):
                if transfer := self._transfers.get(name):
                    self._act(transfer, transfer.done(reader.number, generation, self._now))
                else:
                    reader.send(peer.LeaseEnd(transfer=name, generation=generation, ok=False))
            case peer.PullAbort(transfer=name, generation=generation):
                if transfer := self._transfers.get(name):
                    self._act(transfer, transfer.pull_aborted(reader.number, generation))
                else:
                    reader.send(peer.PullAborted(name, generation))
            case peer.PullAborted(transfer=name, generation=generation):
                if transfer := self._transfers.get(name):
                    self._act(transfer, transfer.acknowledged(reader.number, generation))
            case peer.PeerHello():
                pass  # the listener's

    def _heartbeat(self, reader: Reader, message: peer.Heartbeat) -> None:
        found = [t for name in message.live if (t := self._transfers.get(name))]
        for transfer in found:
            self._act(transfer, transfer.renew(self._now))
        held = [t for t in found if not t.ending and not t.over]
        self._metrics.renewed.inc(len(held))
        lease = min((t.lease_seconds for t in held), default=float("inf"))
        seconds = min(lease / HEARTBEATS_PER_LEASE, IDLE_HEARTBEAT_SECONDS)
        answer = peer.HeartbeatAnswer(
            sequence=message.sequence,
            epoch=self._instance.epoch if self._instance else 0,
            live=[t.transfer for t in held],
            interval_ms=seconds * 1e3,
        )
        reader.send(answer)

    def _read(self, reader: Reader, request: peer.ReadRequest) -> None:
        transfer = self._transfers.get(request.transfer)
        instance, data = self._instance, reader.data
        if data is None:
            log.debug("reader %s asks for bytes without a data connection", reader.name)
            return
        may = transfer and transfer.may_read(reader.number, request.generation, self._now)
        if transfer is None or instance is None or not may:
            self._spawn(reader, data.refuse(request.read))
            return
        local = instance.pools.get((request.box.rank, request.box.pool))
        try:
            if local is None:
                raise PieceError(f"no pool of rank {request.box.rank}")
            window = local.mapped.window(request.box)
            block_tokens = local.pool.layout.block_tokens
            runs = list(slot_runs(transfer.spans, request.tokens, block_tokens))
        except PieceError as error:
            log.warning("reader %s asks for what is not here: %s", reader.name, error)
            self._spawn(reader, data.refuse(request.read))
            return

        clock = asyncio.get_running_loop().time

        async def send(sender: TcpSender, transfer: SourceTransfer) -> None:
            def wanted() -> bool:
                return transfer.may_read(reader.number, request.generation, clock())

            try:
                sent = await sender.send(request.read, window, runs, wanted)
                self._metrics.moved("TCP", "out", sent)
            finally:
                self._act(transfer, transfer.read_ended(reader.number))

        transfer.read_started(reader.number)
        self._spawn(reader, send(data, transfer))

    def _probe(self, reader: Reader, request: peer.ProbeRequest) -> None:
        if reader.data and 0 < request.bytes <= PROBE_BYTES:
            self._spawn(reader, reader.data.probe(request.read, request.bytes))

    def _spawn(self, reader: Reader, sending: Coroutine[None, None, None]) -> None:
        async def guarded() -> None:
            try:
                await sending
            except OSError as error:
                log.debug("data connection of reader %s: %s", reader.name, error)

        task = asyncio.create_task(guarded())
        reader.sends.add(task)
        task.add_done_callback(reader.sends.discard)

    # ---- carrying out ---------------------------------------------------------------------------

    def _act(self, transfer: SourceTransfer, actions: Sequence[SourceAction]) -> None:
        for action in actions:
            if isinstance(action, ToReader):
                if reader := self._readers.get(action.reader):
                    reader.send(action.message)
            elif isinstance(action, CutReader):
                self._cut(transfer, self._readers.get(action.reader))
            elif self._instance and self._instance.epoch == transfer.epoch:
                self._instance.send(action.message)
        if transfer.over and self._transfers.get(transfer.transfer) is transfer:
            del self._transfers[transfer.transfer]
            self._metrics.leases.set(len(self._transfers))
            self._metrics.expired.inc(transfer.expired)
            self._ended()
        elif not transfer.over:
            self._alarm.at(transfer.deadline)

    def _cut(self, transfer: SourceTransfer, reader: Reader | None) -> None:
        """Others' bytes are not cut off for one transfer that waits behind them; but an engine
        that is gone takes its blocks back without asking."""
        if reader is None or reader.data is None:
            return
        is_served = self._instance is not None and self._instance.epoch == transfer.epoch
        if reader.data.still_seconds() >= ACK_SECONDS or not is_served:
            log.warning("what reader %s asked for stands still: it is cut off", reader.name)
            reader.data.close()

    def _tick(self) -> float | None:
        now = self._now
        for transfer in list(self._transfers.values()):
            if now >= transfer.deadline:
                self._act(transfer, transfer.tick(now))
        return min((t.deadline for t in self._transfers.values()), default=None)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def close(self) -> None:
        self._alarm.cancel()
