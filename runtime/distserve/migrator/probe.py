"""Latency and bandwidth of a path, measured when a pair meets and on request."""

import time
from typing import Final

from msgspec import Struct

from distserve.migrator.transports.base import ReadPath

SIZES: Final = (64 << 10, 1 << 20, 4 << 20)
"""5 MB in all: milliseconds on anything that deserves the name fabric."""
BUDGET_SECONDS: Final = 0.05
"""No further step after so long."""
LATENCY_TRIES: Final = 3


class ProbeResult(Struct, frozen=True):
    latency_ms: float
    bandwidth_bytes_per_second: float


async def probe(path: ReadPath) -> ProbeResult:
    """Raises TransportError."""
    start = time.perf_counter()
    latency = min([await path.probe(1) for _ in range(LATENCY_TRIES)])
    best = 0.0
    for size in SIZES:
        best = max(best, size / max(await path.probe(size), 1e-9))
        if time.perf_counter() - start > BUDGET_SECONDS:
            break
    return ProbeResult(latency * 1e3, best)
