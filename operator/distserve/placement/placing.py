"""One pass over all waiting units: the serial loop that decides for the whole cluster.

Called by the operator whenever nodes, pods or units changed, and by `distserve plan` with nodes
from a file. It changes nothing: who acts on a decision reserves it in the inventory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from distserve.placement.candidates import Choice
from distserve.placement.decisions import Decision, Placed, Reason, Waiting
from distserve.placement.domains import Group, share_together
from distserve.placement.explain import Explainer
from distserve.placement.inventory import ByNode, Inventory
from distserve.placement.ladder import asked, common_domain, fulfils, ladder_now, tighter
from distserve.placement.packing import (
    Budget,
    Part,
    Seats,
    give_back,
    pack,
    parts_of,
)
from distserve.placement.rearranging import Budgets, Movable, rearrange
from distserve.placement.requests import InstanceRequest, Level, UnitId, UnitRequest
from distserve.placement.room import Room
from distserve.placement.view import NOWHERE, Refused, View

SEARCH_STEPS = 100_000
"""A pass's bound on the searches that follow when the quick packing fails, in nodes looked at."""
REARRANGING_STEPS = 10_000
"""And on trying units in other groups, in nodes of those groups."""


def place(inventory: Inventory, waiting: Sequence[UnitRequest], now: float) -> list[Decision]:
    """A decision for each unit, in the order in which they were decided.

    Priority first, then age, then size: of units made in one second the larger go first, as small
    ones find room beside large ones sooner than large ones beside small. A unit that is reserved
    or bound already keeps its nodes while they will do, so a pass may be run again at any time,
    with the units that are placed or without.
    """
    at_work = Pass(inventory, now)
    ordered = sorted(waiting, key=at_work.order)
    for unit in ordered:
        at_work.decide(unit)
    if at_work.moved:
        for unit in ordered:
            at_work.decide_again(unit)
    return [at_work.decision(unit) for unit in ordered]


Places = dict[str, str]
"""Pod name -> node name, of one unit."""

NO_NODES = frozenset[str]()


