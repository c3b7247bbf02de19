"""A real Prometheus, and the dashboards' queries as Grafana would send them to it."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import yaml
from prometheus_client import CollectorRegistry
from tools.cluster.fixtures import or_skip
from tools.cluster.waiting import tail, wait_for
from tools.prometheus import program

from distserve.engine.metrics import EngineMetrics
from distserve.gateway.metrics import Metrics as GatewayMetrics
from distserve.migrator.metrics import Metrics as MigratorMetrics
from distserve.observability.panels import Dashboard, Panel, Query
from distserve.operator.engines import Seen
from distserve.operator.fabric_metrics import FabricCollector
from distserve.operator.kinds import DEPLOYMENTS
from distserve.operator.metrics import Metrics as OperatorMetrics
from distserve.operator.model import Key
from distserve.operator.pairs import Link, Member, Pair
from distserve.operator.process import Operator, add_gauges
from distserve.operator.settings import Settings
from distserve.operator.watching import Watches
from distserve.wire.dialect import Slo

SECONDS = 60.0


class Prometheus:
    """It scrapes each second what a file names, so that tens of seconds are enough history."""

    def __init__(self, folder: Path, rules: Sequence[Path] = ()) -> None:
        self.targets = folder / "targets.json"
        self.targets.write_text("[]")
        self._log = folder / "prometheus.log"
        job = {"job_name": "distserve", "file_sd_configs": [{"files": [str(self.targets)]}]}
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "scrape_configs": [job], "rule_files": [str(r) for r in rules]}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            str(program("prometheus")),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "GOMAXPROCS": "2"}
            )

    def get(self, path: str, **query: str) -> Any:
        words = f"?{urllib.parse.urlencode(query)}" if query else ""
        try:
            with urllib.request.urlopen(self.url + path + words, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from None

    def values(self, expression: str) -> list[float]:
        return [float(found["value"][1]) for found in self.vector(expression)]

    def vector(self, expression: str) -> list[dict[str, Any]]:
        found = self.get("/api/v1/query", query=expression)
        assert found["resultType"] == "vector", expression
        result: list[dict[str, Any]] = found["result"]
        return result

    def ready(self) -> bool:
        assert self.process.poll() is None, tail(self._log)
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


Start = Callable[..., Prometheus]


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Start]:
    """start_prometheus(rules=[...]) -> Prometheus; it reads Prometheus.targets."""
    with contextlib.ExitStack() as started:

        def start(rules: Sequence[Path] = ()) -> Prometheus:
            with or_skip("prometheus"):
                one = Prometheus(tmp_path, rules)
            started.callback(one.stop)
            wait_for("prometheus", one.ready, SECONDS)
            return one

        yield start


class Shown:
    """Dashboards with their variables chosen. Panels that say `without` may show nothing else."""

    def __init__(
        self, prometheus: Prometheus, variables: Mapping[str, str], without: str = ""
    ) -> None:
        self._prometheus = prometheus
        self._without = without
        self._variables = {**variables, "__rate_interval": "10s", "__range": "60s"}

    def values(self, query: Query) -> list[float]:
        expression = query.expression
        for name, value in self._variables.items():
            expression = expression.replace(f"${name}", value)
        return self._prometheus.values(expression)

    def lacking(self, *dashboards: Dashboard) -> list[str]:
        """Queries that return nothing, or what is no number."""
        return [
            f"{dashboard.title} / {panel.title}: {query.expression} -> {found}"
            for dashboard in dashboards
            for panel in dashboard.panels
            if not (self._without and panel.without == self._without)
            for query in panel.queries
            if not (found := self.values(query)) or not all(map(math.isfinite, found))
        ]

    def wait_complete(self, when: str, *dashboards: Dashboard) -> None:
        """Until every query returns numbers: rates need two readings."""
        wait_for(
            f"numbers in every panel {when}",
            lambda: not self.lacking(*dashboards),
            SECONDS,
            explain=lambda: "\n".join(self.lacking(*dashboards)),
            poll_seconds=1,
        )

    def moving(self, dashboard: Dashboard) -> set[str]:
        """Titles of the panels that show something else than 0."""
        return {panel.title for panel in dashboard.panels if self._moves(panel)}

    def _moves(self, panel: Panel) -> bool:
        return any(any(self.values(query)) for query in panel.queries if not query.target)


@pytest.fixture
def shown() -> type[Shown]:
    return Shown


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[..., str]:
    """promtool(...) -> what it said; fails with its words."""

    def run(*args: str) -> str:
        with or_skip("promtool"):
            tool = program("promtool")
        answer = subprocess.run(
            [str(tool), *args], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    return run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def unused_ports() -> Callable[[int], list[int]]:
    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(count)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [int(one.getsockname()[1]) for one in sockets]

    return find


@pytest.fixture
def registries() -> list[CollectorRegistry]:
    """What each kind of process serves. The operator has seen a deployment, waits for its unit, and
    measured a link."""
    migrator = MigratorMetrics()
    migrator.count_links(lambda transport: 0)
    operator = OperatorMetrics()
    parts = Operator(Settings(), Mock(), Mock(), Mock(), operator)
    parts.waits.see(Key("llm", "tiny"), {"u0": False})
    ready = {"type": "Ready", "status": "True", "reason": "Serving"}
    metadata = {"namespace": "llm", "name": "tiny", "uid": "1", "resourceVersion": "1"}
    document = {"metadata": metadata, "spec": {}, "status": {"conditions": [ready]}}
    parts.store.put(DEPLOYMENTS, document)
    add_gauges(operator, parts, cast(Watches, SimpleNamespace(last_seen={DEPLOYMENTS: 0.0})))
    measured = CollectorRegistry()
    member = Member("d", "uid", "10.0.0.1", "node-a")
    link = Link(Pair(member, member, "leaf", 1), "TCP", 0.1, 1.0)
    measured.register(FabricCollector(lambda: [Seen(Key("llm", "tiny"), "u0", link)]))
    return [
        operator.registry,
        measured,
        GatewayMetrics(Slo(ttft_ms=1, tpot_ms=1), 90).registry,
        EngineMetrics(model="m", role="decode", revision="1").registry,
        migrator.registry,
    ]
