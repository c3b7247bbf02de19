"""SharedMemory: the reader maps the source's pools and copies out of them.

The source hands its memory over on a Unix socket, opened anew for reading only, to readers that
proved the key and know a running session. That the memory is the peer's is proved by the nonces
in its pools, which came over the authenticated control connection.
"""

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from distserve.migrator.errors import MigratorError, TransportError
from distserve.migrator.peer_messages import SESSION_BYTES, SHARE, PeerHello
from distserve.migrator.pieces import RankPool, align
from distserve.migrator.pools import MappedPool, copy
from distserve.migrator.transports.base import ReadJob
from distserve.wire import auth
from distserve.wire.frames import PREFIX, Codec, ProtocolError
from distserve.wire.sockets import RawStream, accept, close_fds, connect_unix, listen_unix

log = logging.getLogger(__name__)

OPEN_TIMEOUT_SECONDS: Final = 1.0
PROBE_BYTES: Final = 16 << 20
"""A probe's steps go through the pool in windows of this size: no cache of one core holds it."""
INLINE_BYTES: Final = 64 << 10
"""A copy that takes less than the way to a thread and back."""


class Shared(Struct, frozen=True, tag="shared"):
    """Comes with one file descriptor per pool."""

    pools: list[RankPool]


class SharedMemoryPath:
    """Reads from the mapped pools of one peer."""

    name: Final = "SharedMemory"

    def __init__(self, pools: dict[tuple[int, str], MappedPool], threads: ThreadPoolExecutor):
        self._pools = pools
        self._threads = threads
        self._closed = False

    @classmethod
    async def open(
        cls, hello: PeerHello, key: bytes, threads: ThreadPoolExecutor
    ) -> "SharedMemoryPath":
        """Raises TransportError when the peer's memory cannot be had or is not the peer's."""
        if not hello.share or hello.view is None:
            raise TransportError("the peer shares no memory")
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                shared, fds = await _receive(hello, key)
        except FileNotFoundError:
            raise TransportError(f"{hello.share} does not exist here") from None
        except TimeoutError:
            raise TransportError(f"no answer on {hello.share}") from None
        except (OSError, auth.AuthError, ProtocolError, asyncio.IncompleteReadError) as error:
            raise TransportError(f"{hello.share}: {error}") from error
        try:
            if shared.pools != hello.view.pools or len(fds) != len(shared.pools):
                raise TransportError("the peer shares other pools than it announced")
            pools = {}
            for fd, pool, nonce in zip(fds, shared.pools, hello.nonces, strict=True):
                mapped = MappedPool(fd, pool.layout, writable=False)
                if not hmac.compare_digest(mapped.nonce, nonce):
                    raise TransportError("the memory reached is not the peer's: its nonce differs")
                pools[pool.rank, pool.layout.name] = mapped
        except (OSError, MigratorError, ValueError) as error:
            raise TransportError(str(error)) from error
        finally:
            close_fds(fds)
        return cls(pools, threads)

    async def read(self, job: ReadJob) -> int:
        if self._closed:
            raise TransportError("connection lost")
        pool = self._pools.get((job.box.rank, job.box.pool))
        if pool is None:
            raise TransportError(f"no pool of rank {job.box.rank} is mapped")
        window = pool.window(job.box)
        copies = list(align(job.source_runs, job.target_runs))
        limit = window.shape[2]
        if any(c.source + c.slots > limit for c in copies):
            raise TransportError("the peer names blocks that its pool does not have")
        size: int = window.shape[0] * 2 * window.shape[3] * job.tokens.tokens
        if size <= INLINE_BYTES:
            copy(window, job.target, copies)
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, copy, window, job.target, copies)
        return size

    async def probe(self, size: int) -> float:
        if self._closed or not self._pools:
            raise TransportError("connection lost")
        pool = next(iter(self._pools.values())).array.reshape(-1)
        window = min(size, pool.size, PROBE_BYTES)
        starts = range(0, pool.size - window + 1, window)

        def measure() -> float:
            target = np.ones(window, np.uint8)  # pages exist before the clock starts
            start = time.perf_counter()
            for at in itertools.islice(itertools.cycle(starts), -(-size // window)):
                target[:] = pool[at : at + window]
            copied = -(-size // window) * window
            return (time.perf_counter() - start) * size / copied

        return await asyncio.get_running_loop().run_in_executor(self._threads, measure)

    def still_seconds(self) -> float:
        return 0.0  # a copy waits for no peer

    def close(self) -> None:
        """The mapping ends with the last copy that uses it."""
        self._closed = True
        self._pools = {}


async def _receive(hello: PeerHello, key: bytes) -> tuple[Shared, list[int]]:
    codec: Codec[Shared] = Codec(Shared)
    stream = RawStream(await connect_unix(hello.share))
    try:
        await auth.prove_as_dialer(stream, key, SHARE)
        await stream.send(hello.session)
        size = codec.checked(PREFIX.unpack(await stream.receive(PREFIX.size))[0])
        return codec.decode(await stream.receive(size)), stream.take_fds()
    finally:
        stream.close()


class Share:
    """The source's side: hands out this instance's memory on `--peer-socket`."""

    def __init__(
        self,
        path: str | Path,
        key: bytes,
        offered: Callable[[bytes], Sequence[tuple[RankPool, int]] | None],
    ) -> None:
        """`offered(session)`: pools and descriptors, None for an unknown session.
        Raises OSError when the path cannot be bound."""
        self._path = Path(path)
        self._key = key
        self._offered = offered
        self._listener = listen_unix(path)
        self._readers: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            sock = await accept(self._listener)
            task = asyncio.create_task(self._hand_over(RawStream(sock)))
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)

    async def _hand_over(self, stream: RawStream) -> None:
        opened: list[int] = []
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
                await auth.prove_as_listener(stream, self._key, frozenset({SHARE}))
                pools = self._offered(await stream.receive(SESSION_BYTES))
                if pools is None:
                    raise auth.AuthError("a session that does not exist")
                for _, fd in pools:
                    opened.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
                shared = Shared([pool for pool, _ in pools])
                await stream.send(Codec[Shared](Shared).encode(shared), opened)
        except (OSError, auth.AuthError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.warning("shared no memory on %s: %s", self._path, error or "too slow")
        finally:
            close_fds(opened)
            stream.close()

    async def close(self) -> None:
        tasks = [self._accepting, *self._readers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