@dataclass
class Pass:
    """What one pass knows and has decided so far."""

    inventory: Inventory
    now: float
    view: View = field(init=False)
    room: Room = field(init=False)
    emptied: Room = field(init=False)
    """As if only the nodes' own pods were there: what could ever fit."""
    explainer: Explainer = field(init=False)
    held: set[str] = field(default_factory=set)
    """Nodes kept for a unit that waited too long, closed to those behind it."""
    homes: dict[tuple[str, str], dict[UnitId, set[str]]] = field(default_factory=dict)
    """Nodes of each unit of a deployment."""
    placed: dict[UnitId, Places] = field(default_factory=dict)
    waiting: dict[UnitId, Places] = field(default_factory=dict)
    """With the pods that run all the same."""
    holds: dict[UnitId, tuple[str, ...]] = field(default_factory=dict)
    movable: dict[UnitId, Movable] = field(default_factory=dict)
    """Decided anew in this pass."""
    moved: bool = False
    """Something that was decided before this pass goes elsewhere, or waits again: there is room
    that those in front of it did not see."""
    settled: int = 0
    """Counts what changes the room for good."""
    search: Budget = field(default_factory=lambda: Budget(SEARCH_STEPS))
    rearranging: Budget = field(default_factory=lambda: Budget(REARRANGING_STEPS))
    _failed: dict[object, tuple[int, int]] = field(default_factory=dict)
    _stuck: dict[object, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view = View(self.inventory)
        self.room = Room(self.inventory.free)
        self.emptied = Room(
            self.inventory.free_when_empty,
            rank=lambda node, resource: -self.inventory.free(node).get(resource, 0),
        )
        self.explainer = Explainer(self.view, self.room, self.emptied, self.search)
        for unit, record in self.inventory.units.items():
            self._settle(unit, {seat.node for seat in record.seats.values()})

    def order(self, unit: UnitRequest) -> tuple[int, float, float, UnitId]:
        return (-unit.priority, unit.waiting_since, -self.view.share(unit), unit.id)

    def decide(self, unit: UnitRequest) -> None:
        if not unit.pod_names:  # Scaled to nothing: nothing stands in its way.
            self._place(unit.id, {})
            return
        pins = self._leave(unit)
        places = self._as_before(unit, pins)
        if places is None:
            self.moved = self.moved or unit.id in self.inventory.units
            places = self._anew(unit, pins) or self._rearranged(unit, pins)
        self._keep_ending(unit, places or {}, pins)
        if places is not None:
            self._place(unit.id, places)
            return
        self._settle(unit.id, set(pins.values()))
        self.waiting[unit.id] = pins
        self.holds[unit.id] = () if pins else self._hold(unit)

    def decide_again(self, unit: UnitRequest) -> None:
        """Of a unit that waits, when there is more room than when it was decided."""
        pins = self.waiting.get(unit.id)
        if pins is not None and not self.holds[unit.id]:
            if record := self.inventory.units.get(unit.id):
                self._take(record.ending, -1)
            places = self._anew(unit, pins)
            self._keep_ending(unit, places or {}, pins)
            if places is not None:
                del self.waiting[unit.id]
                self._place(unit.id, places)

    def decision(self, unit: UnitRequest) -> Decision:
        """Asked when all are decided, so that a message tells of the room that is left."""
        if unit.id in self.waiting:
            return self._wait(unit, self.waiting[unit.id])
        places, nodes = self.placed[unit.id], self.inventory.nodes
        return Placed(
            unit.id,
            common_domain(unit, places, nodes),
            places,
            share_together(places.values(), nodes, asked(unit)),
        )

    def _leave(self, unit: UnitRequest) -> Places:
        """Gives back the unit's own room, but for pods that run: those stay where they are."""
        record = self.inventory.units.get(unit.id)
        pins: Places = {}
        if record is None:
            return pins
        self.settled += 1
        for pod in unit.pod_names:
            bound = record.bound.get(pod)
            if bound is not None and not bound.terminating and bound.node in self.inventory.nodes:
                pins[pod] = bound.node
        self._take(record.changing, -1)
        return pins

    def _keep_ending(self, unit: UnitRequest, places: Places, pins: Places) -> None:
        """Room of its pods that end is its own, and nobody else's before they are gone: what it
        does not come to again is taken again."""
        record = self.inventory.units.get(unit.id)
        if record is None or not record.ending:
            return
        self.movable.pop(unit.id, None)
        left = record.ending
        for instance in unit.instances:
            for pod in instance.pod_names:
                if pod not in pins and (there := left.get(places.get(pod, ""))) is not None:
                    for name, count in instance.amounts.items():
                        there[name] = max(0, there.get(name, 0) - count)
        self._take(left)

    def _take(self, amounts: ByNode, pods: int = 1) -> None:
        for node, each in amounts.items():
            if node in self.inventory.nodes:
                self.room.take(node, each, pods)

    def _as_before(self, unit: UnitRequest, pins: Places) -> Places | None:
        """What was decided for the unit already, if all of it still will do."""
        record, nodes = self.inventory.units.get(unit.id), self.inventory.nodes
        if record is None:
            return None
        places = {pod: seat.node for pod, seat in record.reserved.items()} | pins
        places = {pod: places[pod] for pod in unit.pod_names if places.get(pod) in nodes}
        if len(places) < len(unit.pod_names) or not fulfils(unit, places, nodes):
            return None
        parts = parts_of(unit, self.view.allowed, pins)
        seats: Seats = {}
        for part in parts:
            for key in part.pods:
                node = places[key.pod]
                if node not in part.allowed or not self.room.capacity(node, part.each, 1):
                    give_back(seats, parts, self.room)
                    return None
                self.room.take(node, part.each)
                seats[key] = node
        return places

    def _anew(self, unit: UnitRequest, pins: Places) -> Places | None:
        """The best place of those that fit, taken; of those that refused it only if no other does,
        that of longest ago first."""
        refused = NOWHERE if pins else self.view.refused(unit)
        last = 0 if unit.elsewhere else len(refused.domains)
        for tried in range(last + 1):
            places = self._away_from(refused.away(tried), refused, unit, pins)
            if places is not None:
                return places
        return None

    def _away_from(
        self,
        away: frozenset[str],
        refused: Refused,
        unit: UnitRequest,
        pins: Places,
    ) -> Places | None:
        parts = parts_of(unit, partial(self._open, away=away), pins)
        several = any(len(part.pods) > 1 for part in parts)
        here, siblings = set(pins.values()), self._siblings(unit)
        shape, scarce = self.view.shape(unit), self.view.scarce(unit)
        for promised in ladder_now(unit, self.now):
            for level in [*tighter(unit, promised), promised]:
                choice = Choice(unit, level, promised, here, siblings, refused)
                for group in choice.ranked(self.view, self.room):
                    if away.issuperset(group.nodes):
                        continue
                    inner = tighter(unit, level) if several else ()
                    closed = away if not away.isdisjoint(group.nodes) else NO_NODES
                    alike = None if pins else (shape, closed)
                    seats = self._pack(parts, group, inner, scarce, alike)
                    if seats is not None:
                        places = places_of(seats) | pins
                        self._remember(unit, promised, parts, seats, pins)
                        return places
        return None

    def _pack(
        self,
        parts: Sequence[Part],
        group: Group,
        inner: Sequence[Level],
        scarce: str,
        alike: object | None,
    ) -> Seats | None:
        """`pack`; not tried again for units that are `alike`, until something in the group
        changes. None: as no other, with pods that run."""
        key, shelf = (alike, group), self.room.shelf(group, scarce)
        if alike is not None and self._failed.get(key) == (shelf.changes, len(self.held)):
            return None
        domains = self.view.inside(group, inner)
        seats = pack(parts, group, self.room, scarce, self.search, domains)
        if seats is None and alike is not None:
            self._failed[key] = (shelf.changes, len(self.held))
        return seats

    def _remember(
        self,
        unit: UnitRequest,
        promised: Level | None,
        parts: Sequence[Part],
        seats: Seats,
        pins: Places,
    ) -> None:
        if not pins and unit.within is None:
            home = self.view.group_of(next(iter(seats.values())), promised)
            self.movable[unit.id] = Movable(unit.id, parts, home, seats)

    def _rearranged(self, unit: UnitRequest, pins: Places) -> Places | None:
        """A place that others of this pass make way for, if both fit then."""
        record = self.inventory.units.get(unit.id)
        if record is not None and record.ending:
            return None  # Its former pods' room is open to it now, and must not be to the others.
        key = self.view.shape(unit)
        if pins or unit.within or unit.elsewhere or self._stuck.get(key) == self.settled:
            return None
        parts = parts_of(unit, self._open)
        newcomer = Movable(unit.id, parts, None, {})
        decided = [one.away_from(self.held) for one in self.movable.values()]
        for promised in ladder_now(unit, self.now):
            found = rearrange(
                newcomer,
                decided,
                self.view.layer(promised),
                self.room,
                self.view.scarce(unit),
                Budgets(self.search, self.rearranging),
            )
            if found is not None:
                for moved in found:
                    self.movable[moved.unit] = moved
                    self._place(moved.unit, places_of(moved.seats))
                return self.placed[unit.id]
        self._stuck[key] = self.settled
        return None

    def _wait(self, unit: UnitRequest, pins: Places) -> Waiting:
        if unit.elsewhere and not pins:
            where = ", ".join(unit.refused)
            message = f"unit {unit.id.unit}: there is no room for it but in {where}"
            return Waiting(unit.id, Reason.NO_ROOM, message)
        level = ladder_now(unit, self.now)[-1]
        choice = Choice(unit, level, level, set(pins.values()), ())
        finding = self.explainer.finding(unit, level, choice.possible(self.view), pins)
        holds, message = self.holds[unit.id], finding.message
        if holds:
            message += f". Kept free for it by now: {some(holds)}"
        return Waiting(unit.id, finding.reason, message, holds)

    def _hold(self, unit: UnitRequest) -> tuple[str, ...]:
        """Keeps the nodes for it that are nearest to being free, once it has waited enough.

        They can only become emptier then, as nothing behind it in the order goes there: so it is
        placed when enough of what runs there has ended.
        """
        patience = unit.reserve_after_seconds
        if patience is None or unit.elsewhere or unit.waited(self.now) < patience:
            return ()
        parts, scarce = parts_of(unit, self._open), self.view.scarce(unit)
        for promised in ladder_now(unit, self.now):
            layer = Choice(unit, promised, promised, (), ()).possible(self.view)
            for group in sorted(
                layer.groups, key=lambda group: -self.room.shelf(group, scarce).total
            ):
                seats = pack(parts, group, self.emptied, scarce, self.search)
                if seats is not None:
                    give_back(seats, parts, self.emptied)
                    kept = set(seats.values())
                    self.held |= kept
                    return tuple(sorted(kept))
        return ()

    def _siblings(self, unit: UnitRequest) -> list[set[str]]:
        others = self.homes.get(unit.id[:2], {})
        return [nodes for other, nodes in others.items() if other != unit.id]

    def _place(self, unit: UnitId, places: Places) -> None:
        self.settled += 1
        self.placed[unit] = places
        self._settle(unit, set(places.values()))

    def _settle(self, unit: UnitId, nodes: set[str]) -> None:
        self.homes.setdefault(unit[:2], {})[unit] = nodes & self.inventory.nodes.keys()

    def _open(
        self, instance: InstanceRequest, away: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        allowed = self.view.allowed(instance)
        closed = self.held | away
        return allowed - closed if closed else allowed


def some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def places_of(seats: Seats) -> Places:
    return {key.pod: node for key, node in seats.items()}
