"""In which order domains are tried for a unit: the score, as a key to sort by.

First those in whose failure domain (the loosest level) the scheduler refused the unit least often,
then those with fewest of the deployment's other units there, then the fullest that could do, so
that large gaps stay large, then those with fewest of the deployment's units themselves.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop

from distserve.placement.domains import Group, Layer
from distserve.placement.ladder import spread_over
from distserve.placement.requests import Level, UnitRequest
from distserve.placement.room import Room
from distserve.placement.view import NOWHERE, Refused, View


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
    refused: Refused = NOWHERE

    def ranked(self, view: View, room: Room) -> Iterator[Group]:
        """Those whose sum of the scarce resource would do, best first."""
        scarce = view.scarce(self.unit)
        need = 0 if self.pinned else self.unit.total.get(scarce, 0)
        failure = spread_over(self.unit, self.promised)
        shy = view.refusals(self.refused, failure)
        far, near = (view.counts(self.siblings, level) for level in (failure, self.level))
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
