"""The real Prometheus operator reads our monitors and rules, and Prometheus what it makes of them.

Prometheus and its operator are processes of this machine, which reaches every pod.
"""

import base64
import contextlib
import json
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster import binaries, prometheus_operator
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.fixtures import or_skip
from tools.cluster.waiting import tail, wait_for

# Both may have to be built.
pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(2400)]

SYSTEM = "distserve-system"
EVERY = "2s"
ATTAINED = "deployment:distserve_slo_attained:ratio_rate5m"
LABELS = {"release": "ours"}
"""By which this Prometheus selects, as kube-prometheus-stack's does."""


class Prometheus:
    """One that is configured by `configuration` in `folder`."""

    def __init__(
        self, program: Path, folder: Path, configuration: dict[str, Any], port: int
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        config = folder / "prometheus.yaml"
        config.write_text(yaml.safe_dump(configuration))
        command = [
            str(program),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "2"}
            )

    def get(self, path: str, **query: str) -> Any:
        words = f"?{urllib.parse.urlencode(query)}" if query else ""
        with urllib.request.urlopen(f"{self.url}{path}{words}", timeout=10) as answer:
            return json.load(answer)["data"]

    def vector(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def ready(self) -> bool:
        assert self.process.poll() is None, tail(self.log)
        with contextlib.suppress(OSError):
            self.get("/api/v1/status/runtimeinfo")
            return True
        return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def monitored(installed: Any, new_deployment: Any) -> Iterator[Any]:
    """A deployment that serves where Prometheus' kinds are known, beside a release that knows."""
    cluster: Cluster = installed.cluster
    with or_skip("Prometheus and its operator"):
        prometheus_operator.prepare(cluster)
    chart = str(CHECKOUT / "charts" / "distserve")
    flags = [f"--namespace={SYSTEM}", "--reuse-values", f"--set=monitoring.interval={EVERY}"]
    flags += [f"--set=monitoring.labels.{name}={value}" for name, value in LABELS.items()]
    cluster.helm("upgrade", "distserve", chart, *flags, "--wait", "--timeout=120s", seconds=150)
    found = new_deployment()
    found.apply()
    found.wait_for("Ready")
    yield found


@pytest.fixture(scope="module")
def configured(
    monitored: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The configuration that the Prometheus operator writes, and a folder with its rules."""
    cluster, namespace = monitored.cluster, monitored.namespace
    folder = tmp_path_factory.mktemp("prometheus")
    values = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace, SYSTEM]}
    both: dict[str, Any] = {"matchExpressions": [values]}
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": "ours"},
        "spec": {
            "version": prometheus_operator.PROMETHEUS_VERSION,
            "replicas": 0,
            "scrapeInterval": EVERY,
            "evaluationInterval": EVERY,
            "podMonitorSelector": {"matchLabels": LABELS},
            "podMonitorNamespaceSelector": both,
            "ruleSelector": {"matchLabels": LABELS},
            "ruleNamespaceSelector": both,
            "apiserverConfig": _api_server(cluster, folder),
        },
    }
    with prometheus_operator.controller(cluster, namespace) as process:
        cluster.apply(document, namespace)

        def written() -> bool:
            found = prometheus_operator.configuration(cluster, "ours", namespace)
            jobs = [] if found is None else found["scrape_configs"]
            monitors = {one["job_name"].rpartition("/")[0] for one in jobs}
            return len(monitors) == 2 and len(rules()) == 2

        def rules() -> list[Path]:
            return prometheus_operator.rule_files(cluster, "ours", namespace, folder)

        # Our operator asks each minute which kinds there are.
        process.wait_for("two monitors and two files of rules", written, 180)
        found = prometheus_operator.configuration(cluster, "ours", namespace)
        assert found is not None
        # As mounted in a pod of Prometheus.
        found["rule_files"] = [str(file) for file in rules()]
    return found, folder


def _api_server(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """An administrator's access, as files."""
    said = yaml.safe_load(cluster.kubeconfig.read_text())
    (server,), (user,) = said["clusters"], said["users"]
    data = {
        "caFile": server["cluster"]["certificate-authority-data"],
        "certFile": user["user"]["client-certificate-data"],
        "keyFile": user["user"]["client-key-data"],
    }
    for name, text in data.items():
        (folder / name).write_bytes(base64.b64decode(text))
    files = {name: str(folder / name) for name in data}
    return {"host": server["cluster"]["server"], "tlsConfig": files}


@pytest.fixture(scope="module")
def prometheus(monitored: Any, configured: tuple[dict[str, Any], Path]) -> Iterator[Prometheus]:
    configuration, folder = configured
    name = prometheus_operator.PROMETHEUS
    program = binaries.ensure([name], monitored.cluster.progress)[name]
    found = Prometheus(program, folder, configuration, prometheus_operator.free_port())
    try:
        wait_for("prometheus", found.ready, 60)
        yield found
    finally:
        found.stop()


def test_it_scrapes_all_that_serves_metrics(monitored: Any, prometheus: Prometheus) -> None:
    labels = "app.kubernetes.io/name=distserve-operator"
    operators = monitored.cluster.get("pods", namespace=SYSTEM, selector=labels)["items"]
    instances = [pod for role in ("prefill", "decode") for pod in monitored.pods(role=role)]
    ports = [(pods, port) for pods, names in (
        (operators, ("metrics",)),
        (monitored.gateways(), ("http",)),
        (instances, ("engine", "metrics")),
    ) for port in names]  # fmt: skip
    wanted = {(pod["metadata"]["name"], port) for pods, port in ports for pod in pods}

    def up() -> set[tuple[str, str]]:
        return {(f["metric"]["pod"], f["metric"]["endpoint"]) for f in prometheus.vector("up == 1")}

    wait_for("all targets", lambda: up() == wanted, 60, explain=lambda: f"{up()}\n{wanted}")
    roles = {f["metric"].get("distserve_io_role") for f in prometheus.vector("up == 1")}
    assert {"prefill", "decode"} <= roles, "the labels that dashboards choose by"


def test_its_rules_are_evaluated(monitored: Any, prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_for("every rule", lambda: all(one["health"] == "ok" for one in rules()), 60)
    names = {one["name"] for one in rules()}
    assert {ATTAINED, "DistServeOperatorWithoutLeader"} <= names
    firing = prometheus.vector('ALERTS{alertstate="firing"}')
    assert firing == [], "nothing is wrong"

    def recorded() -> bool:
        monitored.ask("The river")
        return any(
            float(one["value"][1]) >= 0 and one["metric"]["namespace"] == monitored.namespace
            for one in prometheus.vector(ATTAINED)
        )

    wait_for("attainment of the SLO", recorded, 60)
