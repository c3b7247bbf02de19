"""A folder of the node in which migrators of one deployment find each other's sockets.

Through such a socket a migrator hands its memory over (SharedMemory, docs/kv-migration.md), which
needs nothing else of the node: descriptors cross containers as they are. The kubelet makes the
folder for root alone, so an init container gives it to the group of the pods' processes, for which
user 0 needs no capability: it owns the folder and is in the group. /run, since what a killed
migrator leaves goes with the node's next start.
"""

from typing import Final

from distserve.api.deployment import DistServeDeployment
from distserve.api.strategies import Role
from distserve.resources import parts
from distserve.resources.fabric import pods
from distserve.resources.objects import Object
from distserve.resources.processes import HOST_FOLDER, migrates
from distserve.resources.settings import RenderSettings

VOLUME: Final = "host"
CONTAINER: Final = "host-folder"


def add(pod: Object, deployment: DistServeDeployment, role: Role, settings: RenderSettings) -> None:
    if not deployment.spec.kv_transfer.host_sharing or not migrates(role):
        return
    spec, mount = pod["spec"], {"name": VOLUME, "mountPath": HOST_FOLDER}
    folder = f"/run/distserve/{deployment.namespace}/{deployment.name}"
    spec["volumes"] += [{"name": VOLUME, "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}]
    for container in pods.users(pod):
        container["volumeMounts"] = [*container["volumeMounts"], mount]
    open_up = f"chgrp {parts.USER} {HOST_FOLDER} && chmod 0770 {HOST_FOLDER}"
    first = {
        "name": CONTAINER,
        "image": deployment.spec.images.engine or settings.images.engine,
        "command": ["sh", "-c", open_up],
        "env": [],
        "securityContext": parts.container_security() | {"runAsNonRoot": False, "runAsUser": 0},
        "volumeMounts": [mount],
    }
    spec["initContainers"] = [first, *spec.get("initContainers", [])]
