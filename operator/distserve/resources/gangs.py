"""A unit as one PodGroup of Kubernetes' own gang scheduling (topology.scheduler GangScheduling).

    minCount: all pods of the unit, so that kube-scheduler binds all of them or none

It is one of the unit's objects, as its disruption budget is: there is no quota, so nothing admits
it. What counts is fixed when it is made, so revision and unit are its name, and the number of a
unit's pods is part of that revision.

https://kubernetes.io/docs/concepts/scheduling-eviction/gang-scheduling/
"""

from typing import Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import Scheduler
from distserve.resources import naming
from distserve.resources.objects import Object, new_object
from distserve.resources.revisions import Revision

API_VERSION: Final = "scheduling.k8s.io/v1alpha2"
KIND: Final = "PodGroup"
SERVED: Final = f"{API_VERSION}/{KIND}"
FIELD: Final = "schedulingGroup"
"""Of a pod's spec. Empty in a revision's templates; `member` writes the unit's group there."""

WAITS_FOR_OTHERS: Final = "pod group is unschedulable"
"""So begin kube-scheduler's words about a member that would find a node, but for the others."""


def is_of(revision: Revision) -> bool:
    """Whether its pods are members of their unit's PodGroup."""
    return all(one["spec"].get(FIELD) == {} for one in revision.templates.values())


def group_name(deployment: DistServeDeployment, unit: str, revision: Revision) -> str:
    return f"{deployment.name}-{unit}-{revision.name}"


def pod_group(deployment: DistServeDeployment, unit: str, revision: Revision) -> Object:
    pods = sum(
        getattr(revision.unit, instance.role.value).pods or 1
        for instance in naming.instances(deployment, unit, revision.unit)
    )
    name = group_name(deployment, unit, revision)
    marks = {labels.UNIT: unit, labels.REVISION: revision.name}
    found = new_object(deployment, API_VERSION, KIND, name, marks)
    return found | {"spec": {"schedulingPolicy": {"gang": {"minCount": pods}}}}


def member(spec: Object, deployment: DistServeDeployment, unit: str, revision: Revision) -> Object:
    """A stored pod's spec as that of a member of its unit's PodGroup."""
    if not is_of(revision):
        return spec
    return {**spec, FIELD: {"podGroupName": group_name(deployment, unit, revision)}}


def refused(deployment: DistServeDeployment) -> str | None:
    """One line with field and cure, or None. kube-scheduler takes no group whose pods name
    different ones of its profiles; so it would wait for ever."""
    if deployment.spec.topology.scheduler != Scheduler.GANG_SCHEDULING:
        return None
    names = {
        role.value: _scheduler_name(section.pod_template)
        for role, section in deployment.spec.roles.items()
    }
    if len(set(names.values())) < 2:
        return None
    role = next(role for role, name in names.items() if name)
    return (
        f"spec.{role}.podTemplate.spec.schedulerName: with topology.scheduler GangScheduling all "
        "pods of a unit have the same one; name it in all roles, or in none"
    )


def _scheduler_name(template: Object) -> str:
    """What a podTemplate names; whether it is one is judged where it is merged."""
    spec = template.get("spec")
    return str(spec.get("schedulerName") or "") if isinstance(spec, dict) else ""
