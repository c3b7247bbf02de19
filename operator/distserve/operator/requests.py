"""A unit of a deployment as placement knows units: what each pod asks for, and of which nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.api.planning import Planning
from distserve.operator.model import Object
from distserve.placement.pods import claimed_amounts, pod_amounts
from distserve.placement.quantities import CPU, PODS
from distserve.placement.requests import (
    Enforcement,
    InstanceRequest,
    Level,
    UnitId,
    UnitRequest,
)
from distserve.resources.instances import stateful_set
from distserve.resources.naming import instances
from distserve.resources.queued import Admission, with_admission
from distserve.resources.revisions import Revision, make_revision
from distserve.resources.settings import RenderSettings

NO_PRIORITIES: Final[Mapping[str, int]] = MappingProxyType({})


def unit_request(
    deployment: DistServeDeployment,
    unit: str,
    revision: Revision,
    waiting_since: float,
    priorities: Mapping[str, int] = NO_PRIORITIES,
    admission: Admission | None = None,
) -> UnitRequest:
    """`priorities` are the cluster's classes, as in `Features`; a unit is as urgent as the least
    urgent of its pods. With a queue's `admission` it goes where that says."""
    topology = deployment.spec.topology
    sets = [
        with_admission(stateful_set(deployment, instance, revision), admission)
        for instance in instances(deployment, unit, revision.unit)
    ]
    return UnitRequest(
        id=UnitId(deployment.namespace, deployment.name, unit),
        instances=tuple(map(instance_request, sets)),
        waiting_since=waiting_since,
        priority=min((_priority(one, priorities) for one in sets), default=0),
        levels=tuple(Level(one.name, one.node_label) for one in topology.resolved_levels),
        pack_within=topology.pack_within,
        enforcement=Enforcement(topology.enforcement.value),
        relax_after_seconds=topology.relax_after_seconds,
        reserve_after_seconds=parse_duration(topology.reserve_after),
    )


def for_unit(
    alike: UnitRequest, deployment: DistServeDeployment, unit: str, revision: Revision
) -> UnitRequest:
    """Of another unit of the same revision, which nothing but names tells from that one: there may
    be thousands, and to render them all would take seconds."""
    named = instances(deployment, unit, revision.unit)
    return replace(
        alike,
        id=alike.id._replace(unit=unit),
        instances=tuple(
            replace(one, name=instance.name)
            for one, instance in zip(alike.instances, named, strict=True)
        ),
    )


def role_instances(
    deployment: DistServeDeployment, settings: RenderSettings
) -> tuple[InstanceRequest, ...]:
    """One of each role, whose numbers a plan has still to find: what they ask for may be more, to
    which nodes their pods may go is the same. Raises RenderError."""
    spec = deployment.spec.model_copy(update={"planning": Planning()})
    numbered = deployment.model_copy(update={"spec": spec})
    return unit_request(numbered, "u0", make_revision(numbered, settings), 0.0).instances


def instance_request(found: Object) -> InstanceRequest:
    """Of a StatefulSet."""
    template = found["spec"]["template"]
    pod = template["spec"]
    node = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return InstanceRequest(
        name=found["metadata"]["name"],
        pods=found["spec"]["replicas"],
        requests={**_requests(pod), **claimed_amounts(template["metadata"])},
        node_selector=pod.get("nodeSelector") or {},
        tolerations=tuple(pod.get("tolerations") or ()),
        node_affinity_terms=tuple(required.get("nodeSelectorTerms") or ()),
    )


def _priority(found: Object, priorities: Mapping[str, int]) -> int:
    """As the API server will fill it in: templates have the class's name only. 0 for a class that
    is not there, whose pods are refused."""
    name = found["spec"]["template"]["spec"].get("priorityClassName") or ""
    return priorities.get(name, 0)


def _requests(pod: Mapping[str, Any]) -> dict[str, Fraction]:
    """Base units, of placement's thousandths of a core."""
    return {
        name: Fraction(count, 1000 if name == CPU else 1)
        for name, count in pod_amounts(pod).items()
        if name != PODS
    }
