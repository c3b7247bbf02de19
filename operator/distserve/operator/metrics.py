"""The operator's own metrics: every series is there from the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

RESULTS = ("done", "conflict", "refused", "unavailable", "error")
REVIEWS = ("allowed", "denied", "failed")
VERBS = ("get", "list", "watch", "create", "apply", "update", "delete")

ReadAll = Callable[[], Mapping[Any, float]]


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "distserve_operator_reconcile_seconds",
            "Time of one reconcile of one deployment.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        self.reconciles = Counter(
            "distserve_operator_reconcile",
            "Reconciles by how they ended.",
            ["result"],
            registry=registry,
        )
        self.errors = Counter(
            "distserve_operator_reconcile_errors",
            "Reconciles that will be tried again, by how they ended.",
            ["result"],
            registry=registry,
        )
        self.unit_wait_seconds = Histogram(
            "distserve_operator_unit_wait_seconds",
            "From when a unit was wanted, or lost an instance, until all its instances were ready.",
            buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200),
            registry=registry,
        )
        self.calls = Counter(
            "distserve_operator_api_calls",
            "Calls to the API server, kopf's watches left out.",
            ["verb", "outcome"],
            registry=registry,
        )
        self.reviews = Counter(
            "distserve_operator_admission_reviews",
            "Deployments that the webhook was asked about; failed ones were let pass.",
            ["outcome"],
            registry=registry,
        )
        for result in RESULTS:
            self.reconciles.labels(result)
            if result != "done":
                self.errors.labels(result)
        for verb in VERBS:
            self.calls.labels(verb, "200")
        for outcome in REVIEWS:
            self.reviews.labels(outcome)

    def count_call(self, verb: str, outcome: str) -> None:
        self.calls.labels(verb, outcome).inc()

    def reviewed(self, outcome: str) -> None:
        self.reviews.labels(outcome).inc()

    def reconciled(self, result: str, seconds: float) -> None:
        self.reconcile_seconds.observe(seconds)
        self.reconciles.labels(result).inc()
        if result != "done":
            self.errors.labels(result).inc()

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        Gauge(f"distserve_operator_{name}", text, registry=self.registry).set_function(read)

    def gauges(self, name: str, text: str, labels: tuple[str, ...], read: ReadAll) -> None:
        """The same with labels, whose values `read` returns as tuples."""
        self.registry.register(_Read(f"distserve_operator_{name}", text, labels, read))


class _Read(Collector):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: ReadAll) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def collect(self) -> list[GaugeMetricFamily]:
        found = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, number in self._read().items():
            found.add_metric(values, number)
        return [found]
