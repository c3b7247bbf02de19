"""The engine of this pod as its migrator knows it: the ranks that said HELLO and their pools."""

import logging
from dataclasses import dataclass, field

from distserve.migrator.peer_messages import InstanceView
from distserve.migrator.pieces import RankPool
from distserve.migrator.pools import MappedPool
from distserve.wire.channel import ChannelClosed, MigratorChannel
from distserve.wire.messages import Hello, MigratorMessage
from distserve.wire.pool import PoolLayout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalPool:
    pool: RankPool
    mapped: MappedPool
    fd: int
    nonce: bytes


@dataclass(slots=True)
class LocalInstance:
    """One life (epoch) of the engine. Complete when all its ranks are here; the first rank's
    messages speak for all."""

    hello: Hello
    pools: dict[tuple[int, str], LocalPool] = field(default_factory=dict)
    channels: dict[int, MigratorChannel] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        return self.hello.epoch

    @property
    def complete(self) -> bool:
        return len(self.channels) == self.hello.tensor * self.hello.pipeline

    @property
    def layout(self) -> PoolLayout:
        """Of any rank: block size and number of blocks are equal on all."""
        return next(iter(self.pools.values())).pool.layout

    def fits(self, hello: Hello) -> bool:
        """Whether this rank belongs to this life."""
        own = self.hello
        same = (own.epoch, own.fingerprint, own.tensor, own.pipeline)
        return same == (hello.epoch, hello.fingerprint, hello.tensor, hello.pipeline)

    def join(self, hello: Hello, fds: list[int], channel: MigratorChannel) -> None:
        """A rank says HELLO. Raises PieceError or OSError when its pool cannot be mapped."""
        for layout, fd in zip(hello.pools, fds, strict=True):
            mapped = MappedPool(fd, layout, writable=True)
            pool = RankPool(hello.rank, layout)
            self.pools[hello.rank, layout.name] = LocalPool(pool, mapped, fd, mapped.renew_nonce())
        self.channels[hello.rank] = channel

    def view(self) -> InstanceView | None:
        """For peers; None until complete."""
        if not self.complete:
            return None
        return InstanceView(
            epoch=self.epoch,
            fingerprint=self.hello.fingerprint,
            tensor=self.hello.tensor,
            pipeline=self.hello.pipeline,
            pools=[local.pool for _, local in sorted(self.pools.items())],
        )

    def nonces(self) -> list[bytes]:
        """In the order of `view().pools`."""
        return [local.nonce for _, local in sorted(self.pools.items())]

    def shared(self) -> list[tuple[RankPool, int]]:
        """Pools with their descriptors, in the same order."""
        return [(local.pool, local.fd) for _, local in sorted(self.pools.items())]

    def send(self, message: MigratorMessage) -> None:
        """To the rank that leads. Its death is noticed where its messages are read."""
        channel = self.channels.get(0)
        if channel is None:
            return
        try:
            channel.send(message)
        except ChannelClosed as error:
            log.debug("engine %s: %s", self.hello.instance, error)
