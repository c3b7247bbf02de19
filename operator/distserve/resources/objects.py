"""The frame that all rendered objects share: kind, name, labels, owner."""

from typing import Any

from distserve.api.deployment import DistServeDeployment
from distserve.api.labels import API_VERSION, KIND
from distserve.resources.naming import Labels, common_labels

Object = dict[str, Any]


def new_object(
    deployment: DistServeDeployment,
    api_version: str,
    kind: str,
    name: str,
    extra_labels: Labels | None = None,
) -> Object:
    """Owned by the deployment where it has a uid, so that the garbage collector cleans up."""
    metadata: Object = {
        "name": name,
        "namespace": deployment.namespace,
        "labels": common_labels(deployment) | (extra_labels or {}),
    }
    if deployment.metadata.uid:
        metadata["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": deployment.name,
                "uid": deployment.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
