"""The Prometheus operator as a process of a cluster: what reads PodMonitors and PrometheusRules.

Its Prometheus is a process, too: on a cluster of real nodes this machine reaches every pod.
"""

import base64
import gzip
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tools.cluster import binaries
from tools.cluster.cluster import Cluster
from tools.cluster.modules import module_files
from tools.cluster.processes import Process

NAME = "prometheus-operator"
PROMETHEUS = "prometheus"
PROMETHEUS_VERSION = "v3.5.0"
"""By its module's number v0.305.0: the operator writes what this one reads."""
MODULE = "github.com/prometheus-operator/prometheus-operator"
GROUP = "monitoring.coreos.com"
KINDS = (
    "alertmanagerconfigs",
    "alertmanagers",
    "podmonitors",
    "probes",
    "prometheusagents",
    "prometheuses",
    "prometheusrules",
    "scrapeconfigs",
    "servicemonitors",
    "thanosrulers",
)
READY_SECONDS = 60.0


def prepare(cluster: Cluster) -> None:
    """Builds both where that was not done yet (10 minutes of CPU); serves its kinds."""
    binaries.ensure([NAME, PROMETHEUS], cluster.progress)
    folder = "example/prometheus-operator-crd"
    names = [f"{folder}/{GROUP}_{kind}.yaml" for kind in KINDS]
    for manifest in module_files(binaries.PROGRAMS[NAME], MODULE, names):
        cluster.apply(manifest)
    cluster.wait_for("its kinds to be served", lambda: set(KINDS) <= _served(cluster))


@contextmanager
def controller(cluster: Cluster, namespace: str) -> Iterator[Process]:
    """One that keeps the Prometheuses of a namespace."""
    port = free_port()
    command = [
        # It takes its kubeconfig from the environment alone.
        *("env", f"KUBECONFIG={cluster.kubeconfig}"),
        str(binaries.ensure([NAME], cluster.progress)[NAME]),
        f"--prometheus-instance-namespaces={namespace}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = cluster.processes.start(NAME, command)
    try:
        process.wait_for("its port", lambda: _listens(port), READY_SECONDS)
        yield process
    finally:
        process.stop()


def configuration(cluster: Cluster, name: str, namespace: str) -> dict[str, Any] | None:
    """What it wrote for the Prometheus of this name, as Prometheus reads it; None: not yet."""
    said = cluster.get("secrets", namespace=namespace)["items"]
    for one in said:
        if one["metadata"]["name"] == f"prometheus-{name}":
            text = gzip.decompress(base64.b64decode(one["data"]["prometheus.yaml.gz"])).decode()
            # What its reloader puts in, in the pod of the first shard.
            for variable, value in (("POD_NAME", f"prometheus-{name}-0"), ("SHARD", "0")):
                text = text.replace(f"$({variable})", value)
            found: dict[str, Any] = yaml.safe_load(text)
            return found
    return None


def rule_files(cluster: Cluster, name: str, namespace: str, folder: Path) -> list[Path]:
    """Writes the files of rules that it made."""
    written = []
    for one in cluster.get("configmaps", namespace=namespace)["items"]:
        if one["metadata"]["name"].startswith(f"prometheus-{name}-rulefiles-"):
            for file, text in one.get("data", {}).items():
                written.append(folder / file)
                written[-1].write_text(text)
    return written


def _served(cluster: Cluster) -> set[str]:
    said = cluster.kubectl("api-resources", f"--api-group={GROUP}", "--output=name")
    return {line.partition(".")[0] for line in said.split()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
