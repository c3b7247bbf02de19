"""What is missing for a unit, and where least of it is: what a message is made of."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest

from distserve.placement.domains import Group
from distserve.placement.packing import Budget, Part, give_back, pack
from distserve.placement.quantities import PODS
from distserve.placement.room import Room

LOOKED_AT = 16
"""Of the groups with most of the scarce resource, so that explaining costs less than deciding."""


@dataclass(frozen=True)
class Shortage:
    """In sum over a domain, or on one node."""

    resource: str
    need: int
    have: int

    @property
    def share(self) -> float:
        return 1 - self.have / self.need


@dataclass(frozen=True)
class NodeShortage:
    """The sums would do, but no node takes a pod of this part."""

    part: int
    node: str
    """The one with most."""
    short: Shortage


@dataclass(frozen=True)
class Lack:
    """In the group that lacks least. With neither, pods do not fit side by side."""

    group: Group
    sums: Sequence[Shortage]
    """Biggest first."""
    node: NodeShortage | None


def fitting_group(
    parts: Sequence[Part], groups: Iterable[Group], room: Room, scarce: str, budget: Budget
) -> Group | None:
    """One that would take all of it; the room stays as it is."""
    for group in groups:
        seats = pack(parts, group, room, scarce, budget)
        if seats is not None:
            give_back(seats, parts, room)
            return group
    return None


def least_lack(parts: Sequence[Part], groups: Sequence[Group], room: Room, scarce: str) -> Lack:
    """Where the unit comes closest to fitting. `groups` is not empty."""
    need: Counter[str] = Counter()
    for part in parts:
        need.update({name: count * len(part.pods) for name, count in part.each.items()})
    names = frozenset[str]().union(*(part.allowed for part in parts))

    def sums(group: Group) -> list[Shortage]:
        nodes = [room.free(node) for node in group.nodes if node in names]
        found = [
            Shortage(name, count, sum(max(free.get(name, 0), 0) for free in nodes))
            for name, count in need.items()
        ]
        return sorted((s for s in found if s.have < s.need), key=lambda s: (-s.share, s.resource))

    near = nlargest(LOOKED_AT, groups, key=lambda group: room.shelf(group, scarce).total)
    found = [(sums(group), group) for group in near]
    short, group = min(found, key=lambda pair: pair[0][0].share if pair[0] else 0.0)
    return Lack(group, short, None if short else _on_one_node(parts, group, room))


def _on_one_node(parts: Sequence[Part], group: Group, room: Room) -> NodeShortage | None:
    for index, part in sorted(enumerate(parts), key=lambda item: -max(item[1].each.values())):
        nodes = [node for node in group.nodes if node in part.allowed]
        for name, count in sorted(part.each.items(), key=lambda item: item[0] == PODS):
            most = max(nodes, key=lambda node: room.free(node).get(name, 0))
            have = max(room.free(most).get(name, 0), 0)
            if have < count:
                return NodeShortage(index, most, Shortage(name, count, have))
    return None
