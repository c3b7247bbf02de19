"""What is valid in a deployment but not in this build of the engine, or not in this cluster."""

from collections.abc import Mapping
from typing import Final, Protocol

from distserve.api.conditions import AcceptedReason
from distserve.api.deployment import AcceleratorType, DistServeDeployment, Spec

MOST_RANKS = {AcceleratorType.CPU: 1}
"""Of one instance, on the accelerators that this engine runs on."""


def most_ranks(spec: Spec) -> int | None:
    """What a plan may give one instance, so that it is not refused afterwards.

    None where this engine runs nothing at all yet: there a plan is for one that will.
    """
    return MOST_RANKS.get(spec.accelerator.type)


POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
IMAGE_VOLUME: Final = "ImageVolume"
IMAGE_VOLUME_DEFAULT: Final = (1, 35)
"""Kubernetes version from which the feature gate is on by default."""


class ClusterFeatures(Protocol):
    """What is asked of a cluster and of the deployment's namespace."""

    @property
    def kubernetes(self) -> tuple[int, int]: ...

    @property
    def namespace_labels(self) -> Mapping[str, str]: ...


def unsupported_by_cluster(
    deployment: DistServeDeployment,
    features: ClusterFeatures,
    gates: frozenset[str] = frozenset(),
) -> str | None:
    """One line that names the missing feature and the cure, or None. `gates` are feature gates
    known to be on that are off by default. An API server without ImageVolume drops such volumes
    without a word, so nobody else would say it."""
    source = deployment.spec.model.source
    if source.image is not None and not (
        features.kubernetes >= IMAGE_VOLUME_DEFAULT or IMAGE_VOLUME in gates
    ):
        version = ".".join(map(str, features.kubernetes))
        return (
            f"spec.model.source.image: this cluster (Kubernetes {version}) lacks the feature "
            f"{IMAGE_VOLUME}, which is on from 1.35; use another source"
        )
    if source.host_path is not None:
        return _host_path_refused(features.namespace_labels)
    return None


def _host_path_refused(namespace_labels: Mapping[str, str]) -> str | None:
    """Pod security admission refuses hostPath volumes but in the level `privileged`, which is also
    what a namespace without the label has by default."""
    level = namespace_labels.get(POD_SECURITY, "privileged")
    if level == "privileged":
        return None
    return (
        f"spec.model.source.hostPath: the namespace's pod security ({POD_SECURITY}={level}) allows "
        "no hostPath volumes; use persistentVolumeClaim, or a namespace with level privileged"
    )


def unsupported_by_engine(deployment: DistServeDeployment) -> str | None:
    """One line that names field and cure, or None when the engine can run it."""
    spec = deployment.spec
    for role, section in spec.roles.items():
        if section.parallelism.ranks > 1:
            return _line(f"spec.{role}.parallelism", "more than one rank", "tensor: 1, pipeline: 1")
    if spec.accelerator.type != "CPU":
        return _line("spec.accelerator.type", f"{spec.accelerator.type.value}", "type: CPU")
    return None


def _line(field: str, asked: str, cure: str) -> str:
    reason = AcceptedReason.NOT_SUPPORTED_BY_ENGINE
    return f"{reason}: {field}: this engine cannot run {asked} yet; set {cure}"
