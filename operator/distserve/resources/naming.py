"""Names and labels of the rendered objects, and the instances that a deployment has."""

from collections.abc import Iterator
from dataclasses import dataclass

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.roles import RoleSpec
from distserve.api.strategies import Role

Labels = dict[str, str]


@dataclass(frozen=True)
class Instance:
    """One copy of the model: one StatefulSet."""

    unit: str
    role: Role
    index: int
    """Among the instances of its role in its unit."""
    section: RoleSpec
    name: str
    """At most 47 characters: 30 of the deployment, unit u9999, role hybrid, index 63."""

    @property
    def leads_unit(self) -> bool:
        return self.index == 0 and self.role in (Role.PREFILL, Role.HYBRID)


def instances(deployment: DistServeDeployment) -> Iterator[Instance]:
    """Every instance, unit by unit."""
    for unit in units(deployment):
        for role, section in deployment.spec.roles.items():
            for index in range(section.instances_per_unit):
                name = f"{deployment.name}-{unit}-{role}-{index}"
                yield Instance(unit, role, index, section, name)


def units(deployment: DistServeDeployment) -> list[str]:
    return [f"u{number}" for number in range(deployment.spec.units)]


def gateway_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-gateway"


def engine_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-engine"


def headless_service_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-instances"


def key_secret_name(deployment: DistServeDeployment) -> str:
    return f"{deployment.name}-key"


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


def instance_labels(deployment: DistServeDeployment, instance: Instance, revision: str) -> Labels:
    found = common_labels(deployment) | {
        labels.APP_COMPONENT: labels.COMPONENT_ENGINE,
        labels.ROLE: instance.role.value,
        labels.UNIT: instance.unit,
        labels.INSTANCE: instance.name,
        labels.REVISION: revision,
    }
    return found | ({labels.UNIT_LEADER: "true"} if instance.leads_unit else {})
