"""What links measured, for Prometheus: read from `engines` when it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from distserve.operator.engines import Seen
from distserve.operator.pairs import Link

LABELS: Final = ("deployment", "unit", "level", "transport")
"""The deployment as NAMESPACE/NAME: a label `namespace` would be the operator's own."""


class FabricCollector(Collector):
    """Of each unit, level and transport the slowest link."""

    def __init__(self, seen: Callable[[], Iterable[Seen]]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[GaugeMetricFamily]:
        slowest: dict[tuple[str, ...], Link] = {}
        for key, unit, link in self._seen():
            values = (f"{key.namespace}/{key.name}", unit, link.pair.level, link.transport)
            known = slowest.get(values)
            if known is None or link.bandwidth < known.bandwidth:
                slowest[values] = link
        for name, text, read in (
            (
                "bandwidth_bytes_per_second",
                "Measured from a prefill to a decode instance of one unit, at the slowest link.",
                lambda link: link.bandwidth,
            ),
            (
                "expected_bytes_per_second",
                "What that link should give; 0 where nothing is expected.",
                lambda link: float(link.pair.expected or 0),
            ),
            (
                "latency_seconds",
                "From asking for a byte to having it, over that link.",
                lambda link: link.latency_ms / 1e3,
            ),
        ):
            found = GaugeMetricFamily(f"distserve_fabric_{name}", text, labels=LABELS)
            for labels, link in slowest.items():
                found.add_metric(labels, read(link))
            yield found
