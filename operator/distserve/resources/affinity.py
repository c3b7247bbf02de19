"""A unit's place as node affinity: its domain is required, the nodes chosen in it preferred.

So a replacement pod finds its domain while no operator runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from distserve.resources.merge import merge_affinity
from distserve.resources.objects import Object

CHOSEN_NODE_WEIGHT: Final = 100
"""The most that a preference can weigh: the chosen node is left only when it is full or gone."""


@dataclass(frozen=True)
class Placement:
    """Where a unit goes."""

    level: str = ""
    """Name of the topology level; empty where the whole cluster is the domain."""
    label: str = ""
    """The level's node label; kubernetes.io/hostname where the domain is a single node."""
    value: str = ""
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Instance -> the nodes that its pods should prefer."""


def with_place(affinity: Object, placement: Placement, instance: str) -> Object:
    """The affinity of the stored template and the placement's: both hold."""
    rules: Object = {}
    if placement.label:
        rules["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": placement.label, "operator": "In", "values": [placement.value]}
                    ]
                }
            ]
        }
    if nodes := placement.nodes.get(instance, ()):
        rules["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {
                "weight": CHOSEN_NODE_WEIGHT,
                "preference": {
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]
                },
            }
            for node in nodes
        ]
    return merge_affinity(affinity, {"nodeAffinity": rules}) if rules else affinity
