"""A unit as one Workload of Kueue: read by `operator` (topology.scheduler Kueue).

    podSets: one of each role, with as many pods as its instances have in the unit

https://kueue.sigs.k8s.io/docs/concepts/workload/
"""

import hashlib
from collections import defaultdict
from typing import Final, NamedTuple

import msgspec

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.resources import naming
from distserve.resources.instances import stateful_set
from distserve.resources.objects import Object, new_object
from distserve.resources.revisions import Revision

GROUP: Final = "kueue.x-k8s.io"
API_VERSION: Final = f"{GROUP}/v1beta2"
KIND: Final = "Workload"
SERVED: Final = f"{API_VERSION}/{KIND}"
ASKED: Final = f"{labels.GROUP}/asked"
"""Label of a Workload: hash of what quota is counted by, and flavors are chosen by."""
JOB_UID: Final = f"{GROUP}/job-uid"
"""Label of a Workload: whose it is, by which Kueue names those that preempt others."""
BEFORE: Final = f"{labels.GROUP}/before"
"""Annotation of a Workload that follows one whose quota Kueue took back: why it did."""
COUNTED: Final = (
    "nodeSelector", "affinity", "priorityClassName", "runtimeClassName", "overhead", "resources",
    "resourceClaims",
)  # fmt: skip
"""Fields of a pod's spec that quota and flavors depend on, besides containers and tolerations."""


class Priority(NamedTuple):
    """In the queue."""

    value: int = 0
    group: str = ""
    """Of the class; empty where none was named."""
    name: str = ""


class PodSets(NamedTuple):
    """What a unit asks its queue for."""

    sets: tuple[Object, ...]
    asked: str
    """Hash of it; revisions that differ in other things ask for the same."""


def pod_sets(deployment: DistServeDeployment, unit: str, revision: Revision) -> PodSets:
    by_role: dict[str, list[Object]] = defaultdict(list)
    for instance in naming.instances(deployment, unit, revision.unit):
        by_role[instance.role.value].append(stateful_set(deployment, instance, revision))
    sets = tuple(
        {
            "name": role,
            "count": sum(one["spec"]["replicas"] for one in some),
            "template": some[0]["spec"]["template"],
        }
        for role, some in by_role.items()
    )
    return PodSets(sets, _digest([[s["name"], s["count"], _counted(s)] for s in sets]))


def workload(
    deployment: DistServeDeployment,
    unit: str,
    asked: PodSets,
    queue: str,
    priority: Priority,
    after: str = "",
    before: str = "",
    active: bool = True,
) -> Object:
    """`after`: uid of the unit's Workload that lost its quota, `before`: why. What has been asked
    once is never changed, so all that it says stands in its name."""
    distinct = _digest([asked.asked, queue, *priority, after])[:8]
    name = f"{deployment.name}-{unit}-{distinct}"
    marks = {labels.UNIT: unit, ASKED: asked.asked}
    if deployment.metadata.uid:
        marks[JOB_UID] = deployment.metadata.uid
    found = new_object(deployment, API_VERSION, KIND, name, marks)
    if before:
        found["metadata"]["annotations"] = {BEFORE: before}
    found["spec"] = {
        "queueName": queue,
        "active": active,
        "priority": priority.value,
        "podSets": list(asked.sets),
    }
    if priority.name:
        found["spec"]["priorityClassRef"] = {
            "group": priority.group,
            "kind": "WorkloadPriorityClass" if priority.group == GROUP else "PriorityClass",
            "name": priority.name,
        }
    return found


def _counted(pod_set: Object) -> Object:
    pod = pod_set["template"]["spec"]
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    return {
        **{name: pod[name] for name in COUNTED if pod.get(name)},
        "containers": [[c.get("resources"), c.get("restartPolicy")] for c in containers],
        # Those for nodes that are lost are about time.
        "tolerations": [t for t in pod.get("tolerations", ()) if "tolerationSeconds" not in t],
    }


def _digest(found: object) -> str:
    return hashlib.sha256(msgspec.json.encode(found, order="sorted")).hexdigest()[:16]
