"""What is valid in a deployment but not in this build of the engine, or not in this cluster."""

import re
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from distserve.api.accelerator import AcceleratorType
from distserve.api.conditions import AcceptedReason
from distserve.api.deployment import DistServeDeployment, Spec
from distserve.api.labels import KAI_PREEMPTIBILITY, KAI_QUEUE, QUEUE, VOLCANO_QUEUE
from distserve.api.topology import Scheduler
from distserve.resources import gangs, kai, kueue, volcano
from distserve.resources.fabric import claims, compute_domain

MOST_RANKS = {AcceleratorType.CPU: 1}
"""Of one instance, on the accelerators that this engine runs on."""


def most_ranks(spec: Spec) -> int | None:
    """What a plan may give one instance, so that it is not refused afterwards.

    None where this engine runs nothing at all yet: there a plan is for one that will.
    """
    return MOST_RANKS.get(spec.accelerator.type)


POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
_QUEUE: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
IMAGE_VOLUME: Final = "ImageVolume"
IMAGE_VOLUME_DEFAULT: Final = (1, 35)
"""Kubernetes version from which the feature gate is on by default."""


class ClusterFeatures(Protocol):
    """What is asked of a cluster and of the deployment's namespace."""

    @property
    def served(self) -> Collection[str]: ...

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
            f"{IMAGE_VOLUME}, which is on from 1.35; use another source, or turn its feature gate "
            "on and give the operator's chart imageVolume.enabled=true"
        )
    return _refused_by_pod_security(deployment.spec, features.namespace_labels) or _not_served(
        deployment.spec, features
    )


def _refused_by_pod_security(spec: Spec, namespace_labels: Mapping[str, str]) -> str | None:
    """Pod security admission takes neither hostPath volumes nor IPC_LOCK but in the level
    `privileged`, which is also what a namespace without the label has by default."""
    level = namespace_labels.get(POD_SECURITY, "privileged")
    if level == "privileged":
        return None
    asked = {
        "spec.model.source.hostPath": (
            spec.model.source.host_path is not None,
            "hostPath volumes; use persistentVolumeClaim",
        ),
        "spec.kvTransfer.hostSharing": (
            spec.kv_transfer.host_sharing,
            "hostPath volumes; remove it, so that pods exchange KV over TCP",
        ),
        "spec.fabric.rdma.ipcLock": (
            spec.fabric.rdma is not None and spec.fabric.rdma.ipc_lock,
            "capability IPC_LOCK; remove it and raise the nodes' limit on locked memory",
        ),
    }
    for field, (is_asked, cure) in asked.items():
        if is_asked:
            return (
                f"{field}: the namespace's pod security ({POD_SECURITY}={level}) allows no {cure}, "
                "or use a namespace with level privileged"
            )
    return None


def _not_served(spec: Spec, features: ClusterFeatures) -> str | None:
    asked = {
        "spec.accelerator.deviceClass": (
            spec.accelerator.device_class is not None,
            f"{claims.API_VERSION}/{claims.TEMPLATE_KIND}",
            "which is there from 1.34; use accelerator.resourceName",
        ),
        "spec.fabric.computeDomain": (
            spec.fabric.compute_domain,
            f"{compute_domain.API_VERSION}/{compute_domain.KIND}",
            "which comes with NVIDIA's DRA driver; install it, or remove the field",
        ),
        "spec.topology.scheduler": (
            spec.topology.scheduler == Scheduler.KUEUE,
            kueue.SERVED,
            "or this operator does not look: install Kueue 0.15 or newer and give the operator's "
            "chart kueue.enabled=true, or remove the field",
        ),
        "spec.topology.scheduler: Volcano": (
            spec.topology.scheduler == Scheduler.VOLCANO,
            volcano.SERVED,
            "or this operator does not look: install Volcano and give the operator's chart "
            "volcano.enabled=true, or remove the field",
        ),
        "spec.topology.scheduler: KAI": (
            spec.topology.scheduler == Scheduler.KAI,
            kai.SERVED,
            "or this operator does not look: install KAI 0.17 or newer and give the operator's "
            "chart kai.enabled=true, or remove the field",
        ),
        "spec.topology.scheduler: GangScheduling": (
            spec.topology.scheduler == Scheduler.GANG_SCHEDULING,
            gangs.SERVED,
            "or this operator does not look: with Kubernetes 1.36 start kube-apiserver with "
            f"--runtime-config={gangs.API_VERSION}=true and it, kube-controller-manager and "
            "kube-scheduler with --feature-gates=GenericWorkload=true,GangScheduling=true, and "
            "give the operator's chart gangScheduling.enabled=true; or remove the field",
        ),
    }
    for field, (is_asked, kind, cure) in asked.items():
        if is_asked and kind not in features.served:
            return f"{field}: this cluster does not serve {kind}, {cure}"
    return None


def without_queue(deployment: DistServeDeployment) -> str | None:
    """One line that says how a deployment names its queue, or None where it does or needs none.
    The API server's rules cannot see labels and annotations."""
    if deployment.spec.topology.scheduler == Scheduler.VOLCANO:
        queue = volcano.queue_of(deployment)
        if _QUEUE.fullmatch(queue):
            return None
        return (
            f"metadata.annotations[{VOLCANO_QUEUE}]: {queue!r} is no name of a Queue of Volcano; "
            f"name one, or remove it, which means Queue {volcano.DEFAULT_QUEUE}"
        )
    if deployment.spec.topology.scheduler == Scheduler.KAI:
        return _without_kai_queue(deployment)
    queue = deployment.metadata.labels.get(QUEUE, "")
    if deployment.spec.topology.scheduler != Scheduler.KUEUE or _QUEUE.fullmatch(queue):
        return None
    found = f"{queue!r} is no name of a LocalQueue" if queue else "there is no such label"
    return (
        f"metadata.labels[{QUEUE}]: {found}; with topology.scheduler Kueue it names the LocalQueue "
        f"of namespace {deployment.namespace} that admits the units: kubectl label "
        f"dsd/{deployment.name} {QUEUE}=NAME"
    )


def _without_kai_queue(deployment: DistServeDeployment) -> str | None:
    queue = kai.queue_of(deployment)
    if not _QUEUE.fullmatch(queue):
        found = f"{queue!r} is no name of a Queue" if queue else "there is no such label"
        return (
            f"metadata.labels[{KAI_QUEUE}]: {found}; with topology.scheduler KAI it names the "
            "Queue whose quota the units take: kubectl label "
            f"dsd/{deployment.name} {KAI_QUEUE}=NAME"
        )
    said = deployment.metadata.labels.get(KAI_PREEMPTIBILITY)
    if said is None or said in kai.PREEMPTIBILITIES:
        return None
    return (
        f"metadata.labels[{KAI_PREEMPTIBILITY}]: {said!r} is none of "
        f"{', '.join(kai.PREEMPTIBILITIES)}; correct it, or remove it, which leaves it to the "
        "pods' priority"
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
