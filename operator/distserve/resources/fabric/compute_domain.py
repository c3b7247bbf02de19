"""A ComputeDomain per unit: its pods reach each other's GPU memory over NVLink, through IMEX.

NVIDIA's DRA driver makes of it a claim template for the unit's pods and an IMEX daemon on each of
their nodes. A node has one IMEX channel that a claim can hold, so that two pods with one are never
on one node: placement counts channels like other devices.
https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu, api/nvidia.com/resource/v1beta1
"""

from collections.abc import Iterable
from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.placement.devices import OWN_CLAIM
from distserve.resources.fabric import claims, pods
from distserve.resources.objects import Object, new_object

API_VERSION: Final = "resource.nvidia.com/v1beta1"
KIND: Final = "ComputeDomain"
CHANNEL: Final = f"{OWN_CLAIM}channel"
CHANNEL_CLASS: Final = "compute-domain-default-channel.nvidia.com"
SUFFIX: Final = "channel"


def add(pod: Object, deployment: DistServeDeployment) -> None:
    if deployment.spec.fabric.compute_domain:
        pods.claim(pod, CHANNEL, SUFFIX, {CHANNEL_CLASS: 1})


def is_asked_by(templates: Iterable[Object]) -> bool:
    """Whether pods of these stored templates have a channel."""
    return any(
        one["name"] == CHANNEL
        for template in templates
        for one in template["spec"].get("resourceClaims", [])
    )


def compute_domain(deployment: DistServeDeployment, unit: str) -> Object:
    """numNodes 0: the domain follows its pods (and counts for nothing since driver 25.8)."""
    name = f"{deployment.name}-{unit}"
    found = new_object(deployment, API_VERSION, KIND, name, {labels.UNIT: unit})
    channel = {"name": claims.name_of(deployment, unit, SUFFIX)}
    return found | {
        "spec": {
            "numNodes": 0,
            "channel": {"resourceClaimTemplate": channel, "allocationMode": "Single"},
        }
    }
