"""What Prometheus sees of this process. All series exist from the start."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from distserve.migrator.probe import ProbeResult

TRANSPORTS = ("SharedMemory", "TCP")
FAILURES = (
    "aborted",
    "connection lost",
    "engine gone",
    "expired",
    "gone",
    "incomplete",
    "refused",
    "timeout",
    "unreachable",
)
BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5,
)  # fmt: skip


class Metrics:
    """One registry per migrator, so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._bytes = Counter(
            "distserve_kv_transfer_bytes",
            "KV bytes moved: in into this instance's pools, out of them to peers. Shared memory "
            "is read by the peer, so it counts as in only.",
            ["transport", "direction"],
            registry=registry,
        )
        self._seconds = Histogram(
            "distserve_kv_transfer_seconds",
            "Time in which a fetched transfer had bytes in motion.",
            ["transport"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._motion = Counter(
            "distserve_kv_transfer_motion_seconds",
            "Time in which transfers had bytes in motion, those that failed included.",
            ["transport"],
            registry=registry,
        )
        self._failures = Counter(
            "distserve_kv_transfer_failures",
            "Expected transfers that failed here.",
            ["reason"],
            registry=registry,
        )
        self.leases = Gauge(
            "distserve_kv_transfer_leases", "Offers that are held here.", registry=registry
        )
        self.renewed = Counter(
            "distserve_kv_transfer_leases_renewed", "Renewals of a lease.", registry=registry
        )
        self.expired = Counter(
            "distserve_kv_transfer_leases_expired",
            "Leases that ran out before a peer had taken the KV over.",
            registry=registry,
        )
        self._bandwidth = Gauge(
            "distserve_kv_link_bandwidth_bytes_per_second",
            "The last probe's bandwidth from a peer to here; 0 before the first.",
            ["transport"],
            registry=registry,
        )
        self._latency = Gauge(
            "distserve_kv_link_latency_seconds",
            "The last probe's time from asking a peer for a byte to having it; 0 before the first.",
            ["transport"],
            registry=registry,
        )
        self._links = Gauge(
            "distserve_kv_links",
            "Peers that KV is read from now.",
            ["transport"],
            registry=registry,
        )
        for transport in TRANSPORTS:
            self._seconds.labels(transport)
            self._motion.labels(transport)
            self._bandwidth.labels(transport)
            self._latency.labels(transport)
            for direction in ("in", "out"):
                self._bytes.labels(transport, direction)
        for reason in (*FAILURES, "other"):
            self._failures.labels(reason)

    def moved(self, transport: str, direction: str, size: int) -> None:
        self._bytes.labels(transport, direction).inc(size)

    def fetched(self, transport: str, seconds: float) -> None:
        if transport:  # all was cached here: nothing was moved
            self._seconds.labels(transport).observe(seconds)
            self._motion.labels(transport).inc(seconds)

    def failed(self, transport: str, seconds: float, reason: str) -> None:
        """Reasons may carry details after a colon; others than FAILURES count as one."""
        if transport:
            self._motion.labels(transport).inc(seconds)
        head = reason.split(":")[0]
        self._failures.labels(head if head in FAILURES else "other").inc()

    def probed(self, result: ProbeResult) -> None:
        self._bandwidth.labels(result.transport).set(result.bandwidth_bytes_per_second)
        self._latency.labels(result.transport).set(result.latency_ms / 1e3)

    def count_links(self, count: Callable[[str], int]) -> None:
        """`count(transport)` is asked whenever metrics are."""
        for transport in TRANSPORTS:
            self._links.labels(transport).set_function(partial(count, transport))

    def text(self) -> bytes:
        return generate_latest(self.registry)
