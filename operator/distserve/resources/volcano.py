"""A unit as one PodGroup of Volcano: read by `operator` (topology.scheduler Volcano).

    minMember: all pods of the unit, so that Volcano binds all of them or none
    minResources: all that they request, by which its Queue lets it in

https://volcano.sh/en/docs/podgroup/
"""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.placement.quantities import CPU
from distserve.resources.asked import Asked, digest_of
from distserve.resources.objects import Object, new_object
from distserve.resources.queued import Admission, Admitted

GROUP: Final = "scheduling.volcano.sh"
API_VERSION: Final = f"{GROUP}/v1beta1"
KIND: Final = "PodGroup"
QUEUE_KIND: Final = "Queue"
SERVED: Final = f"{API_VERSION}/{KIND}"
DEFAULT_QUEUE: Final = "default"
"""Volcano makes it itself."""
GROUP_NAME: Final = "scheduling.k8s.io/group-name"
"""Annotation of a pod: the PodGroup of which it is a member."""
ASKED: Final = f"{labels.GROUP}/asked"
"""Label of a PodGroup: hash of what its Queue counts."""
LET_IN: Final = f"{labels.GROUP}/let-in"
"""Annotation of a PodGroup: since when its Queue has let it in, which Volcano does not say."""


def queue_of(deployment: DistServeDeployment) -> str:
    """By Volcano's annotation: workloads have it, and it is Volcano's own default without."""
    return deployment.metadata.annotations.get(labels.VOLCANO_QUEUE, "") or DEFAULT_QUEUE


def pod_group(
    deployment: DistServeDeployment,
    unit: str,
    asked: Asked,
    queue: str,
    priority_class: str,
    name: str = "",
) -> Object:
    """`name` where its pods have one already. What has been asked once is never changed, so else
    all that it says stands in its name."""
    distinct = digest_of([asked.digest, queue, priority_class])[:8]
    marks = {labels.UNIT: unit, ASKED: asked.digest}
    found = new_object(
        deployment, API_VERSION, KIND, name or f"{deployment.name}-{unit}-{distinct}", marks
    )
    found["spec"] = {
        "minMember": asked.pods,
        "minResources": {name: _quantity(name, count) for name, count in asked.amounts.items()},
        "queue": queue,
    }
    if priority_class:
        found["spec"]["priorityClassName"] = priority_class
    return found


def membership(deployment: DistServeDeployment, name: str) -> Admission:
    """What the pods of all roles get: whose members they are."""
    got = Admitted(annotations={GROUP_NAME: name})
    return {role.value: got for role in deployment.spec.roles}


def _quantity(resource: str, counted: int) -> str:
    if resource != CPU:
        return str(counted)
    return f"{counted}m" if counted % 1000 else str(counted // 1000)
