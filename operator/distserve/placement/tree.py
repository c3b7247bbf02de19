"""The cluster as a tree of domains with what is free in each: what `distserve topology` prints."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distserve.placement.domains import domain_of
from distserve.placement.inventory import Inventory
from distserve.placement.nodes import HOSTNAME, Node
from distserve.placement.quantities import Amounts
from distserve.placement.requests import Level

NODE = "node"


@dataclass(frozen=True)
class Branch:
    """A domain, or at the leaves a node."""

    level: str
    name: str
    free: Amounts
    """On usable nodes: cordoned and unready ones have nothing to give."""
    allocatable: Amounts
    nodes: int
    branches: tuple["Branch", ...] = ()
    notes: tuple[str, ...] = ()
    """What keeps pods off a node."""


def tree(inventory: Inventory, levels: Sequence[Level]) -> tuple[Branch, ...]:
    """Outermost domains first; `levels` are tightest first. A node that lacks a level's label
    hangs where its next looser label is."""
    nodes = sorted(inventory.nodes.values(), key=lambda node: node.name)
    return _branches(inventory, nodes, list(reversed(levels)))


def accelerators(inventory: Inventory) -> list[str]:
    """Extended resources and classes of devices that the nodes offer; cores without any."""
    names = {
        name
        for node in inventory.nodes
        for name, count in inventory.allocatable(node).items()
        if "/" in name and not name.startswith("kubernetes.io/") and count
    }
    return sorted(names) or ["cpu"]


def crossings(inventory: Inventory, levels: Sequence[Level]) -> list[str]:
    """Domains that lie in more than one domain of the next looser level, in a sentence each."""
    found = []
    for inner, outer in pairwise(levels):
        homes: dict[str, set[str]] = {}
        for node in inventory.nodes.values():
            domain = domain_of(node, inner)
            if domain.node_label == inner.node_label:
                homes.setdefault(domain.value, set()).add(domain_of(node, outer).value)
        found += [
            f"{inner.name} {value} lies in {len(places)} domains of {outer.name}: "
            f"{', '.join(sorted(places))}"
            for value, places in sorted(homes.items())
            if len(places) > 1
        ]
    return found


def _branches(
    inventory: Inventory, nodes: Sequence[Node], levels: Sequence[Level]
) -> tuple[Branch, ...]:
    if not levels:
        return tuple(_leaf(inventory, node) for node in nodes)
    level, *inner = levels
    labelled: dict[str, list[Node]] = {}
    alone: list[Node] = []
    for node in nodes:
        domain = domain_of(node, level)
        if domain.node_label == HOSTNAME != level.node_label:
            alone.append(node)
        else:
            labelled.setdefault(domain.value, []).append(node)
    found = [
        _sum(level.name, value, _branches(inventory, members, inner))
        for value, members in sorted(labelled.items())
    ]
    return (*found, *_branches(inventory, alone, inner))


def _sum(level: str, name: str, branches: tuple[Branch, ...]) -> Branch:
    return Branch(
        level,
        name,
        _total(branch.free for branch in branches),
        _total(branch.allocatable for branch in branches),
        sum(branch.nodes for branch in branches),
        branches,
    )


def _leaf(inventory: Inventory, node: Node) -> Branch:
    ails = {"cordoned": node.cordoned, "not ready": not node.ready}
    free = inventory.free(node.name) if node.usable else {}
    return Branch(
        NODE,
        node.name,
        {name: max(count, 0) for name, count in free.items()},
        inventory.allocatable(node.name),
        1,
        notes=(
            *(word for word, so in ails.items() if so),
            *(f"taint {taint}" for taint in node.taints),
        ),
    )


def _total(amounts: Iterable[Amounts]) -> Amounts:
    found: dict[str, int] = {}
    for one in amounts:
        for name, count in one.items():
            found[name] = found.get(name, 0) + count
    return found
