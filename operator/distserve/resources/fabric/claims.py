"""Accelerators as claimed devices (DRA), so that engine and migrator can share them.

A device plugin gives a GPU to one container; a ResourceClaim is named by several. Each unit has a
ResourceClaimTemplate for each role. Templates never change (the API server lets them not), so their
content stands in their name, and a revision keeps what its pods were made for.

    Revision.claims --template--> ResourceClaimTemplate tiny-u0-prefill-1a2b3c4d
    stored pod template: "prefill-1a2b3c4d" --of_unit--> the StatefulSet's: that name
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from distserve.api import labels
from distserve.api.accelerator import DEFAULT_RESOURCE_NAME, Accelerator
from distserve.api.deployment import DistServeDeployment
from distserve.api.strategies import Role
from distserve.placement.devices import OWN_CLAIM, class_resource
from distserve.resources.fabric import pods
from distserve.resources.objects import Object, new_object

API_VERSION: Final = "resource.k8s.io/v1"
TEMPLATE_KIND: Final = "ResourceClaimTemplate"
DEVICES: Final = f"{OWN_CLAIM}devices"
SAME_ROOT: Final = "resource.kubernetes.io/pcieRoot"
"""Standard attribute of devices: KEP-4381. An accelerator and a network device under one root move
data without crossing the processor."""


def add(pod: Object, deployment: DistServeDeployment, role: Role) -> None:
    devices = devices_of(deployment, role)
    if devices is not None:
        pods.claim(pod, DEVICES, _suffix(role, devices), _counted(devices))


def counted_as(accelerator: Accelerator) -> str:
    """The resource by which placement counts accelerators."""
    if accelerator.device_class is not None:
        return class_resource(accelerator.device_class)
    return accelerator.resource_name or DEFAULT_RESOURCE_NAME


def devices_of(deployment: DistServeDeployment, role: Role) -> Object | None:
    """What a pod of the role claims, as `spec.devices` of a claim. None: nothing."""
    spec = deployment.spec
    accelerator = spec.accelerator.device_class
    if accelerator is None:
        return None
    ranks = spec.roles[role].parallelism.ranks // spec.pods(role)
    network = spec.fabric.rdma.device_class if spec.fabric.rdma else None
    if network is None:
        return {"requests": [_request("accelerators", accelerator, ranks)]}
    pairs = [(f"accelerator-{rank}", f"network-{rank}") for rank in range(ranks)]
    return {
        "requests": [
            _request(name, of_class, 1)
            for pair in pairs
            for name, of_class in zip(pair, (accelerator, network), strict=True)
        ],
        "constraints": [{"requests": list(pair), "matchAttribute": SAME_ROOT} for pair in pairs],
    }


def template(deployment: DistServeDeployment, unit: str, role: Role, devices: Object) -> Object:
    """The ResourceClaimTemplate of a unit's pods of one role."""
    name = name_of(deployment, unit, _suffix(role, devices))
    marks = {labels.UNIT: unit, labels.ROLE: role.value}
    found = new_object(deployment, API_VERSION, TEMPLATE_KIND, name, marks)
    return found | {"spec": {"spec": {"devices": devices}}}


def of_unit(deployment: DistServeDeployment, unit: str, spec: Object) -> Object:
    """The pod spec of a stored template with the names of the unit's own claim templates."""
    if "resourceClaims" not in spec:
        return spec
    named = [
        one | {"resourceClaimTemplateName": name_of(deployment, unit, suffix)}
        if one["name"].startswith(OWN_CLAIM) and (suffix := one.get("resourceClaimTemplateName"))
        else one
        for one in spec["resourceClaims"]
    ]
    return spec | {"resourceClaims": named}


def name_of(deployment: DistServeDeployment, unit: str, suffix: str) -> str:
    return f"{deployment.name}-{unit}-{suffix}"


def _request(name: str, device_class: str, count: int) -> dict[str, Any]:
    exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}
    return {"name": name, "exactly": exactly}


def _counted(devices: Object) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for request in devices["requests"]:
        exactly = request["exactly"]
        name = exactly["deviceClassName"]
        found[name] = found.get(name, 0) + exactly["count"]
    return found


def _suffix(role: Role, devices: Object) -> str:
    text = json.dumps(devices, sort_keys=True)
    return f"{role.value}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
