"""The gateway: Deployment, Service and disruption budget."""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming, parts, processes
from distserve.resources.merge import merge_pod_template
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings
from distserve.resources.tolerations import node_lost_tolerations

GATEWAY: Final = "gateway"
LEAVE_SECONDS: Final = 5
"""A pod that ends still gets new connections until every node has heard of it."""


def gateway_objects(deployment: DistServeDeployment, template: Object) -> list[Object]:
    return [
        _deployment(deployment, template),
        _service(deployment),
        _disruption_budget(deployment),
    ]


def gateway_template(
    deployment: DistServeDeployment, revision: str, settings: RenderSettings
) -> Object:
    """Pod template of the gateways, with the user's podTemplate. Raises MergeError."""
    return merge_pod_template(
        _pod(deployment, revision, settings),
        deployment.spec.gateway.pod_template,
        "spec.gateway.podTemplate",
    )


def _selector(deployment: DistServeDeployment) -> dict[str, str]:
    return naming.component_selector(deployment, labels.COMPONENT_GATEWAY)


def _deployment(deployment: DistServeDeployment, template: Object) -> Object:
    component = {labels.APP_COMPONENT: labels.COMPONENT_GATEWAY}
    found = new_object(
        deployment, "apps/v1", "Deployment", naming.gateway_name(deployment), component
    )
    return found | {
        "spec": {
            "replicas": deployment.spec.gateway.replicas,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "selector": {"matchLabels": _selector(deployment)},
            "template": template,
        }
    }


def _pod(deployment: DistServeDeployment, revision: str, settings: RenderSettings) -> Object:
    return {
        "metadata": {
            "labels": naming.common_labels(deployment)
            | {labels.APP_COMPONENT: labels.COMPONENT_GATEWAY, labels.REVISION: revision}
        },
        "spec": {
            "serviceAccountName": naming.gateway_name(deployment),
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": LEAVE_SECONDS + parts.grace_seconds(deployment),
            "securityContext": parts.pod_security(),
            "tolerations": node_lost_tolerations(deployment),
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": _selector(deployment)},
                }
            ],
            "containers": [_container(deployment, settings)],
            "volumes": [parts.key_volume(deployment), parts.scratch_volume()],
        },
    }


def _container(deployment: DistServeDeployment, settings: RenderSettings) -> Object:
    return {
        "name": GATEWAY,
        "image": deployment.spec.images.gateway or settings.images.gateway,
        "command": ["distserve", "gateway"],
        "args": processes.gateway_arguments(deployment),
        "env": parts.environment(),
        "ports": [parts.container_port("http", processes.GATEWAY_PORT)],
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}},
        "startupProbe": parts.http_probe("/health", "http", period_seconds=1, failures=120),
        "readinessProbe": parts.http_probe("/readyz", "http", period_seconds=1, failures=3),
        "livenessProbe": parts.http_probe(
            "/health", "http", period_seconds=10, failures=6, timeout_seconds=5
        ),
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_SECONDS}}},
        "terminationMessagePolicy": parts.LAST_WORDS,
        "securityContext": parts.container_security(),
        "volumeMounts": [parts.key_mount(), parts.scratch_mount()],
    }


def _service(deployment: DistServeDeployment) -> Object:
    service = deployment.spec.gateway.service
    component = {labels.APP_COMPONENT: labels.COMPONENT_GATEWAY}
    found = new_object(deployment, "v1", "Service", naming.gateway_name(deployment), component)
    return found | {
        "spec": {
            "type": service.type.value,
            "selector": _selector(deployment),
            "ports": [
                {"name": "http", "port": service.port, "targetPort": "http", "protocol": "TCP"}
            ],
        }
    }


def _disruption_budget(deployment: DistServeDeployment) -> Object:
    name = naming.gateway_name(deployment)
    found = new_object(deployment, "policy/v1", "PodDisruptionBudget", name)
    return found | {
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _selector(deployment)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
    }
