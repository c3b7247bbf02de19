"""Pods into one group of nodes: which pod goes to which node, or that they do not fit together.

First the quick way, which is right nearly always: instances largest first, each on the fullest
node that takes it whole, else inside the fullest tighter domain that does, on as few nodes as
possible. Where that fails though the sums would do, a bounded search over all ways.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distserve.placement.domains import Group, Layer
from distserve.placement.quantities import Amounts
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest
from distserve.placement.room import Room, Shelf

STEPS_PER_SEARCH = 5_000
"""Nodes looked at."""


class PodKey(NamedTuple):
    unit: UnitId
    pod: str


Seats = dict[PodKey, str]
"""Where each pod goes: names of nodes."""
Allowed = Callable[[InstanceRequest], frozenset[str]]
"""Names of the nodes that an instance's pods may go to."""


@dataclass(frozen=True)
class Part:
    """Pods of one instance that need seats."""

    each: Amounts
    pods: tuple[PodKey, ...]
    allowed: frozenset[str]


@dataclass
class Budget:
    """Bounds the searches of a pass together, so that its time stays proportional to its size."""

    steps: int

    def spend(self, steps: int = 1) -> bool:
        self.steps -= steps
        return self.steps >= 0


def parts_of(unit: UnitRequest, allowed: Allowed, seated: Collection[str] = ()) -> list[Part]:
    """What is to be seated of a unit, but for pods that have their seats."""
    found = []
    for instance in unit.instances:
        names = [pod for pod in instance.pod_names if pod not in seated]
        if names:
            pods = tuple(PodKey(unit.id, pod) for pod in names)
            found.append(Part(instance.amounts, pods, allowed(instance)))
    return found


def pack(
    parts: Sequence[Part],
    group: Group,
    room: Room,
    scarce: str,
    budget: Budget,
    inner: Sequence[Layer] = (),
) -> Seats | None:
    """Seats for all the pods, taken from the room; None, and the room as it was.

    `inner` has the tighter domains inside the group, tightest first: an instance of several nodes
    lies in one of them where it can, since its ranks talk to each other most.
    """
    shelf = room.shelf(group, scarce)
    if shelf.total < sum(part.each.get(scarce, 0) * len(part.pods) for part in parts):
        return None
    ordered = sorted(parts, key=lambda p: (p.each.get(scarce, 0), len(p.pods)), reverse=True)
    seats: Seats = {}
    for part in ordered:
        found = _seat(part, room, shelf, inner)
        if found is None:
            give_back(seats, ordered, room)
            return _search(ordered, group, room, budget)
        seats |= found
    return seats


def give_back(seats: Seats, parts: Sequence[Part], room: Room) -> None:
    for part in parts:
        for pod in part.pods:
            if pod in seats:
                room.take(seats[pod], part.each, -1)


def take_again(seats: Seats, parts: Sequence[Part], room: Room) -> None:
    for part in parts:
        for pod in part.pods:
            room.take(seats[pod], part.each)


def _seat(part: Part, room: Room, shelf: Shelf, inner: Sequence[Layer]) -> Seats | None:
    """One instance: on one node, else inside one tighter domain, else anywhere in the group."""
    if len(part.pods) > 1 and inner and _fullest(part, len(part.pods), room, shelf) is None:
        need = part.each.get(shelf.resource, 0) * len(part.pods)
        for layer in inner:
            shelves = [one for one in room.shelves(layer, shelf.resource) if one.total >= need]
            for one in sorted(shelves, key=lambda one: one.total):
                if seats := _on_few_nodes(part, room, one):
                    return seats
    return _on_few_nodes(part, room, shelf)


def _on_few_nodes(part: Part, room: Room, shelf: Shelf) -> Seats | None:
    """On as few nodes as fit, each the fullest that will do."""
    seats: Seats = {}
    waiting = list(part.pods)
    while waiting:
        count = len(waiting)
        node = _fullest(part, count, room, shelf)
        if node is None and count > 1:
            count = _largest_capacity(part, count, room, shelf)
            node = _fullest(part, count, room, shelf) if count else None
        if node is None:
            give_back(seats, [part], room)
            return None
        room.take(node, part.each, count)
        seats |= dict.fromkeys(waiting[:count], node)
        del waiting[:count]
    return seats


def _fullest(part: Part, count: int, room: Room, shelf: Shelf) -> str | None:
    """The node with the least left that takes so many pods."""
    for node in shelf.from_tightest(part.each.get(shelf.resource, 0) * count):
        if node in part.allowed and room.capacity(node, part.each, count) == count:
            return node
    return None


def _largest_capacity(part: Part, at_most: int, room: Room, shelf: Shelf) -> int:
    nodes = shelf.from_tightest(part.each.get(shelf.resource, 0))
    return max(
        (room.capacity(node, part.each, at_most) for node in nodes if node in part.allowed),
        default=0,
    )


def _search(parts: Sequence[Part], group: Group, room: Room, budget: Budget) -> Seats | None:
    """Any seating at all, by depth-first search; None too when a budget ends."""
    for part in parts:
        places = (
            room.capacity(node, part.each, len(part.pods))
            for node in group.nodes
            if node in part.allowed
        )
        if sum(places) < len(part.pods):
            return None
    search = _Search(parts, group, room, budget, Budget(STEPS_PER_SEARCH))
    return search.seats if search.descend(0, 0) else None


class _Search:
    def __init__(
        self, parts: Sequence[Part], group: Group, room: Room, budget: Budget, own: Budget
    ) -> None:
        self.seats: Seats = {}
        self._parts, self._group, self._room = parts, group, room
        self._pods = [(part, pod) for part in parts for pod in part.pods]
        self._budget, self._own = budget, own

    def descend(self, depth: int, first: int) -> bool:
        """Seats the pods from `depth` on, the next one on the node at `first` or after it."""
        if depth == len(self._pods):
            return True
        part, pod = self._pods[depth]
        # Pods of one instance are alike: among themselves they go to ascending nodes.
        together = depth + 1 < len(self._pods) and self._pods[depth + 1][0] is part
        tried: set[object] = set()
        for position in range(first, len(self._group.nodes)):
            node = self._group.nodes[position]
            if not (self._own.spend() and self._budget.spend()):
                return False
            if node not in part.allowed or not self._room.capacity(node, part.each, 1):
                continue
            kind = self._kind(node)
            if kind in tried:
                continue
            tried.add(kind)
            self._room.take(node, part.each)
            self.seats[pod] = node
            if self.descend(depth + 1, position if together else 0):
                return True
            self._room.take(node, part.each, -1)
            del self.seats[pod]
        return False

    def _kind(self, node: str) -> object:
        """Equal for nodes that make no difference."""
        return (
            frozenset(self._room.free(node).items()),
            *(node in part.allowed for part in self._parts),
        )
