"""What the live table shows, read from the gateway's and the migrators' /metrics."""

import asyncio
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

TIMEOUT_SECONDS = 2.0
_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class GatewayStats:
    """Since the gateway's start. Quantiles are interpolated in the histogram's buckets; None
    before the first observation."""

    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    ttft_ms: tuple[float | None, float | None] = (None, None)
    """p50 and p90"""
    tpot_ms: tuple[float | None, float | None] = (None, None)
    kv_bytes: dict[str, int] = field(default_factory=dict)
    """By transport."""

    @property
    def moved_bytes(self) -> int:
        return sum(self.kv_bytes.values())


def parse_metrics(text: str) -> Iterator[Sample]:
    """Prometheus' text format; lines that are none are skipped."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and not line.startswith("#"):
            yield Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3]))


def gateway_stats(text: str) -> GatewayStats:
    samples = list(parse_metrics(text))
    codes = {s.labels["code"]: s.value for s in samples if s.name == "distserve_requests_total"}
    moved = {
        s.labels["transport"]: int(s.value)
        for s in samples
        if s.name == "distserve_gateway_kv_transfer_bytes_total"
    }
    flight = [s.value for s in samples if s.name == "distserve_requests_in_flight"]
    return GatewayStats(
        requests=int(sum(codes.values())),
        failed=int(sum(value for code, value in codes.items() if code >= "500")),
        in_flight=int(sum(flight)),
        ttft_ms=_quantiles_ms(samples, "distserve_time_to_first_token_seconds"),
        tpot_ms=_quantiles_ms(samples, "distserve_time_per_output_token_seconds"),
        kv_bytes=moved,
    )


def _quantiles_ms(samples: list[Sample], name: str) -> tuple[float | None, float | None]:
    buckets = sorted(
        (float(s.labels["le"]), s.value) for s in samples if s.name == f"{name}_bucket"
    )
    p50, p90 = quantile(buckets, 0.5), quantile(buckets, 0.9)
    return (None if p50 is None else p50 * 1000, None if p90 is None else p90 * 1000)


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: (upper bound, cumulative count) pairs in order, linear
    within a bucket, the last finite bound for what lies beyond it."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = share * buckets[-1][1]
    lower = below = 0.0
    for upper, count in buckets:
        if count >= wanted and count > below:
            if math.isinf(upper):
                return lower
            return lower + (upper - lower) * (wanted - below) / (count - below)
        lower, below = upper, count
    return None


@dataclass(frozen=True)
class MetricsReader:
    """Reads /metrics of processes; whoever does not answer has no text."""

    http: aiohttp.ClientSession

    async def read(self, url: str) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self.http.get(f"{url}/metrics") as answer:
                return await answer.text() if answer.status == 200 else ""
        except (TimeoutError, OSError, aiohttp.ClientError):
            return ""
