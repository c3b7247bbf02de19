"""Parts of pod templates that engine, migrator and gateway share: security, probes, mounts."""

import math
from typing import Any, Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.resources import naming
from distserve.resources.objects import Object
from distserve.resources.processes import KEY_FOLDER

END_SECONDS: Final = 15
"""Left to the processes to end after the drain."""
USER: Final = 65532
"""Id of user and group in the released images; fsGroup lets it read the key."""
LAST_WORDS: Final = "FallbackToLogsOnError"
"""terminationMessagePolicy: what a container said last stands in its pod's status, from where it
comes into the deployment's conditions."""


def grace_seconds(deployment: DistServeDeployment) -> int:
    """For what a pod has in hand, and the end of its processes."""
    return math.ceil(parse_duration(deployment.spec.rollout.drain_deadline)) + END_SECONDS


def pod_security() -> Object:
    """With `container_security` it passes the `restricted` pod security standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def environment(**more: str) -> list[Object]:
    """POD_ variables stand in arguments, so that one template serves all instances of a role."""
    return [
        _from_field("POD_NAME", "metadata.name"),
        _from_field("POD_IP", "status.podIP"),
        *({"name": name, "value": value} for name, value in {"HOME": "/tmp", **more}.items()),
    ]


def instance_environment() -> list[Object]:
    """Empty where the pod has no such label."""
    return [
        _from_field("POD_UNIT", f"metadata.labels['{labels.UNIT}']"),
        _from_field("POD_DOMAIN", f"metadata.labels['{labels.DOMAIN}']"),
    ]


def rank_environment() -> list[Object]:
    """Of a pod that is one of several of its instance."""
    return [
        _from_field("POD_INSTANCE", f"metadata.labels['{labels.INSTANCE}']"),
        _from_field("POD_INDEX", "metadata.labels['apps.kubernetes.io/pod-index']"),
    ]


def http_probe(
    path: str, port: str, *, period_seconds: int, failures: int, timeout_seconds: int = 3
) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_seconds,
        "timeoutSeconds": timeout_seconds,
        "failureThreshold": failures,
    }


def container_port(name: str, port: int) -> Object:
    return {"name": name, "containerPort": port, "protocol": "TCP"}


def key_volume(deployment: DistServeDeployment) -> Object:
    return {
        "name": "key",
        "secret": {
            "secretName": naming.key_secret_name(deployment),
            "defaultMode": 0o440,
            "items": [{"key": "key", "path": "key"}],
        },
    }


def key_mount() -> Object:
    return {"name": "key", "mountPath": KEY_FOLDER, "readOnly": True}


def scratch_volume() -> Object:
    return {"name": "tmp", "emptyDir": {}}


def scratch_mount() -> Object:
    return {"name": "tmp", "mountPath": "/tmp"}


def _from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
