"""The reader's side of all transfers: what the engine expects and fetches, and from whom."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final

from distserve.migrator import peer_messages as peer
from distserve.migrator.alarm import Alarm
from distserve.migrator.errors import MigratorError, PieceError, TransportError
from distserve.migrator.instance import LocalInstance
from distserve.migrator.link import Link, LinkSettings
from distserve.migrator.metrics import Metrics
from distserve.migrator.pieces import Read, check_spans, reads, slot_runs
from distserve.migrator.target_transfer import (
    CancelReads,
    StartRead,
    TargetAction,
    TargetTransfer,
    ToSource,
)
from distserve.migrator.transfer import ToEngine
from distserve.migrator.transports.base import ReadJob, ReadPath
from distserve.wire import messages
from distserve.wire.pool import TokenRange

log = logging.getLogger(__name__)

READS_AT_ONCE: Final = 2
"""Per chunk of a transfer: one is being moved while the next is being asked for. Few, so that
transfers take turns."""
MAX_LINKS: Final = 256
MEET_SECONDS: Final = 3.0
"""For a peer to be met without a transfer; whoever asks over HTTP has an answer within five."""
CANCEL_SECONDS: Final = 1.0
"""How long the connection of an ended transfer's reads may stand still before it is broken. While
it moves, their turn comes, behind what other transfers wait for."""
PROBE_SECONDS: Final = 3.0
"""After which whoever asked for all links to be measured has an answer."""


class Target:
    """Feeds events into the transfers and carries out what they answer."""

    def __init__(self, settings: LinkSettings, metrics: Metrics, ended: Callable[[], None]) -> None:
        """`ended` is called whenever a transfer is over."""
        self._ended = ended
        self._settings = settings
        self._metrics = metrics
        self._instance: LocalInstance | None = None
        self._transfers: dict[str, TargetTransfer] = {}
        self._links: dict[str, Link] = {}
        self._generations = itertools.count(1)
        self._alarm = Alarm(self._tick)
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None

        metrics.count_links(
            lambda transport: sum(link.status.transport == transport for link in self.links)
        )

    def __len__(self) -> int:
        return len(self._transfers)

    @property
    def links(self) -> list[Link]:
        return list(self._links.values())

    # ---- engine ---------------------------------------------------------------------------------

    def engine_came(self, instance: LocalInstance) -> None:
        self._instance = instance
        for link in self.links:
            link.hello_changed()

    def engine_gone(self) -> None:
        """What it expected ends; sources are told; nobody is there to be told FAILED."""
        for transfer in list(self._transfers.values()):
            self._act(transfer, transfer.fail("engine gone", self._now))
        self._instance = None

    def expect(self, expect: messages.Expect) -> None:
        instance, known = self._instance, self._transfers.get(expect.transfer)
        if instance is None or (known is not None and known.epoch == instance.epoch):
            log.debug("ignored expect of %s", expect.transfer)
            return
        deadline = self._now + min(max(expect.timeout_ms, 0.0), 86_400_000) / 1e3
        transfer = TargetTransfer(
            expect.transfer, instance.epoch, expect.peer, next(self._generations), deadline
        )
        self._transfers[expect.transfer] = transfer
        self._link(expect.peer).want()
        self._alarm.at(deadline)

    def fetch(self, fetch: messages.Fetch) -> None:
        transfer, instance = self._transfers.get(fetch.transfer), self._instance
        if transfer is None or instance is None:
            log.debug("ignored fetch of %s", fetch.transfer)
            return
        try:
            check_spans(fetch.spans, instance.layout)
        except PieceError as error:
            log.warning("no fetch of %s: %s", fetch.transfer, error)
            self._act(transfer, transfer.fail(f"refused: {error}", self._now, retryable=False))
            return
        link = self._links[transfer.peer]
        self._act(transfer, transfer.fetch(fetch.spans, self._now, link.epoch))

    def abort(self, name: str) -> bool:
        """Whether such a transfer was expected."""
        transfer = self._transfers.get(name)
        if transfer:
            self._act(transfer, transfer.abort(self._now))
        return transfer is not None

    # ---- links ----------------------------------------------------------------------------------

    def live(self, link: Link) -> list[str]:
        return [t.transfer for t in self._of(link)]

    def link_up(self, link: Link) -> None:
        for transfer in self._of(link):
            if link.epoch is not None:
                self._act(transfer, transfer.link_up(link.epoch))

    def link_down(self, link: Link, reason: str) -> None:
        for transfer in self._of(link):
            self._act(transfer, transfer.link_down(reason, self._now))

    def link_failed(self, link: Link, reason: str) -> None:
        for transfer in self._of(link):
            self._act(transfer, transfer.fail(reason, self._now, tell=False))

    def not_live(self, link: Link, transfers: set[str]) -> None:
        for transfer in self._of(link):
            if transfer.transfer in transfers:
                self._act(transfer, transfer.fail("gone", self._now, tell=False))

    def handle(self, link: Link, message: peer.SourceMessage) -> None:
        """One message about a pull; hello and heartbeats are the link's."""
        if isinstance(message, peer.PeerHello | peer.Refused | peer.HeartbeatAnswer):
            return
        transfer, generation = self._transfers.get(message.transfer), message.generation
        now = self._now
        if transfer is None or transfer.peer != link.address:
            if isinstance(message, peer.PullAbort):
                link.send(peer.PullAborted(message.transfer, generation))
            log.debug("ignored %s of %s", type(message).__name__, message.transfer)
            return
        match message:
            case peer.Pulling(spans=spans):
                try:
                    link.check(spans)
                    actions = transfer.pulling(generation, spans)
                except PieceError as error:
                    actions = transfer.source_lied(generation, f"refused: {error}", now)
            case peer.Ready():
                actions = transfer.ready(generation, message.tokens, now)
            case peer.Committed():
                actions = transfer.committed(generation, message.record, now)
            case peer.LeaseEnd():
                actions = transfer.lease_ended(generation, message.ok, now)
            case peer.PullFailed():
                actions = transfer.source_failed(generation, message.reason, now)
            case peer.PullAbort():
                actions = transfer.source_aborted(generation, message.reason, now)
            case peer.PullAborted():
                actions = []
        self._act(transfer, actions)

    def _link(self, address: str) -> Link:
        """Links that are idle are remembered for `/links`, but not for ever."""
        if len(self._links) >= MAX_LINKS:
            for idle in [k for k, v in self._links.items() if v.idle and not self._of(v)]:
                del self._links[idle]
        if address not in self._links:
            self._links[address] = Link(address, self._settings, self)
        return self._links[address]

    def _of(self, link: Link) -> list[TargetTransfer]:
        return [t for t in self._transfers.values() if t.peer == link.address and not t.over]

    # ---- carrying out ---------------------------------------------------------------------------

    def _act(self, transfer: TargetTransfer, actions: Sequence[TargetAction]) -> None:
        link = self._links[transfer.peer]
        for action in actions:
            match action:
                case StartRead():
                    self._spawn(transfer, link, action.tokens)
                case CancelReads() if (path := link.path) is not None:
                    loop = asyncio.get_running_loop()
                    loop.call_later(CANCEL_SECONDS, self._break, transfer, link, path)
                case CancelReads():
                    pass  # the link is lost, and its reads with it
                case ToSource():
                    link.send(action.message)
                case ToEngine():
                    self._tell(transfer, link, action.message)

    def _tell(
        self, transfer: TargetTransfer, link: Link, message: messages.MigratorMessage
    ) -> None:
        """The last message of a transfer."""
        if self._transfers.get(transfer.transfer) is transfer:
            del self._transfers[transfer.transfer]
        if isinstance(message, messages.Failed):
            log.info("%s failed: %s", transfer.transfer, message.reason)
            self._metrics.failed(transfer.transport, transfer.motion_seconds, message.reason)
        else:
            self._metrics.fetched(transfer.transport, transfer.motion_seconds)
        if self._instance is not None and self._instance.epoch == transfer.epoch:
            self._instance.send(message)
        self._ended()
        if link.status.probe is None and link.epoch is not None and not self._of(link):
            self._keep(asyncio.create_task(self.probe(link)))

    async def meet(self, address: str) -> Link:
        """Connect to a peer before any transfer needs it, and measure the path."""
        link = self._link(address)
        await link.meet(MEET_SECONDS)
        probing = asyncio.create_task(self.probe(link))
        self._keep(probing)
        await asyncio.shield(probing)  # who asked may leave; bytes that were asked for still come
        return link

    async def probe(self, link: Link) -> None:
        """Not amid transfers: they would wait, and the figure would be of what they leave."""
        if not self._of(link) and (result := await link.probe()):
            self._metrics.probed(result)

    async def probe_all(self) -> None:
        """One link after another: two at a time would measure one another. Returns after
        PROBE_SECONDS at the latest; what is left then goes on."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_each())
            self._keep(self._probing)
        await asyncio.wait({self._probing}, timeout=PROBE_SECONDS)

    async def _probe_each(self) -> None:
        for link in self.links:
            await self.probe(link)

    def _break(self, transfer: TargetTransfer, link: Link, path: ReadPath) -> None:
        """Others' bytes are not cut off for one transfer that waits behind them; but an engine
        that is gone takes its blocks back without asking."""
        if not transfer.outstanding or link.path is not path:
            return
        rest = CANCEL_SECONDS - path.still_seconds()
        if rest > 0 and self._instance is not None and self._instance.epoch == transfer.epoch:
            asyncio.get_running_loop().call_later(rest, self._break, transfer, link, path)
            return
        log.warning("reads from %s stand still: the link is made anew", link.address)
        link.drop()

    def _spawn(self, transfer: TargetTransfer, link: Link, tokens: TokenRange) -> None:
        self._keep(asyncio.create_task(self._read(transfer, link, tokens)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, transfer: TargetTransfer, link: Link, tokens: TokenRange) -> None:
        """Copy a token range that is ready: all its pieces, a few reads at a time."""
        copied, error, instance = 0, None, self._instance
        path = link.path
        if instance is None or path is None:
            self._act(transfer, transfer.read_ended(0, "connection lost", self._now))
            return
        transfer.transport = path.name
        todo = reads(link.pieces, tokens, instance.layout)

        async def work() -> None:
            nonlocal copied, error
            try:
                for read in todo:
                    if error is not None or transfer.failure is not None:
                        return
                    size = await path.read(self._job(transfer, instance, read))
                    copied += size
                    self._metrics.moved(path.name, "in", size)
            except TransportError as broken:
                error = str(broken)
                if error == "connection lost" and link.path is path:
                    link.drop()
            except MigratorError as wrong:
                error = f"refused: {wrong}"
            except Exception as fault:  # whatever it is: only its end gives the blocks back
                log.exception("a read of %s from %s", transfer.transfer, link.address)
                error = f"refused: {fault!r}"

        await asyncio.gather(*(work() for _ in range(READS_AT_ONCE)))
        self._act(transfer, transfer.read_ended(copied, error, self._now))

    def _job(self, transfer: TargetTransfer, instance: LocalInstance, read: Read) -> ReadJob:
        """Raises PieceError when one of the sides has no such blocks or memory."""
        box, block_tokens = read.piece.source, instance.layout.block_tokens
        pool = instance.pools[read.piece.target_rank, box.pool]
        return ReadJob(
            transfer=transfer.transfer,
            generation=transfer.generation,
            box=box,
            tokens=read.tokens,
            source_runs=list(slot_runs(transfer.source_spans or [], read.tokens, block_tokens)),
            target=pool.mapped.window(box),
            target_runs=list(slot_runs(transfer.spans or [], read.tokens, block_tokens)),
        )

    def _tick(self) -> float | None:
        now = self._now
        for transfer in list(self._transfers.values()):
            self._act(transfer, transfer.tick(now))
        waiting = [t.deadline for t in self._transfers.values() if t.failure is None]
        return min(waiting, default=None)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def close(self) -> None:
        self._alarm.cancel()
        for link in self.links:
            await link.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
