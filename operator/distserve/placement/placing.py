"""One pass over all waiting units: the serial loop that decides for the whole cluster.

Called by the operator whenever nodes, pods or units changed, and by `distserve plan` with nodes
from a file. It changes nothing: who acts on a decision reserves it in the inventory.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distserve.placement import explain
from distserve.placement.decisions import Decision, Placed, Reason, Waiting
from distserve.placement.domains import Group, domain_of, share_together
from distserve.placement.inventory import Inventory, UnitRecord
from distserve.placement.packing import Allowed, Budget, Seats, pack
from distserve.placement.requests import Domain, InstanceRequest, Level, UnitId, UnitRequest
from distserve.placement.room import Room
from distserve.placement.view import View, asked_level, promised_levels, tighter_levels

STEPS_PER_PASS = 50_000
"""Of the searches that follow when the quick packing fails."""


def place(inventory: Inventory, waiting: Sequence[UnitRequest], now: float) -> list[Decision]:
    """A decision for each unit, in the order in which they were decided.

    Priority first, then age. A unit that is reserved or bound already keeps its nodes while they
    will do, so a pass may be run again at any time, with the units that are placed or without.
    """
    at_work = Pass(inventory, now)
    return [at_work.decide(unit) for unit in sorted(waiting, key=order)]


def order(unit: UnitRequest) -> tuple[int, float, UnitId]:
    return (-unit.priority, unit.waiting_since, unit.id)


@dataclass
class Pass:
    """What one pass knows and has decided so far."""

    inventory: Inventory
    now: float
    view: View = field(init=False)
    room: Room = field(init=False)
    emptied: Room = field(init=False)
    """As if only the nodes' own pods were there: what could ever fit."""
    budget: Budget = field(default_factory=lambda: Budget(STEPS_PER_PASS))
    held: set[str] = field(default_factory=set)
    """Nodes kept for a unit that waited too long, closed to those behind it."""
    homes: dict[tuple[str, str], dict[UnitId, set[str]]] = field(default_factory=dict)
    """Nodes of each unit of a deployment."""
    _failed: dict[tuple[object, Group], tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = View(self.inventory)
        self.room = Room(self.inventory.free)
        self.emptied = Room(
            self.inventory.free_when_empty,
            rank=lambda node, resource: -self.inventory.free(node).get(resource, 0),
        )
        for unit, record in self.inventory.units.items():
            self._settle(unit, {seat.node for seat in record.seats.values()})

    def decide(self, unit: UnitRequest) -> Decision:
        pins = self._leave(unit)
        seats = self._as_before(unit, pins)
        if seats is None:
            seats = self._anew(unit, pins, self._open)
        if seats is None:
            self._settle(unit.id, set(pins.values()))
            return self._wait(unit, pins)
        self._settle(unit.id, set(seats.values()))
        return Placed(
            unit.id,
            self._common_domain(unit, seats),
            seats,
            share_together(seats.values(), self.inventory.nodes, asked_level(unit)),
        )

    def _leave(self, unit: UnitRequest) -> Seats:
        """Gives back the unit's own room, but for pods that run: those stay where they are."""
        record = self.inventory.units.get(unit.id)
        pins: Seats = {}
        if record is None:
            return pins
        for pod in unit.pod_names:
            seat, bound = record.seat(pod), record.bound.get(pod)
            if seat is None or seat.node not in self.inventory.nodes:
                continue
            if bound is not None and not bound.terminating:
                pins[pod] = seat.node
            else:
                self.room.take(seat.node, seat.amounts, -1)
        return pins

    def _as_before(self, unit: UnitRequest, pins: Seats) -> Seats | None:
        """What is reserved for the unit, if all of it still will do."""
        record = self.inventory.units.get(unit.id, UnitRecord({}, {}))
        seats = {pod: seat.node for pod, seat in record.reserved.items()} | pins
        known = self.inventory.nodes
        if set(seats) != set(unit.pod_names) or any(node not in known for node in seats.values()):
            return None
        if not self._fulfils(unit, seats):
            return None
        taken: list[tuple[str, InstanceRequest]] = []
        for instance in unit.instances:
            for pod in instance.pod_names:
                if pod in pins:
                    continue
                node = seats[pod]
                if node not in self.view.allowed(instance) or not self.room.capacity(
                    node, instance.amounts, 1
                ):
                    for where, what in taken:
                        self.room.take(where, what.amounts, -1)
                    return None
                self.room.take(node, instance.amounts)
                taken.append((node, instance))
        return {pod: seats[pod] for pod in unit.pod_names}

    def _anew(self, unit: UnitRequest, pins: Seats, allowed: Allowed) -> Seats | None:
        """The best place of those that fit, taken."""
        for promised in promised_levels(unit, self.now):
            for level in [*tighter_levels(unit, promised), promised]:
                for group in self._candidates(unit, level, promised, pins):
                    if seats := self._pack(unit, group, pins, allowed):
                        return seats
        return None

    def _pack(self, unit: UnitRequest, group: Group, pins: Seats, allowed: Allowed) -> Seats | None:
        """`pack`, remembering what failed until something in the group changes."""
        scarce = self.view.scarce(unit)
        state = (self.room.shelf(group, scarce).changes, len(self.held))
        key = (self._shape(unit), group)
        if not pins and self._failed.get(key) == state:
            return None
        seats = pack(
            unit,
            group,
            self.room,
            scarce=scarce,
            allowed=allowed,
            budget=self.budget,
            pinned=pins,
        )
        if seats is None:
            self._failed[key] = (self.room.shelf(group, scarce).changes, len(self.held))
            return None
        return {pod: pins.get(pod) or seats[pod] for pod in unit.pod_names}

    def _shape(self, unit: UnitRequest) -> object:
        return tuple(
            (i.pods, tuple(sorted(i.amounts.items())), self.view.constraints(i))
            for i in unit.instances
        )

    def _candidates(
        self, unit: UnitRequest, level: Level | None, promised: Level | None, pins: Seats
    ) -> Iterator[Group]:
        """Domains of the level that could do, best first: far from the deployment's other units,
        then with the least free, then with fewer of its units."""
        scarce = self.view.scarce(unit)
        need = unit.total.get(scarce, 0) if not pins else 0
        loosest = unit.levels[-1] if unit.levels else None
        failure = loosest if promised not in (None, loosest) else None
        far = self._siblings(unit, failure)
        near = self._siblings(unit, level)
        nodes = self.inventory.nodes
        pinned = {domain_of(nodes[node], level) for node in pins.values()} if level else {None}
        ranked = []
        for group in self.view.groups(level):
            if pins and pinned != {group.domain}:
                continue
            first = nodes[group.nodes[0]]
            if unit.within and promised and domain_of(first, promised) != unit.within:
                continue
            total = self.room.shelf(group, scarce).total
            if total >= need:
                apart = far[domain_of(first, failure)] if failure else 0
                ranked.append((apart, total, near[group.domain], group.nodes[0], group))
        return (group for *_, group in sorted(ranked, key=lambda entry: entry[:4]))

    def _siblings(self, unit: UnitRequest, level: Level | None) -> Counter[Domain | None]:
        """How many of the deployment's other units are in each domain."""
        found: Counter[Domain | None] = Counter()
        if level is None:
            return found
        for other, names in self.homes.get(unit.id[:2], {}).items():
            if other != unit.id:
                known = [self.inventory.nodes[name] for name in names]
                found.update({domain_of(node, level) for node in known})
        return found

    def _settle(self, unit: UnitId, nodes: set[str]) -> None:
        known = nodes & set(self.inventory.nodes) if nodes else nodes
        self.homes.setdefault(unit[:2], {})[unit] = known

    def _fulfils(self, unit: UnitRequest, seats: Mapping[str, str]) -> bool:
        if unit.pack_within is None and unit.within is None:
            return True
        return self._common_domain(unit, seats) is not None or (
            promised_levels(unit, float("inf"))[-1] is None
        )

    def _common_domain(self, unit: UnitRequest, seats: Mapping[str, str]) -> Domain | None:
        """The tightest of the domains that would do for the unit and that has all its pods."""
        for level in promised_levels(unit, float("inf")):
            if level is not None:
                names = seats.values()
                found = {domain_of(self.inventory.nodes[name], level) for name in names}
                if len(found) == 1 and (unit.within is None or found == {unit.within}):
                    return found.pop()
        return None

    def _open(self, instance: InstanceRequest) -> frozenset[str]:
        allowed = frozenset(self.view.allowed(instance))
        return allowed - self.held if self.held else allowed

    def _wait(self, unit: UnitRequest, pins: Seats) -> Waiting:
        return Waiting(unit.id, Reason.NO_ROOM, explain.no_room(unit))
