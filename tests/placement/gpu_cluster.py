"""Documents of nodes in fabric domains, of the kind that `distserve plan` reads."""

from typing import Any

CLIQUE = "nvidia.com/gpu.clique"
GPU = "nvidia.com/gpu"
NODES_PER_DOMAIN = 2

Object = dict[str, Any]


def gpu_node(domain: int, index: int, gpus: int = 8) -> Object:
    name = f"gpu-{domain}{index}"
    labels = {
        "kubernetes.io/hostname": name,
        CLIQUE: f"c{domain}",
        "topology.kubernetes.io/zone": "z",
    }
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", GPU: str(gpus)}
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"allocatable": room, "conditions": ready},
    }


def gpu_nodes(domains: int) -> list[Object]:
    return [gpu_node(d, n) for d in range(domains) for n in range(NODES_PER_DOMAIN)]


def busy(node: str, gpus: int, name: str = "busy") -> Object:
    resources = {"requests": {GPU: str(gpus)}}
    return {
        "kind": "Pod",
        "metadata": {"name": f"{name}-{node}", "namespace": "other", "uid": f"{name}-{node}"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": "Running"},
    }
