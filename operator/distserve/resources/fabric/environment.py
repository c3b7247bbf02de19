"""Variables of NCCL, Gloo and UCX that follow from what the spec says of the fabric.

==========================  =================  ====================================================
variable                    value              when, and why
==========================  =================  ====================================================
NCCL_SOCKET_IFNAME          =socketInterface   NCCL's bootstrap and sockets; its `=` asks for the
                                               exact name, `eth1` would also be `eth10`
                                               (NCCL user guide, Environment Variables)
GLOO_SOCKET_IFNAME          socketInterface    torch.distributed's Gloo groups
                                               (PyTorch, torch.distributed)
UCX_NET_DEVICES             socketInterface    without rdma: it names devices of all networks, RDMA
                                               ones too (UCX FAQ)
UCX_TLS                     ^tcp               with rdma: all but TCP, so that a pair without RDMA
                                               fails and does not crawl unseen (UCX FAQ)
UCX_CUDA_IPC_ENABLE_MNNVL   yes                with computeDomain: off by default (UCX,
                                               src/uct/cuda/cuda_ipc/cuda_ipc_md.c)
NCCL_MNNVL_ENABLE           1                  with computeDomain, where every unit lies in one
                                               NVLink domain: NCCL (2.21 and later) fails where it
                                               would take the network unseen; elsewhere its
                                               default, 2, tries (NCCL user guide)
==========================  =================  ====================================================

Nothing else: what is tuned to one machine (NCCL_IB_HCA, GID indices) belongs in podTemplate, whose
variables also win over these.
"""

from typing import Final

from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import Enforcement
from distserve.resources.fabric import pods
from distserve.resources.objects import Object

NVLINK: Final = "nvlink"
"""What presets, and the docs, call the level whose nodes share NVLink."""


def add(pod: Object, deployment: DistServeDeployment) -> None:
    found = [{"name": name, "value": value} for name, value in variables(deployment).items()]
    for container in pods.users(pod) if found else ():
        container["env"] = [*container["env"], *found]


def variables(deployment: DistServeDeployment) -> dict[str, str]:
    """The table above."""
    fabric = deployment.spec.fabric
    found: dict[str, str] = {}
    if (interface := fabric.socket_interface) is not None:
        found |= {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface}
        if fabric.rdma is None:
            found["UCX_NET_DEVICES"] = interface
    if fabric.rdma is not None:
        found["UCX_TLS"] = "^tcp"
    if fabric.compute_domain:
        found["UCX_CUDA_IPC_ENABLE_MNNVL"] = "yes"
        if is_within_nvlink(deployment):
            found["NCCL_MNNVL_ENABLE"] = "1"
    return found


def is_within_nvlink(deployment: DistServeDeployment) -> bool:
    """Whether every unit lies in one NVLink domain, whatever happens."""
    topology = deployment.spec.topology
    return topology.pack_within == NVLINK and topology.enforcement == Enforcement.REQUIRED
