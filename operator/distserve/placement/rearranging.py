"""When a unit does not fit, other places for what this very pass has decided may make room for it.

Units are decided one by one, each where it fits best; together they can be in each other's way.
Nothing is moved that was decided before this pass.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import NamedTuple

from distserve.placement.domains import Group, Layer
from distserve.placement.packing import Budget, Part, Seats, give_back, pack, take_again
from distserve.placement.requests import UnitId
from distserve.placement.room import Room

MAX_UNITS = 8
MAX_GROUPS = 8
STEPS_PER_UNIT = 4_000
"""Nodes of the groups that units are tried in."""


class Budgets(NamedTuple):
    """Of the whole pass."""

    search: Budget
    groups: Budget


@dataclass(frozen=True)
class Movable:
    """A unit that may be seated elsewhere; `seats` is empty for the one that looks for a place."""

    unit: UnitId
    parts: Sequence[Part]
    home: Group | None
    seats: Seats

    def away_from(self, held: Collection[str]) -> "Movable":
        """It may stay on nodes that are held for a unit behind it, but not go there: the room that
        it leaves would be taken by one further behind."""
        if not held:
            return self
        parts = [replace(part, allowed=part.allowed.difference(held)) for part in self.parts]
        return replace(self, parts=parts)

    def need(self, resource: str) -> int:
        return sum(part.each.get(resource, 0) * len(part.pods) for part in self.parts)


def rearrange(
    newcomer: Movable,
    decided: Sequence[Movable],
    layer: Layer,
    room: Room,
    scarce: str,
    budgets: Budgets,
) -> list[Movable] | None:
    """The newcomer and those that make way, with new seats, taken from the room.

    Exact for up to MAX_UNITS units in MAX_GROUPS groups, as far as the budget goes; of more, the
    emptiest groups are looked at. None, and the room as it was, where nothing was found.
    """
    near = _neighbourhood(decided, layer, room, scarce)
    inside = [one for one in decided if one.home in near]
    free = sum(room.shelf(group, scarce).total for group in near)
    if not inside or free < newcomer.need(scarce):
        return None
    for one in inside:
        give_back(one.seats, one.parts, room)
    units = sorted([newcomer, *inside], key=lambda one: one.need(scarce), reverse=True)
    table = _Table(units, near, room, scarce, budgets, Budget(STEPS_PER_UNIT))
    if table.descend(0):
        return table.result()
    for one in inside:
        take_again(one.seats, one.parts, room)
    return None


def _neighbourhood(
    decided: Sequence[Movable], layer: Layer, room: Room, scarce: str
) -> list[Group]:
    units: dict[Group | None, int] = {}
    for one in decided:
        units[one.home] = units.get(one.home, 0) + 1
    near: list[Group] = []
    count = 0
    shelves = room.shelves(layer, scarce)
    for position in nlargest(MAX_GROUPS, range(len(shelves)), key=lambda p: shelves[p].total):
        group = layer.groups[position]
        if count + units.get(group, 0) <= MAX_UNITS:
            near.append(group)
            count += units.get(group, 0)
    return near


@dataclass
class _Table:
    """Units at groups, and the seats of each group's units together."""

    units: Sequence[Movable]
    groups: Sequence[Group]
    room: Room
    scarce: str
    budgets: Budgets
    own: Budget
    at: dict[Group, list[Movable]] = field(default_factory=dict)
    seats: dict[Group, Seats] = field(default_factory=dict)

    def descend(self, depth: int) -> bool:
        if depth == len(self.units):
            return True
        unit = self.units[depth]
        tried: set[object] = set()
        for group in self.groups:
            nodes = len(group.nodes)
            if not (self.own.spend(nodes) and self.budgets.groups.spend(nodes)):
                return False
            kind = self._kind(group)
            if kind in tried:
                continue
            tried.add(kind)
            before, others = self.seats.get(group, {}), self.at.get(group, [])
            others_parts = [part for one in others for part in one.parts]
            parts = [*others_parts, *unit.parts]
            give_back(before, others_parts, self.room)
            found = pack(parts, group, self.room, self.scarce, self.budgets.search)
            if found is not None:
                self.at[group], self.seats[group] = [*others, unit], found
                if self.descend(depth + 1):
                    return True
                give_back(found, parts, self.room)
                self.at[group], self.seats[group] = others, before
            take_again(before, others_parts, self.room)
        return False

    def _kind(self, group: Group) -> object:
        """Equal for groups that make no difference: the same nodes, for the same units."""
        parts = [part for unit in self.units for part in unit.parts]
        nodes = [
            (sorted(self.room.free(node).items()), [node in part.allowed for part in parts])
            for node in group.nodes
        ]
        return repr((sorted(nodes), [one.unit for one in self.at.get(group, [])]))

    def result(self) -> list[Movable]:
        return [
            Movable(one.unit, one.parts, group, self._of(one.unit, group))
            for group, units in self.at.items()
            for one in units
        ]

    def _of(self, unit: UnitId, group: Group) -> Seats:
        return {key: node for key, node in self.seats[group].items() if key.unit == unit}
