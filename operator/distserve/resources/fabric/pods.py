"""Parts of a rendered pod that the fabric's builders look for and add to."""

import json
from collections.abc import Mapping
from typing import Final

from distserve.api.labels import CLAIMS
from distserve.resources.objects import Object

USERS: Final = ("engine", "kv-migrator")
"""Containers that use accelerators and move KV."""


def users(pod: Object) -> list[Object]:
    """The engine's container, and the migrator's where it has one of its own."""
    spec = pod["spec"]
    every = [*spec.get("initContainers", []), *spec["containers"]]
    return [container for container in every if container["name"] in USERS]


def claim(pod: Object, name: str, template: str, devices: Mapping[str, int]) -> None:
    """Has the containers share a claim that is made from the unit's `template` for each pod.

    `devices` (DeviceClass -> number) is told to placement, which cannot see it in the pod.
    """
    spec, annotations = pod["spec"], pod["metadata"]["annotations"]
    reference = {"name": name, "resourceClaimTemplateName": template}
    spec.setdefault("resourceClaims", []).append(reference)
    for container in users(pod):
        container["resources"].setdefault("claims", []).append({"name": name})
    known = json.loads(annotations.get(CLAIMS, "{}"))
    annotations[CLAIMS] = json.dumps(known | dict(devices), sort_keys=True)
