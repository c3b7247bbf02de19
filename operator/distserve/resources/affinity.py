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
    together: Mapping[str, str] = field(default_factory=dict)
    """Labels of the unit's pods, where the domain is open: any one that has all of them will do."""
    avoid: tuple[str, ...] = ()
    """But none of these."""


def with_place(affinity: Object, placement: Placement, instance: str) -> Object:
    """The affinity of the stored template and the placement's: both hold."""
    if placement.together:
        return _with_open_place(affinity, placement)
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


def _with_open_place(affinity: Object, placement: Placement) -> Object:
    """The first of the pods goes to any domain, the others follow it; who adds nodes sees that."""
    if not placement.label:
        return affinity
    term = {"labelSelector": {"matchLabels": dict(placement.together)}}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    rules: Object = {"podAffinity": {required: [{**term, "topologyKey": placement.label}]}}
    if placement.avoid:
        elsewhere = {"key": placement.label, "operator": "NotIn", "values": list(placement.avoid)}
        terms = [{"matchExpressions": [elsewhere]}]
        rules["nodeAffinity"] = {required: {"nodeSelectorTerms": terms}}
    return merge_affinity(affinity, rules)
