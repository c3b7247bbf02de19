"""Latency and bandwidth of a path, measured once it is used and on request.

    1 byte, three times -> latency        64 KiB, 1 MiB ... 64 MiB -> bandwidth of the last step
                                          (a slow link ends it early)

The last step alone counts: the earlier ones open a connection's window and use up what a shaped
link lets pass at once.
"""

import time
from typing import Final

from msgspec import Struct

from distserve.migrator.transports.base import ReadPath

SIZES: Final = (64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20)
"""The largest takes a millisecond on the fastest links, so that latency is a small part of it."""
STEP_SECONDS: Final = 0.02
"""No larger step after one that took so long: its figure is as good, and transfers wait behind."""
AGAIN_SECONDS: Final = 0.1
"""Within which the last step is done again: single ones are at the mercy of whatever else runs."""
TRIES: Final = 3


class ProbeResult(Struct, frozen=True):
    transport: str
    """Over which it was measured: the one that the pair's transfers use."""
    latency_ms: float
    """From asking for a byte to having it."""
    bandwidth_bytes_per_second: float


async def probe(path: ReadPath) -> ProbeResult:
    """Raises TransportError."""
    start = time.perf_counter()
    latency = min([await path.probe(1) for _ in range(TRIES)])
    for size in SIZES:
        seconds = await path.probe(size)
        if seconds > STEP_SECONDS:
            break
    for _ in range(TRIES - 1):
        if time.perf_counter() - start < AGAIN_SECONDS:
            seconds = min(seconds, await path.probe(size))
    return ProbeResult(path.name, latency * 1e3, size / max(seconds, 1e-9))
