"""Whether a deployment can be acted on at all: what slipped through the API server's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distserve.api.conditions import AcceptedReason
from distserve.api.deployment import MAX_INSTANCES, DistServeDeployment
from distserve.api.labels import API_VERSION, KIND
from distserve.api.loading import ManifestError, parse_deployment
from distserve.operator.model import Features, Object
from distserve.resources import gangs
from distserve.resources.support import unsupported_by_cluster, unsupported_by_engine, without_queue

METADATA: Final = ("name", "namespace", "labels", "annotations", "uid")
"""What rendering knows of ObjectMeta."""


@dataclass(frozen=True)
class Refusal:
    """Why nothing is done. The message is one line with field and cure."""

    reason: str
    message: str


def accept(
    document: Object,
    features: Features,
    *,
    engine_check: bool = True,
    gates: frozenset[str] = frozenset(),
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
        return Refusal(AcceptedReason.INVALID, str(error).removeprefix(": "))
    if engine_check and (refused := refused_by_engine(deployment)) is not None:
        return refused
    if (line := without_queue(deployment) or gangs.refused(deployment)) is not None:
        return Refusal(AcceptedReason.INVALID, line)
    if (line := unsupported_by_cluster(deployment, features, gates)) is not None:
        return Refusal(AcceptedReason.NOT_SUPPORTED_BY_CLUSTER, line)
    return deployment


def refused_by_numbers(deployment: DistServeDeployment, *, engine_check: bool) -> Refusal | None:
    """Asked of a deployment that has its plan's numbers: the spec's own were read before."""
    if (found := deployment.spec.instances) > MAX_INSTANCES:
        line = (
            f"the plan has {found} instances in all units, and {MAX_INSTANCES} is the most: lower "
            "planning.maxAccelerators or units, or write several deployments"
        )
        return Refusal(AcceptedReason.INVALID, line)
    return refused_by_engine(deployment) if engine_check else None


def refused_by_engine(deployment: DistServeDeployment) -> Refusal | None:
    """Field and cure of what this engine cannot run."""
    line = unsupported_by_engine(deployment)
    reason = AcceptedReason.NOT_SUPPORTED_BY_ENGINE
    return None if line is None else Refusal(reason, line.removeprefix(f"{reason}: "))
