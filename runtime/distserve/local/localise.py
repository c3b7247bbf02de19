"""A deployment as it is run here: the same objects, but for one gateway, its port, how long streams
hold up its end, and a file that tells it of the instances instead of a cluster's API."""

import copy
import json
from typing import Any, Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.local.specs import Object

DISCOVERY_MAP: Final = "discovery"
DISCOVERY_FILE: Final = "endpoints.json"
_DISCOVERY_FOLDER: Final = "/etc/distserve/discovery"
_DRAIN_FLAG: Final = "--drain-deadline"
_LONGEST_DRAIN: Final = "25s"
"""Nothing follows a gateway that ends here, and somebody waits at a terminal. A shorter deadline
stays: the pod's grace period was made for it."""


def with_one_gateway(deployment: DistServeDeployment) -> DistServeDeployment:
    """There is one Service address here, and so one gateway."""
    gateway = deployment.spec.gateway.model_copy(update={"replicas": 1})
    spec = deployment.spec.model_copy(update={"gateway": gateway})
    return deployment.model_copy(update={"spec": spec})


def localised(objects: list[Object], port: int) -> list[Object]:
    """The gateway listens on the port that users asked for, which is what a Service's mapping does,
    and reads the instances from a ConfigMap's file, which the runner keeps."""
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": DISCOVERY_MAP, "labels": {}},
        "data": {DISCOVERY_FILE: json.dumps({"endpoints": []})},
    }
    return [config_map, *(_gateway_here(o, port) if _is_gateway(o) else o for o in objects)]


def _is_gateway(found: Object) -> bool:
    component = found["metadata"]["labels"].get(labels.APP_COMPONENT)
    return found["kind"] == "Deployment" and bool(component == labels.COMPONENT_GATEWAY)


def _gateway_here(found: Object, port: int) -> Object:
    changed = copy.deepcopy(found)
    pod = changed["spec"]["template"]["spec"]
    volume = {"name": DISCOVERY_MAP, "configMap": {"name": DISCOVERY_MAP}}
    pod["volumes"] = [*pod.get("volumes", []), volume]
    for container in pod["containers"]:
        arguments = container.get("args", [])
        if "--discovery" not in arguments:
            continue  # a user's sidecar
        _set(arguments, "--port", str(port))
        _set(arguments, _DRAIN_FLAG, _shorter(_get(arguments, _DRAIN_FLAG), _LONGEST_DRAIN))
        _set(arguments, "--discovery", f"file:{_DISCOVERY_FOLDER}/{DISCOVERY_FILE}")
        mount = {"name": DISCOVERY_MAP, "mountPath": _DISCOVERY_FOLDER}
        container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
        for declared in container.get("ports", []):
            if declared.get("name") == "http":
                declared["containerPort"] = port
    return changed


def _shorter(one: str, other: str) -> str:
    return min(one, other, key=parse_duration)


def _get(arguments: list[Any], flag: str) -> str:
    return str(arguments[arguments.index(flag) + 1])


def _set(arguments: list[Any], flag: str, value: str) -> None:
    if flag in arguments:
        arguments[arguments.index(flag) + 1] = value
