"""Units whose pods are members of a group that another scheduler binds whole: what is the same for
all of them (Volcano, KAI).

Such a group is named in an annotation of the pods, and who schedules them stands in their revision:
so they are members of one group from their making to their end, whatever the spec says later.
"""

from __future__ import annotations

from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import POD_SCHEDULERS, Scheduler
from distserve.operator.health import LiveUnit, unit_by_name
from distserve.operator.model import Object, Observed
from distserve.resources.revisions import Revision


def belongs(
    scheduler: Scheduler,
    annotation: str,
    deployment: DistServeDeployment,
    revision: Revision,
    live: LiveUnit | None,
) -> bool:
    """Whether a unit that is to have this revision is bound by that scheduler."""
    if is_same(revision, live):
        return bool(group_of(live, revision.name, annotation))
    name = POD_SCHEDULERS[scheduler]
    return deployment.spec.topology.scheduler == scheduler and all(
        template["spec"].get("schedulerName") == name for template in revision.templates.values()
    )


def is_same(revision: Revision, live: LiveUnit | None) -> bool:
    """Pods of that revision are there: as what they were made, the rest of the unit will be."""
    return live is not None and any(
        instance.revision == revision.name for instance in live.instances.values()
    )


def group_of(live: LiveUnit | None, revision: str, annotation: str) -> str:
    """Name of the group whose members the unit's pods are made as: those of the revision, else
    those that are there. Empty where they are no members of any."""
    instances = [] if live is None else list(live.instances.values())
    for one in [one for one in instances if one.revision == revision] or instances:
        template = one.statefulset["spec"]["template"]
        if name := (template["metadata"].get("annotations") or {}).get(annotation):
            return str(name)
    return ""


def of_units(observed: Observed, api_version: str, kind: str) -> dict[str, list[Object]]:
    """What stands for units, by unit, oldest first; without what is going."""
    found: dict[str, list[Object]] = {}
    for ref, live in observed.children.items():
        stays = ref[:2] == (api_version, kind) and "deletionTimestamp" not in live["metadata"]
        if stays and (unit := unit_by_name(ref.name, live)):
            found.setdefault(unit, []).append(live)
    for some in found.values():
        some.sort(
            key=lambda one: (one["metadata"].get("creationTimestamp", ""), one["metadata"]["name"])
        )
    return found


def least_urgent(observed: Observed, revision: Revision) -> str:
    """Priority class of the least urgent of its pods, as in placement; empty: they name none."""
    known = observed.features.priorities
    names = [t["spec"].get("priorityClassName") or "" for t in revision.templates.values()]
    return min(names, key=lambda name: (known.get(name, 0), name), default="")
