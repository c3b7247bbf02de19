"""Names and labels of the rendered objects, and the instances that a deployment has."""

import hashlib
import re
from dataclasses import dataclass

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.status import UnitPlan
from distserve.api.strategies import Role

Labels = dict[str, str]
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True)
class Instance:
    """One copy of the model: one StatefulSet."""

    unit: str
    role: Role
    index: int
    """Among the instances of its role in its unit."""
    name: str
    """At most 47 characters: 30 of the deployment, unit u9999, role prefill, index 63."""

    @property
    def leads_unit(self) -> bool:
        return self.index == 0 and self.role in (Role.PREFILL, Role.HYBRID)


def instances(deployment: DistServeDeployment, unit: str, shape: UnitPlan) -> list[Instance]:
    """Those of one unit, in the order prefill, decode, hybrid."""
    return [
        Instance(unit, role, index, f"{deployment.name}-{unit}-{role}-{index}")
        for role in Role
        if (part := getattr(shape, role.value)) is not None
        for index in range(part.instances)
    ]


def units(deployment: DistServeDeployment) -> list[str]:
    return [f"u{number}" for number in range(deployment.spec.units)]


def gateway_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-gateway"


def engine_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-engine"


def headless_service_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-instances"


def key_secret_name(deployment: DistServeDeployment, generation: int = 1) -> str:
    """No name is used twice: kubelets keep copies of what cannot change."""
    return f"{deployment.name}-key" + (f"-{generation}" if generation > 1 else "")


def url(deployment: DistServeDeployment) -> str:
    """Where clients in the cluster go."""
    host = f"{gateway_name(deployment)}.{deployment.namespace}.svc"
    return f"http://{host}:{deployment.spec.gateway.service.port}/v1"


def common_labels(deployment: DistServeDeployment) -> Labels:
    """On every object."""
    return {
        labels.APP_NAME: labels.NAME,
        labels.APP_INSTANCE: deployment.name,
        labels.APP_PART_OF: labels.NAME,
        labels.APP_MANAGED_BY: labels.OPERATOR_NAME,
        labels.DEPLOYMENT: deployment.name,
    }


def component_selector(deployment: DistServeDeployment, component: str) -> Labels:
    """Selects all gateway pods, or all engine pods, of one deployment."""
    return {labels.DEPLOYMENT: deployment.name, labels.APP_COMPONENT: component}


def instance_selector(deployment: DistServeDeployment, instance: Instance) -> Labels:
    return {labels.DEPLOYMENT: deployment.name, labels.INSTANCE: instance.name}


def unit_selector(deployment: DistServeDeployment, unit: str) -> Labels:
    return {labels.DEPLOYMENT: deployment.name, labels.UNIT: unit}


def scale_selector(deployment: DistServeDeployment) -> str:
    """Exactly one pod per unit: an autoscaler multiplies by the pods behind it."""
    return (
        f"{labels.DEPLOYMENT}={deployment.name},{labels.UNIT_LEADER}=true,"
        "apps.kubernetes.io/pod-index=0"
    )


def role_labels(deployment: DistServeDeployment, role: Role, revision: str) -> Labels:
    """What the pods of all instances of a role have in common: part of a stored template."""
    return common_labels(deployment) | {
        labels.APP_COMPONENT: labels.COMPONENT_ENGINE,
        labels.ROLE: role.value,
        labels.REVISION: revision,
    }


def instance_labels(instance: Instance, domain: str = "") -> Labels:
    """What tells an instance's pods from others of its role: set on a copy of the template."""
    found = {labels.UNIT: instance.unit, labels.INSTANCE: instance.name}
    if instance.leads_unit:
        found[labels.UNIT_LEADER] = "true"
    return found | ({labels.DOMAIN: label_value(domain)} if domain else {})


def label_value(text: str) -> str:
    """The text, or its hash where it is no valid value of a label."""
    if LABEL_VALUE.fullmatch(text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:16]
