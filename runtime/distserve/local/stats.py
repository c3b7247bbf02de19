"""What the gateway measured, read from its `GET /stats`."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class GatewayStats:
    """Counts since the gateway's start; quantiles (p50, p90) over its window, None while it has
    seen nothing."""

    ready_instances: int = 0
    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    ttft_ms: tuple[float | None, float | None] = (None, None)
    tpot_ms: tuple[float | None, float | None] = (None, None)
    kv_bytes: dict[str, int] = field(default_factory=dict)
    """By transport."""

    @property
    def moved_bytes(self) -> int:
        return sum(self.kv_bytes.values())

    def moved_since(self, earlier: "GatewayStats") -> dict[str, int]:
        """Bytes by transport, of those that moved any."""
        since = {t: n - earlier.kv_bytes.get(t, 0) for t, n in self.kv_bytes.items()}
        return {transport: count for transport, count in since.items() if count}


async def read_stats(http: aiohttp.ClientSession, base_url: str) -> GatewayStats | None:
    """None while the gateway does not answer."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), http.get(f"{base_url}/stats") as answer:
            return parse_stats(await answer.json()) if answer.status == 200 else None
    except (TimeoutError, OSError, aiohttp.ClientError):
        return None


def parse_stats(document: dict[str, Any]) -> GatewayStats:
    requests = document["requests"]
    return GatewayStats(
        ready_instances=sum(bool(i["ready"]) for i in document["instances"]),
        requests=requests["total"],
        failed=sum(n for code, n in requests["by_code"].items() if code >= "500"),
        in_flight=requests["in_flight"],
        ttft_ms=(document["ttft_ms"]["p50"], document["ttft_ms"]["p90"]),
        tpot_ms=(document["tpot_ms"]["p50"], document["tpot_ms"]["p90"]),
        kv_bytes=document["transports"],
    )
