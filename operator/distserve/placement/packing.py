"""One unit into one group of nodes: which pod goes to which node, or that it does not fit.

First the quick way, which is right nearly always: instances largest first, each on the fullest
node that takes it whole, else on as few nodes as possible. Where that fails though the sums would
do, a bounded search over all ways.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from distserve.placement.domains import Group
from distserve.placement.quantities import Amounts
from distserve.placement.requests import InstanceRequest, UnitRequest
from distserve.placement.room import Room, Shelf

Seats = dict[str, str]
"""Pod name -> node name."""
Allowed = Callable[[InstanceRequest], Collection[str]]
"""Names of the nodes that an instance's pods may go to."""

STEPS_PER_SEARCH = 500


@dataclass(frozen=True)
class Part:
    """What is left to seat of one instance."""

    each: Amounts
    pods: tuple[str, ...]
    allowed: Collection[str]


@dataclass
class Budget:
    """Bounds the searches of a pass together, so that its time stays proportional to its size."""

    steps: int

    def spend(self) -> bool:
        self.steps -= 1
        return self.steps >= 0


def sizes(unit: UnitRequest) -> dict[str, Amounts]:
    return {pod: instance.amounts for instance in unit.instances for pod in instance.pod_names}


def pack(
    unit: UnitRequest,
    group: Group,
    room: Room,
    *,
    scarce: str,
    allowed: Allowed,
    budget: Budget,
    pinned: Mapping[str, str] | None = None,
) -> Seats | None:
    """Seats of all pods but the pinned ones, taken from the room; None, and the room as it was."""
    pins = pinned or {}
    parts = [
        Part(instance.amounts, names, allowed(instance))
        for instance in unit.instances
        if (names := tuple(pod for pod in instance.pod_names if pod not in pins))
    ]
    parts.sort(key=lambda part: (part.each.get(scarce, 0), len(part.pods)), reverse=True)
    shelf = room.shelf(group, scarce)
    if shelf.total < sum(part.each.get(scarce, 0) * len(part.pods) for part in parts):
        return None
    sized = {pod: part.each for part in parts for pod in part.pods}
    seats: Seats = {}
    for part in parts:
        found = _seat(part, room, shelf)
        if found is None:
            room.take_all(seats, sized, -1)
            return _search(parts, group, room, Budget(min(STEPS_PER_SEARCH, budget.steps)), budget)
        seats |= found
    return seats


def _seat(part: Part, room: Room, shelf: Shelf) -> Seats | None:
    """One instance on as few nodes as fit, each the fullest that will do."""
    seats: Seats = {}
    waiting = list(part.pods)
    while waiting:
        node = _fullest(part, len(waiting), room, shelf)
        count = len(waiting)
        if node is None and count > 1:
            count = _largest_capacity(part, count, room, shelf)
            node = _fullest(part, count, room, shelf) if count else None
        if node is None:
            room.take_all(seats, dict.fromkeys(seats, part.each), -1)
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
    best = 0
    each = part.each.get(shelf.resource, 0)
    for node in shelf.from_tightest(each):
        if node in part.allowed:
            best = max(best, room.capacity(node, part.each, at_most))
    return best


def _search(
    parts: Sequence[Part], group: Group, room: Room, own: Budget, whole: Budget
) -> Seats | None:
    """Any seating at all, by depth-first search; None too when the budget ends."""
    for part in parts:
        places = sum(
            room.capacity(node, part.each, len(part.pods))
            for node in group.nodes
            if node in part.allowed
        )
        if places < len(part.pods):
            return None
    seats: Seats = {}
    pods = [(part, pod) for part in parts for pod in part.pods]

    def descend(depth: int, first: int) -> bool:
        if depth == len(pods):
            return True
        part, pod = pods[depth]
        alike: set[tuple[object, ...]] = set()
        for position in range(first, len(group.nodes)):
            node = group.nodes[position]
            if node not in part.allowed or not room.capacity(node, part.each, 1):
                continue
            kind = (
                *sorted(room.free(node).items()),
                *(node in other.allowed for other in parts),
            )
            if kind in alike:
                continue
            if not (own.spend() and whole.spend()):
                return False
            alike.add(kind)
            room.take(node, part.each)
            seats[pod] = node
            same_next = depth + 1 < len(pods) and pods[depth + 1][0] is part
            # Pods of one instance are alike: only ascending nodes are tried.
            if descend(depth + 1, position if same_next else 0):
                return True
            room.take(node, part.each, -1)
            del seats[pod]
        return False

    return seats if descend(0, 0) else None
