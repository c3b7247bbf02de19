"""The kinds that the operator watches or writes, and where the API server serves them.

Secrets are not watched: that would need the right to list every one. The deployment's key is made
once, create-only.
"""

from __future__ import annotations

from dataclasses import dataclass

from distserve.api import labels


@dataclass(frozen=True)
class Kind:
    """One kind at one version."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Without a namespace: of all namespaces."""
        parts = ["apis" if self.group else "api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(parts)


DEPLOYMENTS = Kind(labels.API_VERSION, labels.KIND, labels.PLURAL)
PODS = Kind("v1", "Pod", "pods")
NODES = Kind("v1", "Node", "nodes", namespaced=False)
NAMESPACES = Kind("v1", "Namespace", "namespaces", namespaced=False)
PRIORITY_CLASSES = Kind(
    "scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False
)
SECRETS = Kind("v1", "Secret", "secrets")
LEASES = Kind("coordination.k8s.io/v1", "Lease", "leases")
WEBHOOKS = Kind(
    "admissionregistration.k8s.io/v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    namespaced=False,
)
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps")
"""Users' own, read by the names that a spec gives: neither watched nor written."""
EVENTS = Kind("events.k8s.io/v1", "Event", "events")

CHILDREN = (
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("v1", "Service", "services"),
    Kind("v1", "PodTemplate", "podtemplates"),
    Kind("apps/v1", "StatefulSet", "statefulsets"),
    Kind("apps/v1", "Deployment", "deployments"),
    Kind("apps/v1", "ControllerRevision", "controllerrevisions"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
)
"""Watched by the label of their deployment."""

OPTIONAL_CHILDREN = (
    Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
    Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
    Kind("autoscaling.x-k8s.io/v1", "ProvisioningRequest", "provisioningrequests"),
    Kind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
    Kind("resource.nvidia.com/v1beta1", "ComputeDomain", "computedomains"),
    Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads"),
    Kind("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups"),
    Kind("scheduling.run.ai/v2alpha2", "PodGroup", "podgroups"),
    Kind("scheduling.k8s.io/v1alpha2", "PodGroup", "podgroups"),
)
"""Watched and written only where the cluster serves them."""

DEVICES = (
    Kind("resource.k8s.io/v1", "DeviceClass", "deviceclasses", namespaced=False),
    Kind("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False),
    Kind("resource.k8s.io/v1", "ResourceClaim", "resourceclaims"),
)
"""What DRA drivers offer and what is taken of it: watched where the cluster serves them."""

OFFERED = (
    Kind("kueue.x-k8s.io/v1beta2", "ResourceFlavor", "resourceflavors", namespaced=False),
    Kind(
        "kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass", "workloadpriorityclasses",
        namespaced=False,
    ),
    Kind("scheduling.run.ai/v2", "Queue", "queues", namespaced=False),
    Kind("scheduling.volcano.sh/v1beta1", "Queue", "queues", namespaced=False),
)  # fmt: skip
"""What Kueue, KAI and Volcano offer."""

OPTIONAL = (*OPTIONAL_CHILDREN, *DEVICES, *OFFERED)

WATCHED = (DEPLOYMENTS, *CHILDREN, *OPTIONAL, PODS, NODES, NAMESPACES, PRIORITY_CLASSES)


def watched(kueue: bool, volcano: bool, gang_scheduling: bool, kai: bool) -> tuple[Kind, ...]:
    """Without Kueue none of its kinds, for which the operator then has no rights; so with Volcano,
    KAI and Kubernetes' own PodGroups."""
    looks = {
        "kueue.x-k8s.io/v1beta2": kueue,
        "scheduling.volcano.sh/v1beta1": volcano,
        "scheduling.k8s.io/v1alpha2": gang_scheduling,
        "scheduling.run.ai/v2alpha2": kai,
        "scheduling.run.ai/v2": kai,
    }
    return tuple(kind for kind in WATCHED if looks.get(kind.api_version, True))


_BY_NAME = {(kind.api_version, kind.kind): kind for kind in (*WATCHED, SECRETS)}


def kind_of(api_version: str, kind: str) -> Kind:
    """Raises KeyError for a kind that the operator has no business with."""
    try:
        return _BY_NAME[api_version, kind]
    except KeyError:
        raise KeyError(f"the operator does not handle {api_version} {kind}") from None
