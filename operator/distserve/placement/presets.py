"""Levels by the name of who labels the nodes, tightest first."""

from distserve.placement.nodes import HOSTNAME
from distserve.placement.requests import Level

_ZONE = Level("zone", "topology.kubernetes.io/zone")

PRESETS: dict[str, tuple[Level, ...]] = {
    # GPU feature discovery: <cluster UUID>.<clique>, on multi-node NVLink systems.
    "nvidia": (Level("nvlink", "nvidia.com/gpu.clique"), _ZONE),
    # network-node-layer-N counts from the top: the largest N is nearest to the instance.
    "aws": (
        Level("ultraserver", "topology.k8s.aws/ultraserver-id"),
        Level("leaf", "topology.k8s.aws/network-node-layer-3"),
        Level("spine", "topology.k8s.aws/network-node-layer-2"),
        Level("core", "topology.k8s.aws/network-node-layer-1"),
        _ZONE,
    ),
    "gke": (
        Level("host", "cloud.google.com/gce-topology-host"),
        Level("subblock", "cloud.google.com/gce-topology-subblock"),
        Level("block", "cloud.google.com/gce-topology-block"),
        _ZONE,
    ),
    "coreweave": (
        Level("nvlink", "ds.coreweave.com/nvlink.domain"),
        Level("leaf", "backend.coreweave.cloud/leafgroup"),
        Level("fabric", "backend.coreweave.cloud/fabric"),
    ),
    # fabric.topograph.run/tier-0 is the leaf.
    "topograph": (
        Level("accelerator-part", "accelerator.topograph.run/sub-domain"),
        Level("accelerator", "accelerator.topograph.run/domain"),
        Level("leaf", "fabric.topograph.run/tier-0"),
        Level("spine", "fabric.topograph.run/tier-1"),
        Level("core", "fabric.topograph.run/tier-2"),
    ),
    "rack": (Level("rack", "topology.kubernetes.io/rack"), _ZONE),
    "zone": (_ZONE,),
    "node": (Level("node", HOSTNAME),),
}
