"""`distserve topology` asks a real API server."""

import json

import pytest
from tools.cluster.cluster import Cluster

from distserve.cli.main import main

CLIQUE = "nvidia.com/gpu.clique"
GPU = "nvidia.com/gpu"


@pytest.mark.cluster
def test_the_cluster_itself_is_asked(
    control_plane: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    names = control_plane.nodes(
        4, gpus=8, labels=lambda number: {CLIQUE: f"t{number // 2}"}, prefix="topo"
    )
    try:
        command = ["topology", "--kubeconfig", str(control_plane.kubeconfig), "--output", "json"]
        assert main([*command, "--level", f"nvlink={CLIQUE}"]) == 0
    finally:
        control_plane.remove_nodes(names)
    found = json.loads(capsys.readouterr().out)
    domains = {one["name"]: one for one in found["domains"] if one["level"] == "nvlink"}
    assert domains["t0"]["free"][GPU] == domains["t1"]["free"][GPU] == 16
    assert [one["name"] for one in domains["t1"]["domains"]] == ["topo-2", "topo-3"]
