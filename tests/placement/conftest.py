"""Nodes, pods and units as placement gets them, short to write."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from distserve.placement import InstanceRequest, Level, UnitId, UnitRequest

GPU = "nvidia.com/gpu"
NVLINK = Level("nvlink", "nvidia.com/gpu.clique")
LEAF = Level("leaf", "fabric.topograph.run/tier-0")
ZONE = Level("zone", "topology.kubernetes.io/zone")

Object = dict[str, Any]


def _node(
    name: str,
    gpus: int = 8,
    *,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    cordoned: bool = False,
    ready: bool = True,
    **allocatable: str,
) -> Object:
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", GPU: str(gpus), **allocatable}
    spec: Object = {"taints": list(taints)} | ({"unschedulable": True} if cordoned else {})
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": spec,
        "status": {
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        },
    }


def _pod(
    name: str,
    node: str | None,
    requests: Mapping[str, str | int] | None = None,
    *,
    unit: UnitId | None = None,
    namespace: str = "llm",
    claims: Sequence[str] = (),
    **metadata: Any,
) -> Object:
    labels = {}
    if unit:
        namespace = unit.namespace
        labels = {"distserve.io/deployment": unit.deployment, "distserve.io/unit": unit.unit}
        made_by = name.rpartition("-")[0]
        kind = {"apiVersion": "apps/v1", "kind": "StatefulSet"}
        owner = {**kind, "name": made_by, "controller": True}
        metadata.setdefault("ownerReferences", [owner])
    asked = {key: str(value) for key, value in (requests or {}).items()}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": metadata.pop("uid", f"uid-{namespace}-{name}"),
            "labels": labels,
            **metadata,
        },
        "spec": {
            "containers": [{"name": "main", "resources": {"requests": asked}}],
            **({"nodeName": node} if node else {}),
            **({"resourceClaims": [{"name": name} for name in claims]} if claims else {}),
        },
        "status": {"phase": "Running" if node else "Pending"},
    }


def _unit(
    name: str,
    *gpus: int,
    pods: int = 1,
    deployment: str = "opt",
    since: float = 0.0,
    instance: Mapping[str, Any] | None = None,
    **fields: Any,
) -> UnitRequest:
    """One instance for each number of GPUs per pod."""
    chosen: dict[str, Any] = {"levels": (NVLINK, LEAF, ZONE), "pack_within": "nvlink", **fields}
    instances = tuple(
        InstanceRequest(f"{deployment}-{name}-i{index}", pods, {GPU: count}, **(instance or {}))
        for index, count in enumerate(gpus)
    )
    return UnitRequest(UnitId("llm", deployment, name), instances, since, **chosen)


@pytest.fixture
def node() -> Callable[..., Object]:
    return _node


@pytest.fixture
def pod() -> Callable[..., Object]:
    return _pod


@pytest.fixture
def unit() -> Callable[..., UnitRequest]:
    return _unit


@pytest.fixture
def fabric() -> Callable[..., list[Object]]:
    """`domains` cliques of `size` nodes; two cliques to a leaf, four to a zone."""

    def build(domains: int = 4, size: int = 2, gpus: int = 8) -> list[Object]:
        return [
            _node(
                f"n{d}-{n}",
                gpus,
                labels={
                    NVLINK.node_label: f"c{d}",
                    LEAF.node_label: f"l{d // 2}",
                    ZONE.node_label: f"z{d // 4}",
                },
            )
            for d in range(domains)
            for n in range(size)
        ]

    return build
