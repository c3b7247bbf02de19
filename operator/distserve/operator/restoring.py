"""What a unit's StatefulSets say of its room: read by `placing` in each reconcile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from distserve.operator.health import HELD_PODS, PLACE, read_place
from distserve.operator.model import Object
from distserve.operator.requests import instance_request
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest

MOST_PODS: Final = 4096
"""Of one instance. Whoever may edit a StatefulSet can write any number there."""


def stated(unit: UnitId, sets: Sequence[Object]) -> tuple[UnitRequest, Mapping[str, str]]:
    """The unit's request, and the node of each pod that was given one. Where an instance has
    several nodes, its pods go to them in order, as they were placed."""
    instances, nodes = [], {}
    for one in sets:
        annotations = one["metadata"].get("annotations") or {}
        text = annotations.get(PLACE)
        place = read_place(text) if text else None
        chosen = place.nodes.get(one["metadata"]["name"], ()) if place else ()
        instance = _instance(one, annotations.get(HELD_PODS, ""), len(chosen))
        instances.append(instance)
        if chosen:
            for at, pod in enumerate(instance.pod_names):
                nodes[pod] = chosen[at % len(chosen)]
    return UnitRequest(unit, tuple(instances), waiting_since=0.0), nodes


def _instance(found: Object, held: str, nodes: int) -> InstanceRequest:
    """While it is held at no pods it needs the room of those that it is to have. Former versions
    did not write that down: one on each of its nodes, mostly."""
    request = instance_request(found)
    pods = request.pods or (int(held[:9]) if held.isdecimal() else nodes)
    return replace(request, pods=min(pods, MOST_PODS))
