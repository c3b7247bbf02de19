"""StatefulSets of the instances, their headless Service and the units' disruption budgets."""

import hashlib
import json

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming, processes
from distserve.resources.engines import engine_pod
from distserve.resources.merge import merge_pod_template
from distserve.resources.naming import Instance
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings

REVISION_LENGTH = 8


def revision_of(deployment: DistServeDeployment) -> str:
    """Hash of what the instances' pods are made from: units and the gateway change nothing in it,
    a field that a later version adds does not either while it has its default."""
    spec = deployment.spec.model_dump(
        mode="json",
        exclude_defaults=True,
        include={
            "model": True, "accelerator": True, "strategy": True, "prefill": True, "decode": True,
            "hybrid": True, "kv_transfer": True, "rollout": {"drain_deadline"},
        },
    )  # fmt: skip
    images = deployment.spec.images
    spec["images"] = [images.engine, images.migrator]
    for role in deployment.spec.roles:
        spec[role].pop("instancesPerUnit", None)
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:REVISION_LENGTH]


def instance_objects(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    revision = revision_of(deployment)
    return [
        _headless_service(deployment),
        *(_disruption_budget(deployment, i, u) for i, u in enumerate(naming.units(deployment))),
        *(_stateful_set(deployment, i, revision, settings) for i in naming.instances(deployment)),
    ]


def _stateful_set(
    deployment: DistServeDeployment, instance: Instance, revision: str, settings: RenderSettings
) -> Object:
    """OnDelete: instances are replaced by whoever knows the unit, never by a template's change."""
    template = merge_pod_template(
        engine_pod(deployment, instance, revision, settings),
        instance.section.pod_template,
        f"spec.{instance.role}.podTemplate",
    )
    found = new_object(
        deployment,
        "apps/v1",
        "StatefulSet",
        instance.name,
        naming.instance_labels(deployment, instance, revision),
    )
    return found | {
        "spec": {
            "replicas": 1,
            "serviceName": naming.headless_service_name(deployment),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": naming.instance_selector(deployment, instance)},
            "template": template,
        }
    }


def _headless_service(deployment: DistServeDeployment) -> Object:
    """Gives the instances' pods names before they are ready: ranks and migrators meet early."""
    found = new_object(deployment, "v1", "Service", naming.headless_service_name(deployment))
    ports = {
        "engine": processes.ENGINE_PORT,
        "migrator": processes.MIGRATOR_PORT,
        "metrics": processes.MIGRATOR_METRICS_PORT,
    }
    return found | {
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": naming.component_selector(deployment, labels.COMPONENT_ENGINE),
            "ports": [
                {"name": name, "port": port, "targetPort": port, "protocol": "TCP"}
                for name, port in ports.items()
            ],
        }
    }


def _disruption_budget(deployment: DistServeDeployment, index: int, unit: str) -> Object:
    """The first minAvailableUnits units lose no pod to evictions; the others may, since a unit is
    of use only whole."""
    kept = index < deployment.spec.disruption.min_available_units
    found = new_object(
        deployment,
        "policy/v1",
        "PodDisruptionBudget",
        f"{deployment.name}-{unit}",
        {labels.UNIT: unit},
    )
    return found | {
        "spec": {
            "maxUnavailable": 0 if kept else "100%",
            "selector": {"matchLabels": naming.unit_selector(deployment, unit)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
    }
