"""In which order domains are tried for a unit: the score, as a key to sort by.

First those in whose failure domain (the loosest level) the scheduler refused the unit least often,
then those with fewest of the deployment's other units there, then the fullest that could do, so
that large gaps stay large, then those with fewest of the deployment's units themselves.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop

from distserve.placement.domains import Group, Layer, domain_of
from distserve.placement.ladder import spread_over
from distserve.placement.requests import CLUSTER, Domain, Level, UnitRequest
from distserve.placement.room import Room
from distserve.placement.view import View


@dataclass(frozen=True)
class Choice:
    """Domains of `level`, inside a domain of `promised`, that have all of `pinned` in them."""

    unit: UnitRequest
    level: Level | None
    promised: Level | None
    pinned: Collection[str]
    """Nodes where pods of the unit run already."""
    siblings: Collection[Collection[str]]
    """Nodes of each other unit of the deployment."""
    refused: Collection[Collection[str]] = ()
    """Nodes of each domain that refused the unit."""

    def ranked(self, view: View, room: Room) -> Iterator[Group]:
        """Those whose sum of the scarce resource would do, best first."""
        scarce = view.scarce(self.unit)
        need = 0 if self.pinned else self.unit.total.get(scarce, 0)
        failure = spread_over(self.unit, self.promised)
        shy = _counts(view, self.refused, failure)
        far, near = (_counts(view, self.siblings, level) for level in (failure, self.level))
        layer = self.possible(view)
        groups, shelves = layer.groups, room.shelves(layer, scarce)
        outer = view.outer(layer, failure)
        # Sorted as far as it is asked for: nearly always the first will do.
        heap = [
            (
                shy[outside] if shy else 0,
                far[outside] if far else 0,
                shelf.total,
                near[group.domain] if near else 0,
                position,
            )
            for position, (group, shelf, outside) in enumerate(
                zip(groups, shelves, outer, strict=True)
            )
            if shelf.total >= need
        ]
        heapify(heap)
        while heap:
            yield groups[heappop(heap)[-1]]

    def possible(self, view: View) -> Layer:
        """Whatever is free there."""
        within = self.unit.within
        layer = view.layer(self.level)
        if not self.pinned and not within:
            return layer
        homes = {view.domain(node, self.level) for node in self.pinned}
        return Layer(
            tuple(
                group
                for group in layer.groups
                if (not self.pinned or homes == {group.domain})
                and (not within or view.domain(group.nodes[0], self.promised) == within)
            )
        )


def refused_nodes(unit: UnitRequest, view: View) -> list[frozenset[str]]:
    """Of each domain that refused the unit, in the request's order, if it is still there."""
    found: dict[str, set[str]] = {name: set() for name in unit.refused}
    if found:
        for node in view.inventory.nodes.values():
            for name in (CLUSTER, *(str(domain_of(node, level)) for level in unit.levels)):
                if name in found:
                    found[name].add(node.name)
    return [frozenset(nodes) for nodes in found.values() if nodes]


def _counts(
    view: View, some: Collection[Collection[str]], level: Level | None
) -> Counter[Domain | None]:
    """How many of these sets of nodes have one in each domain."""
    found: Counter[Domain | None] = Counter()
    if level is not None:
        nodes = view.inventory.nodes
        for names in some:
            found.update({domain_of(nodes[name], level) for name in names})
    return found
