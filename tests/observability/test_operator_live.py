"""A real Prometheus scrapes `distserve operator` on a real API server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.waiting import tail, wait_for
from tools.dashboard_pictures import main as draw

from distserve.observability.dashboards.operator import OPERATOR

CRD = CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml"
SAMPLE = CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml"
# Nothing waits for a worker, fails, asks a webhook that there is not, or gets whole without nodes.
QUIET = {
    "Waiting for a worker",
    "Deployments that fail",
    "Reconciles that are tried again",
    "Admission reviews",
    "Time until a unit was whole",
}


@pytest.mark.timeout(180)
def test_every_panel_shows_the_operator(
    control_plane: Cluster, start_prometheus: Any, shown: Any, unused_ports: Any, tmp_path: Path
) -> None:
    control_plane.apply(CRD)
    health, metrics = unused_ports(2)
    with control_plane.namespace("watched") as namespace:
        log = tmp_path / "operator.log"
        command = [
            *(sys.executable, "-m", "distserve.cli.main", "operator", "--host=127.0.0.1"),
            *(f"--kubeconfig={control_plane.kubeconfig}", f"--namespaces={namespace}"),
            *(f"--lease-namespace={namespace}", "--identity=distserve-operator-a"),
            *(f"--health-port={health}", f"--metrics-port={metrics}"),
        ]
        with log.open("w") as said:
            process = subprocess.Popen(
                command, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        try:
            prometheus = start_prometheus()
            target = {
                "targets": [f"127.0.0.1:{metrics}"],
                "labels": {"namespace": "distserve-system", "pod": "distserve-operator-a"},
            }
            prometheus.targets.write_text(json.dumps([target]))
            dashboard = shown(prometheus, {"operator_namespace": "distserve-system"})
            leader = 'distserve_operator_leader{pod="distserve-operator-a"}'
            wait_for(
                "the leader's metrics",
                lambda: prometheus.values(leader) == [1.0],
                60,
                explain=lambda: tail(log),
                poll_seconds=0.5,
            )
            dashboard.wait_complete("without a deployment", OPERATOR)
            control_plane.apply(SAMPLE, namespace)
            wait_for(
                "all panels to move",
                lambda: (
                    {panel.title for panel in OPERATOR.panels} - QUIET <= dashboard.moving(OPERATOR)
                ),
                60,
                explain=lambda: f"{dashboard.moving(OPERATOR)}\n{tail(log)}",
                poll_seconds=0.5,
            )
            dashboard.wait_complete("with a deployment", OPERATOR)
            where = [f"--prometheus={prometheus.url}", "--namespace=distserve-system"]
            window = ["--seconds=60", "--scrape-seconds=2.5"]
            assert draw([*where, *window, f"--output-dir={tmp_path / 'pictures'}"]) == 0
            (picture,) = (tmp_path / "pictures").iterdir()
            assert picture.name == f"{OPERATOR.uid}.png"
        finally:
            process.kill()
            process.wait(10)
