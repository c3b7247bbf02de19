"""What a unit's StatefulSets say of its room: read when a replica begins to lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distserve.operator.health import PLACE, read_place
from distserve.operator.model import Object
from distserve.operator.requests import instance_request
from distserve.placement.requests import UnitId, UnitRequest


def stated(unit: UnitId, sets: Sequence[Object]) -> tuple[UnitRequest, Mapping[str, str]]:
    """The unit's request, and the node of each pod that was given one. Where an instance has
    several nodes, its pods go to them in order, as they were placed."""
    request = UnitRequest(unit, tuple(map(instance_request, sets)), waiting_since=0.0)
    nodes = {}
    for instance, one in zip(request.instances, sets, strict=True):
        text = (one["metadata"].get("annotations") or {}).get(PLACE)
        place = read_place(text) if text else None
        chosen = place.nodes.get(instance.name, ()) if place else ()
        if chosen:
            for at, pod in enumerate(instance.pod_names):
                nodes[pod] = chosen[at % len(chosen)]
    return request, nodes
