"""Whether a deployment can be acted on at all: what slipped through the API server's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distserve.api.conditions import AcceptedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.labels import API_VERSION, KIND
from distserve.api.loading import ManifestError, parse_deployment
from distserve.operator.model import Features, Object
from distserve.resources.support import unsupported_by_engine

POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
METADATA: Final = ("name", "namespace", "labels", "annotations", "uid")
"""What rendering knows of ObjectMeta."""


@dataclass(frozen=True)
class Refusal:
    """Why nothing is done. The message is one line with field and cure."""

    reason: str
    message: str


def accept(
    document: Object, features: Features, engine_check: bool
) -> DistServeDeployment | Refusal:
    """The deployment as it was written, or why it cannot be."""
    metadata = {k: v for k, v in document["metadata"].items() if k in METADATA}
    try:
        deployment = parse_deployment(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
            | {"spec": document.get("spec") or {}},
            "",
        )
    except ManifestError as error:
        return Refusal("Invalid", str(error).removeprefix(": "))
    if engine_check and (line := unsupported_by_engine(deployment)) is not None:
        reason = AcceptedReason.NOT_SUPPORTED_BY_ENGINE.value
        return Refusal(reason, line.removeprefix(f"{reason}: "))
    level = features.namespace_labels.get(POD_SECURITY, "privileged")
    if deployment.spec.model.source.host_path is not None and level != "privileged":
        return Refusal(
            "NotSupportedByCluster",
            f"spec.model.source.hostPath: this namespace enforces pod security {level}, which has "
            "no hostPath volumes; use persistentVolumeClaim, or a namespace labelled "
            f"{POD_SECURITY}=privileged",
        )
    return deployment
