"""Which nodes are one domain: those that share a value of a level's label, or one that lacks it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distserve.placement.inventory import Inventory
from distserve.placement.matching import takes_all
from distserve.placement.nodes import HOSTNAME, Node
from distserve.placement.requests import Domain, InstanceRequest, Level


def domain_of(node: Node, level: Level) -> Domain:
    value = node.labels.get(level.node_label)
    if value:
        return Domain(level.name, level.node_label, value)
    return Domain(level.name, HOSTNAME, node.hostname)


@dataclass(frozen=True, eq=False)
class Group:
    """The nodes of one domain; without a domain, of the whole cluster. Made once a pass."""

    domain: Domain | None
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """Domains of one level, or some of them. Made once a pass."""

    groups: tuple[Group, ...]


def layer_of(nodes: Iterable[Node], level: Level | None) -> Layer:
    """For no level the cluster is the one domain."""
    if level is None:
        names = tuple(node.name for node in nodes)
        return Layer((Group(None, names),) if names else ())
    found: dict[Domain, list[str]] = {}
    for node in nodes:
        found.setdefault(domain_of(node, level), []).append(node.name)
    return Layer(tuple(Group(domain, tuple(names)) for domain, names in found.items()))


def share_together(places: Iterable[str], nodes: Mapping[str, Node], level: Level | None) -> float:
    """Share of the pairs of pods, one node name each, that lie in one domain of the level."""
    counts: dict[Domain | None, int] = {}
    for place in places:
        domain = domain_of(nodes[place], level) if level else None
        counts[domain] = counts.get(domain, 0) + 1
    everyone = sum(counts.values())
    pairs = everyone * (everyone - 1)
    return sum(n * (n - 1) for n in counts.values()) / pairs if pairs else 1.0


def sizes(
    inventory: Inventory,
    level: Level | None,
    resource: str,
    instances: Sequence[InstanceRequest],
) -> list[list[int]]:
    """By domain, how many of a resource each node has when empty that takes the pods of all these
    instances."""
    nodes = (node for node in inventory.nodes.values() if takes_all(node, instances))
    found = (
        [count for name in group.nodes if (count := inventory.free_when_empty(name).get(resource))]
        for group in layer_of(nodes, level).groups
    )
    return [counts for counts in found if counts]
