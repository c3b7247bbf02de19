"""StatefulSets of the instances, their headless Service and the units' disruption budgets."""

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import gangs, naming, processes
from distserve.resources.affinity import Placement, with_place
from distserve.resources.fabric import claims
from distserve.resources.naming import Instance, Labels
from distserve.resources.objects import Object, new_object
from distserve.resources.revisions import Revision
from distserve.resources.tolerations import node_lost_tolerations


def stateful_set(
    deployment: DistServeDeployment,
    instance: Instance,
    revision: Revision,
    placement: Placement | None = None,
) -> Object:
    """One instance, a replica for each of its pods: the stored template with the instance's labels,
    its unit's place, and how long its pods wait on a silent node.

    OnDelete: instances are replaced by whoever knows the unit, never by a template's change.
    """
    domain = placement.value if placement else ""
    own_labels = naming.instance_labels(instance, domain)
    stored = _patient(revision.templates[instance.role], deployment)
    template = _template(stored, own_labels, placement, instance.name)
    template["spec"] = claims.of_unit(deployment, instance.unit, template["spec"])
    template["spec"] = gangs.member(template["spec"], deployment, instance.unit, revision)
    found = new_object(
        deployment,
        "apps/v1",
        "StatefulSet",
        instance.name,
        naming.role_labels(deployment, instance.role, revision.name) | own_labels,
    )
    return found | {
        "spec": {
            "replicas": getattr(revision.unit, instance.role.value).pods or 1,
            "serviceName": naming.headless_service_name(deployment),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": naming.instance_selector(deployment, instance)},
            "template": template,
        }
    }


def _template(
    stored: Object, own_labels: Labels, placement: Placement | None, instance: str
) -> Object:
    """Shares with the stored template what it does not change: there are many instances."""
    metadata, spec = stored["metadata"], stored["spec"]
    place = with_place(spec.get("affinity", {}), placement, instance) if placement else {}
    return {
        **stored,
        "metadata": {**metadata, "labels": {**metadata["labels"], **own_labels}},
        "spec": {**spec, "affinity": place} if place else spec,
    }


def _patient(stored: Object, deployment: DistServeDeployment) -> Object:
    """Not stored with it: another nodeLostAfter is no reason to replace what runs."""
    spec = stored["spec"]
    tolerations = [*spec.get("tolerations", ()), *node_lost_tolerations(deployment)]
    return {**stored, "spec": {**spec, "tolerations": tolerations}}


def headless_service(deployment: DistServeDeployment) -> Object:
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


def disruption_budget(deployment: DistServeDeployment, unit: str, protected: bool) -> Object:
    """A protected unit loses no pod to evictions; another may lose all, since a unit is of use
    only whole."""
    found = new_object(
        deployment,
        "policy/v1",
        "PodDisruptionBudget",
        f"{deployment.name}-{unit}",
        {labels.UNIT: unit},
    )
    return found | {
        "spec": {
            "maxUnavailable": 0 if protected else "100%",
            "selector": {"matchLabels": naming.unit_selector(deployment, unit)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
    }
