"""What a gateway is told at its start; the flags of `distserve gateway` become this."""

from dataclasses import dataclass, field

from distserve.api.gateway import RoutingPolicy
from distserve.api.strategies import StrategyName
from distserve.wire.dialect import Slo


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str
    """Name that clients use."""
    key: bytes
    discovery: str
    strategy: StrategyName = StrategyName.DISAGGREGATED
    routing_policy: RoutingPolicy = RoutingPolicy.LEAST_OUTSTANDING
    min_remote_prefill_tokens: int = 0
    max_waiting_requests: int = 512
    """In all gateways that discovery knows of together."""
    request_timeout_seconds: float = 600.0
    """At most distserve.api.gateway.LONGEST_REQUEST: engines refuse what may take longer."""
    slo: Slo = field(default_factory=Slo)
    """Of requests whose headers name none."""
    attainment_percent: float = 90.0
    max_body_bytes: int = 32 << 20
    """With the longest of contexts; the bound follows from it (admission.body_bound)."""
    body_seconds: float = 30.0
    """Longest pause of a client while it sends a body."""
    drain_seconds: float = 25.0
    """Time that what runs gets after SIGTERM: with its end within a pod's usual grace of 30 s."""
