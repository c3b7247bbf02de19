"""Figures for the local runner's table (`GET /stats`). Internal: its shape may change any time."""

import ipaddress
from typing import Any

from fastapi import Request

from distserve.gateway.errors import Unauthorized
from distserve.gateway.service import Gateway
from distserve.gateway.timing import WINDOW_SECONDS
from distserve.wire.auth import has_key


def check_may_read(request: Request, key: bytes) -> None:
    """Clients on this machine, and whoever has the deployment's key. Raises Unauthorized."""
    host = request.client.host if request.client else ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not has_key(request.headers.get("authorization"), key):
        raise Unauthorized("this page needs the deployment's key")


def stats_of(gateway: Gateway) -> dict[str, Any]:
    now = gateway.clock()
    metrics = gateway.metrics

    def quantile_ms(name: str, share: float) -> float | None:
        seconds = gateway.window.quantile(name, share, now)
        return None if seconds is None else round(seconds * 1000, 3)

    by_code = {
        sample.labels["code"]: int(sample.value)
        for family in metrics.requests.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }
    ready = {member.name for member in gateway.fleet.able()}
    return {
        "ready": gateway.ready,
        "instances": [
            {"name": m.name, "role": m.role, "ready": m.name in ready, "legs": m.legs}
            for m in sorted(gateway.fleet.members.values(), key=lambda m: m.name)
        ],
        "requests": {
            "total": sum(by_code.values()),
            "by_code": by_code,
            "in_flight": len(gateway.running),
            "waiting": gateway.admission.waiting,
        },
        "window_seconds": WINDOW_SECONDS,
        "ttft_ms": {"p50": quantile_ms("ttft", 0.5), "p90": quantile_ms("ttft", 0.9)},
        "tpot_ms": {"p50": quantile_ms("tpot", 0.5), "p90": quantile_ms("tpot", 0.9)},
        "kv_transfer_bytes": sum(gateway.transfer_bytes.values()),
        "transports": dict(gateway.transfer_bytes),
    }
