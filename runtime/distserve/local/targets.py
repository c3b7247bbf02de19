"""What a Prometheus of this machine scrapes: a file for its file_sd_configs.

The labels are those that a PodMonitor sets in a cluster, so the same dashboards and rules fit.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distserve.local.pod import Pod
from distserve.observability.selecting import METRICS_PORTS, TARGET_LABELS, prometheus_name


def scrape_targets(pods: Iterable[Pod]) -> list[dict[str, Any]]:
    return [_target(pod) for pod in pods]


def prepare_targets(path: Path) -> None:
    """An empty list, unless the file has something: whether it can be written shows before the
    pods start. Raises OSError."""
    with path.open("a", encoding="utf-8") as file:
        if not path.stat().st_size:
            file.write("[]\n")


def write_targets(path: Path, pods: Iterable[Pod]) -> None:
    """Pods keep their addresses when they are restarted. Raises OSError."""
    path.write_text(json.dumps(scrape_targets(pods), indent=2) + "\n", encoding="utf-8")


def _target(pod: Pod) -> dict[str, Any]:
    spec = pod.spec
    own = {prometheus_name(k): v for k in TARGET_LABELS if (v := spec.labels.get(k, ""))}
    ports = (c.ports for c in (*spec.sidecars, *spec.containers))
    return {
        "targets": [
            f"{pod.address}:{number}"
            for named in ports
            for name, number in named.items()
            if name in METRICS_PORTS
        ],
        "labels": {"namespace": spec.namespace, "pod": pod.name, **own},
    }
