"""One pod as placement sees it: where it is, what it takes there, and which unit it is of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from distserve.placement.devices import OWN_CLAIM, class_resource
from distserve.placement.quantities import PODS, Amounts, amounts
from distserve.placement.requests import UnitId

# Equal to distserve.api.labels, which this room may not import; a test compares them.
DEPLOYMENT_LABEL = "distserve.io/deployment"
UNIT_LABEL = "distserve.io/unit"
CLAIMS_ANNOTATION = "distserve.io/claims"

_FINISHED = ("Succeeded", "Failed")
_CLAIM_DEVICES = 32
"""No claim has more: Kubernetes' AllocationResultsMaxSize."""


@dataclass(frozen=True, slots=True)
class Pod:
    uid: str
    namespace: str
    name: str
    node: str
    amounts: Amounts
    unit: UnitId | None
    terminating: bool
    permanent: bool
    """A DaemonSet's or the node's own: it is there on an empty node, too."""


def pod_from(document: Mapping[str, Any]) -> Pod | None:
    """From a Pod as the API serves it; None while it takes no room: not bound, or finished."""
    metadata, spec = document["metadata"], document["spec"]
    node = spec.get("nodeName")
    if not node or (document.get("status") or {}).get("phase") in _FINISHED:
        return None
    labels = metadata.get("labels") or {}
    namespace = intern(metadata["namespace"])
    owners = {one["kind"] for one in metadata.get("ownerReferences") or ()}
    unit = None
    if DEPLOYMENT_LABEL in labels and UNIT_LABEL in labels:
        unit = UnitId(namespace, intern(labels[DEPLOYMENT_LABEL]), intern(labels[UNIT_LABEL]))
    return Pod(
        uid=metadata["uid"],
        namespace=namespace,
        name=metadata["name"],
        node=intern(node),
        amounts=pod_amounts(spec) | (_told_claims(metadata, spec) if unit else {}),
        unit=unit,
        terminating="deletionTimestamp" in metadata,
        permanent=bool(owners & {"DaemonSet", "Node"}),
    )


def claimed_amounts(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Devices that a pod of a unit claims, by class: what a claim's template holds cannot be seen
    in the pod. Raises ValueError for what somebody else wrote there."""
    text = (metadata.get("annotations") or {}).get(CLAIMS_ANNOTATION) or "{}"
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    if not isinstance(found, dict) or not all(
        type(count) is int and count >= 0 for count in found.values()
    ):
        raise ValueError(f"annotation {CLAIMS_ANNOTATION}: a map from classes to counts is needed")
    return {intern(class_resource(name)): count for name, count in found.items() if count}


def _told_claims(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, int]:
    """What else a pod takes counts also where somebody wrote over this. Anybody can write it on a
    pod: it counts for those that a StatefulSet runs, as a unit's are, and no more of it than its
    claims of ours can hold."""
    own = sum(one["name"].startswith(OWN_CLAIM) for one in spec.get("resourceClaims") or ())
    try:
        found = claimed_amounts(metadata) if _is_of_a_stateful_set(metadata) else {}
    except ValueError:
        return {}
    return found if sum(found.values()) <= own * _CLAIM_DEVICES else {}


def _is_of_a_stateful_set(metadata: Mapping[str, Any]) -> bool:
    """Who only says so does not last: Kubernetes deletes pods whose StatefulSet is not there, or
    has not so many, and takes this off those that it does not select."""
    made_by = metadata["name"].rpartition("-")[0]
    return any(
        one.get("controller")
        and (one.get("apiVersion"), one["kind"], one["name"]) == ("apps/v1", "StatefulSet", made_by)
        for one in metadata.get("ownerReferences") or ()
    )


def pod_amounts(spec: Mapping[str, Any]) -> dict[str, int]:
    """What a pod asks of its node.

    The larger of what runs at once and what each init step needs beside the sidecars started
    before it (KEP-753); pod-level resources, where given, take the place of the containers'
    (KEP-2837); overhead is added.
    """
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, asked)
            peak = larger(peak, sidecars)
        else:
            peak = larger(peak, _sum(sidecars, asked))
    together = sidecars
    for container in spec.get("containers") or ():
        together = _sum(together, _requests(container))
    found = larger(peak, together) | _requests(spec)
    found = _sum(found, amounts(spec.get("overhead") or {}))
    return {intern(name): count for name, count in found.items() if count} | {PODS: 1}


def _requests(holder: Mapping[str, Any]) -> dict[str, int]:
    resources = holder.get("resources") or {}
    # A limit without a request is a request: the API server fills it in, a file may lack it.
    return amounts((resources.get("limits") or {}) | (resources.get("requests") or {}))


def _sum(one: Amounts, other: Amounts) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def larger(one: Amounts, other: Amounts) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}
