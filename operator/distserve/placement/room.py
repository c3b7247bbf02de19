"""The free amounts that one pass works on: decisions take from it, what does not fit is undone.

For each group of nodes and each resource it keeps a *shelf*: the group's nodes by free amount, so
that the tightest node with enough is found by bisection, also among a thousand.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distserve.placement.domains import Group, Layer
from distserve.placement.quantities import Amounts


@dataclass
class Shelf:
    """Nodes of one group, fewest free first, then by rank, then by name."""

    resource: str
    keys: list[tuple[int, int, str]]
    ranks: Mapping[str, int]
    total: int
    changes: int = 0

    def from_tightest(self, least: int) -> Iterator[str]:
        """Nodes with at least this much free, the fullest of them first."""
        # One element sorts before all longer tuples that begin with it.
        for position in range(bisect_left(self.keys, (least,)), len(self.keys)):
            yield self.keys[position][2]

    def move(self, node: str, before: int, after: int) -> None:
        self.changes += 1
        if before == after:
            return
        rank = self.ranks.get(node, 0)
        del self.keys[bisect_left(self.keys, (before, rank, node))]
        insort(self.keys, (after, rank, node))
        self.total += max(after, 0) - max(before, 0)


@dataclass
class Room:
    """`read` gives a node's free amounts before the pass; `rank` orders nodes with equal ones."""

    read: Callable[[str], dict[str, int]]
    rank: Callable[[str, str], int] = lambda node, resource: 0
    changes: int = 0
    _free: dict[str, dict[str, int]] = field(default_factory=dict)
    _shelves: dict[tuple[Group, str], Shelf] = field(default_factory=dict)
    _layers: dict[tuple[Layer, str], list[Shelf]] = field(default_factory=dict)
    _of_node: dict[str, list[Shelf]] = field(default_factory=dict)

    def free(self, node: str) -> Amounts:
        found = self._free.get(node)
        if found is None:
            found = self._free[node] = self.read(node)
        return found

    def capacity(self, node: str, each: Amounts, at_most: int) -> int:
        """How many pods of this size the node takes, up to `at_most`."""
        free = self.free(node)
        for name, count in each.items():
            if (fitting := free.get(name, 0) // count) < at_most:
                at_most = fitting
                if at_most <= 0:
                    return 0
        return at_most

    def take(self, node: str, each: Amounts, pods: int = 1) -> None:
        """Negative `pods` gives back. Does not ask whether it fits."""
        self.changes += 1
        self.free(node)
        free = self._free[node]
        before = {shelf.resource: free.get(shelf.resource, 0) for shelf in self._on(node)}
        for name, count in each.items():
            free[name] = free.get(name, 0) - count * pods
        for shelf in self._on(node):
            shelf.move(node, before[shelf.resource], free.get(shelf.resource, 0))

    def shelf(self, group: Group, resource: str) -> Shelf:
        found = self._shelves.get((group, resource))
        if found is None:
            ranks = {node: self.rank(node, resource) for node in group.nodes}
            free = {node: self.free(node).get(resource, 0) for node in group.nodes}
            keys = sorted((free[node], ranks[node], node) for node in group.nodes)
            found = Shelf(resource, keys, ranks, sum(max(count, 0) for count in free.values()))
            self._shelves[(group, resource)] = found
            for node in group.nodes:
                self._of_node.setdefault(node, []).append(found)
        return found

    def shelves(self, layer: Layer, resource: str) -> Sequence[Shelf]:
        found = self._layers.get((layer, resource))
        if found is None:
            found = [self.shelf(group, resource) for group in layer.groups]
            self._layers[(layer, resource)] = found
        return found

    def _on(self, node: str) -> list[Shelf]:
        return self._of_node.get(node, [])
