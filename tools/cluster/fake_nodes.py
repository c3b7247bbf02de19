"""Fake nodes: objects whose kubelet is played by kwok, for tests of placement and scale."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.cluster.conditions import is_true

STAGES = Path(__file__).parent / "manifests" / "kwok-stages.yaml"
MARK = "kwok.x-k8s.io/node"
OWNER = "distserve.io/test-cluster"
"""Label, on nodes in a cluster of somebody else: the home that they go with."""
TAINT = {"key": MARK, "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": MARK, "operator": "Exists"}


def node(name: str, gpus: int, labels: Mapping[str, str]) -> dict[str, Any]:
    """A Node of 64 cores and 512 GiB; real pods keep off it by its taint."""
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {MARK: "fake"},
            "labels": {
                **labels,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "spec": {"taints": [TAINT]},
        "status": {"allocatable": room, "capacity": room},
    }


def selector(names: Iterable[str]) -> str:
    """A label selector for nodes by name."""
    return f"kubernetes.io/hostname in ({','.join(names)})"


def is_ready(node: Mapping[str, Any]) -> bool:
    """Pods may come: a new node is tainted as not ready for a moment after it is Ready."""
    return is_true(node, "Ready") and all(one == TAINT for one in node["spec"].get("taints") or ())


def kwok_flags(kubeconfig: Path, pods: str, node_address: str) -> list[str]:
    """kwok for the marked nodes only; real kubelets keep theirs."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--config={STAGES}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={MARK}=fake",
        f"--cidr={pods}",
        f"--node-ip={node_address}",
        # The lease is the heartbeat.
        "--node-lease-duration-seconds=40",
    ]
