"""A unit as one PodGroup of the KAI scheduler: read by `operator` (topology.scheduler KAI).

    minMember: all pods of the unit, so that KAI binds all of them or none
    stalenessGracePeriod: negative, since what is left of a unit that lost pods serves on

https://github.com/kai-scheduler/KAI-Scheduler
"""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources.asked import digest_of
from distserve.resources.objects import Object, new_object
from distserve.resources.queued import Admission, Admitted

GROUP: Final = "scheduling.run.ai"
API_VERSION: Final = f"{GROUP}/v2alpha2"
KIND: Final = "PodGroup"
QUEUE_API_VERSION: Final = f"{GROUP}/v2"
QUEUE_KIND: Final = "Queue"
SERVED: Final = f"{API_VERSION}/{KIND}"
GROUP_NAME: Final = "pod-group-name"
"""Annotation of a pod: the PodGroup of which it is a member."""
UNGROUPED: Final = "kai.scheduler/skip-podgrouper"
"""Annotation of a pod: KAI's pod-grouper is not to make it a member of a group of its own."""
PREEMPTIBILITIES: Final = ("preemptible", "non-preemptible")
NEVER: Final = "-1s"


def queue_of(deployment: DistServeDeployment) -> str:
    """By KAI's own label, as on every workload that it schedules."""
    return deployment.metadata.labels.get(labels.KAI_QUEUE, "")


def pod_group(
    deployment: DistServeDeployment, unit: str, pods: int, priority_class: str, name: str = ""
) -> Object:
    """`name` where its pods have one already. Else what is never changed of it stands in its name;
    and the deployment's uid, since KAI knows PodGroups of all namespaces by their name alone."""
    spec: Object = {"queue": queue_of(deployment), "stalenessGracePeriod": NEVER}
    if priority_class:
        spec["priorityClassName"] = priority_class
    if preemptibility := deployment.metadata.labels.get(labels.KAI_PREEMPTIBILITY, ""):
        spec["preemptibility"] = preemptibility
    distinct = digest_of([deployment.metadata.uid, spec])[:8]
    name = name or f"{deployment.name}-{unit}-{distinct}"
    found = new_object(deployment, API_VERSION, KIND, name, {labels.UNIT: unit})
    return {**found, "spec": {"minMember": pods, **spec}}


def membership(deployment: DistServeDeployment, name: str) -> Admission:
    """What the pods of all roles get: whose members they are."""
    got = Admitted(annotations={GROUP_NAME: name, UNGROUPED: "true"})
    return {role.value: got for role in deployment.spec.roles}
