"""RDMA devices of a device plugin, and the right to lock memory for them.

Devices of a DeviceClass are claimed with the accelerators: `claims`.
"""

from distserve.api.deployment import DistServeDeployment
from distserve.resources.fabric import pods
from distserve.resources.objects import Object


def add(pod: Object, deployment: DistServeDeployment) -> None:
    asked = deployment.spec.fabric.rdma
    if asked is None:
        return
    if asked.resource_name is not None:
        count = {asked.resource_name: str(asked.count or 1)}
        for container in pods.users(pod):
            resources = container["resources"]
            for kind in ("requests", "limits"):
                resources[kind] = resources.get(kind, {}) | count
    if asked.ipc_lock:
        # A capability that is added is effective for user 0 alone: Kubernetes sets no ambient
        # ones (KEP-2763). Both containers, since they share sockets.
        pod["spec"]["securityContext"] |= {"runAsNonRoot": False, "runAsUser": 0}
        for container in pods.users(pod):
            container["securityContext"]["capabilities"] |= {"add": ["IPC_LOCK"]}
