"""A ProvisioningRequest for a unit whose domain is still open, where the cluster serves that kind:
cluster-autoscaler then adds nodes for all of the unit's pods, or none.

    StatefulSets --> PodTemplate of each role <-- ProvisioningRequest <-- the pods' annotation

https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/proposals/provisioning-request.md
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources.objects import Object, new_object

GROUP: Final = "autoscaling.x-k8s.io"
API_VERSION: Final = f"{GROUP}/v1"
KIND: Final = "ProvisioningRequest"
SERVED: Final = f"{API_VERSION}/{KIND}"
TEMPLATE_KIND: Final = "PodTemplate"
CLASS: Final = f"best-effort-atomic-scale-up.{GROUP}"
"""All nodes or none, tried again until ValidUntilSeconds."""


def requested(
    deployment: DistServeDeployment, unit: str, revision: str, objects: Sequence[Object]
) -> list[Object]:
    """A unit's objects, with what asks for its nodes before its StatefulSets. Requests never
    change, so the revision stands in their name."""
    name = f"{deployment.name}-{unit}-{revision}"
    annotations = {
        f"{GROUP}/consume-provisioning-request": name,
        f"{GROUP}/provisioning-class-name": CLASS,
    }
    before: list[Object] = []
    sets: list[Object] = []
    for one in objects:
        if one["kind"] == "StatefulSet":
            sets.append(_annotated(one, annotations))
        else:
            before.append(one)
    by_role: dict[str, list[Object]] = defaultdict(list)
    for one in sets:
        by_role[one["metadata"]["labels"][labels.ROLE]].append(one)
    templates = [
        new_object(deployment, "v1", TEMPLATE_KIND, f"{name}-{role}", {labels.UNIT: unit})
        | {"template": some[0]["spec"]["template"]}
        for role, some in by_role.items()
    ]
    request = new_object(deployment, API_VERSION, KIND, name, {labels.UNIT: unit})
    request |= {
        "spec": {
            "provisioningClassName": CLASS,
            "parameters": {
                "ValidUntilSeconds": f"{deployment.spec.topology.provision_seconds:.0f}"
            },
            "podSets": [
                {
                    "podTemplateRef": {"name": template["metadata"]["name"]},
                    "count": sum(one["spec"]["replicas"] for one in some),
                }
                for template, some in zip(templates, by_role.values(), strict=True)
            ],
        }
    }
    return [*before, *templates, request, *sets]


def _annotated(found: Object, annotations: dict[str, str]) -> Object:
    template = found["spec"]["template"]
    metadata = template["metadata"]
    annotated = {**metadata, "annotations": {**metadata.get("annotations", {}), **annotations}}
    return {**found, "spec": {**found["spec"], "template": {**template, "metadata": annotated}}}
