"""Answers placement questions: one serial loop decides for all units that wait, in the cluster.

    ask --> waiting --pass--> placed, room reserved --> StatefulSets exist --> gone, room released
              ^  no place yet |
              +---------------+  again when nodes, pods or units change, and every few seconds;
                                 units that come in a burst are gathered first (`gathering`)

A place lives here only until the unit's StatefulSets carry it; what they say is reserved from then
on, also when they change and when a replica begins to lead.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from distserve.api.conditions import PlacedReason
from distserve.operator.gathering import Gathering
from distserve.operator.model import Key, NoPlace, Object, Pending, Placement
from distserve.operator.promises import Promises
from distserve.placement.better import better_place
from distserve.placement.decisions import Decision, Placed
from distserve.placement.inventory import Inventory, UnitRecord
from distserve.placement.placing import place
from distserve.placement.readable import unreadable
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest

log = logging.getLogger(__name__)

Answer = Placement | NoPlace

Stated = Callable[[UnitId, Sequence[Object]], tuple[UnitRequest, Mapping[str, str]]]
"""What a unit's StatefulSets say: its request and the node of each pod that has one."""

PAUSE_SECONDS = 0.1
"""Between passes: what changes together is decided together."""
AGAIN_SECONDS = 15.0
"""While units wait: some rules count from how long they did, and faults may be over."""
MOST_PARTS = 64
"""Into which a pass is divided where placement trips. Each takes as long as a pass."""


class Move(NamedTuple):
    """A unit that is to go to a better place, and its room there."""

    request: UnitRequest
    found: Placed


class Placing:
    def __init__(
        self,
        inventory: Inventory,
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        stated: Stated,
    ) -> None:
        self._inventory = inventory
        self._wake = wake
        self._stated = stated
        self._clock = clock
        """Seconds since the epoch: units count their waiting from objects' times."""
        self._requests: dict[UnitId, UnitRequest] = {}
        """Of units without StatefulSets: they wait, or were placed just now."""
        self._answers: dict[UnitId, Answer] = {}
        self._left_out: dict[UnitId, float] = {}
        """Until when: they are answered by themselves, and stand in nobody's way."""
        self._reserved: dict[Key, set[UnitId]] = {}
        self._unmade: dict[UnitId, Sequence[InstanceRequest]] = {}
        """Of these units, what has a place and no StatefulSet yet."""
        self._moves: dict[Key, Move] = {}
        self._promises = Promises()
        self._unsettled: set[Key] = set()
        self._early: set[Key] = set()
        """Deployments that asked for a better place before all was settled."""
        self._changed = asyncio.Event()
        self._gathering = Gathering()
        self._passed = 0.0
        """When the last pass ended."""

    def look(self) -> None:
        """Nodes or pods changed."""
        if self._requests:
            self._changed.set()

    def ask(
        self, key: Key, units: Sequence[UnitRequest]
    ) -> Mapping[str, Placement | NoPlace | Pending]:
        """Answers by unit. Those that are not named wait on, until `keep` leaves them out: a
        decision that knows half of its answers names only half of its units."""
        asked = {unit.id: unit for unit in units}
        for unit, request in asked.items():
            if unit in self._requests and not _alike(self._requests[unit], request):
                self._withdraw(unit)
        new = [request for unit, request in asked.items() if unit not in self._requests]
        if new:
            self._add(new)
        now = self._clock()
        pauses = 0 <= now - self._passed <= PAUSE_SECONDS  # A clock may be put back.
        if self._changed.is_set() and not pauses and not self._gathering.left_seconds(now):
            self._pass()  # Most units find their place at once.
        return {unit.unit: self._answers.get(unit, Pending()) for unit in asked}

    def keep(self, key: Key, units: Collection[UnitId]) -> None:
        """The deployment was decided to the end: its other units are no longer waited for."""
        for unit in [one for one in self._requests if _key(one) == key and one not in units]:
            self._withdraw(unit)

    def better(
        self,
        key: Key,
        unit: UnitRequest | None,
        never: frozenset[str] = frozenset(),
        beside: UnitRequest | None = None,
    ) -> Placement | Pending | None:
        """Where a unit that runs would lie better, but for what has one of these names, and with
        room for that one besides. Room there is kept for it until it is asked for without
        StatefulSets, or this is called for another one or for none."""
        move = self._moves.get(key)
        if move is not None and unit is not None and _alike(move.request, unit):
            return _placement(move.found)
        self._forget_move(key)
        asked = [one for one in (unit, beside) if one is not None]
        if unit is None or any(map(unreadable, asked)):
            return None
        if self._unsettled:
            self._early.add(key)
            return Pending()
        found = better_place(self._inventory, unit, self._sound, self._clock())
        if found is None or never.intersection(_placement(found).names):
            return None
        self._inventory.reserve(replace(unit, id=_aside(unit.id)), found.nodes)
        self._moves[key] = Move(unit, found)
        if beside is not None and not self._has_room(beside):
            self._forget_move(key)
            return None
        return _placement(found)

    def _has_room(self, unit: UnitRequest) -> bool:
        """If it came now, after all that wait."""
        decisions = place(self._inventory, [*self._sound, unit], self._clock())
        return any(isinstance(one, Placed) and one.unit == unit.id for one in decisions)

    def gathers(self, key: Key) -> bool:
        """Whether units of it have no answer only because more may come."""
        return self._gathering.left_seconds(self._clock()) > 0 and any(
            _key(unit) == key and unit not in self._answers for unit in self._requests
        )

    def begin(self, keys: Iterable[Key]) -> None:
        """A replica begins to lead: nothing is placed before each deployment was settled once,
        so that room which was given is not given again while its pods are not bound."""
        self._unsettled = set(keys)
        self._promises = Promises()

    def settle(self, key: Key, units: Mapping[str, Sequence[Object]]) -> None:
        """These units have StatefulSets: they carry their place, and keep their room."""
        existing = {UnitId(key.namespace, key.name, unit): sets for unit, sets in units.items()}
        for unit, sets in existing.items():
            self._requests.pop(unit, None)
            self._answers.pop(unit, None)
            self._left_out.pop(unit, None)
            try:
                self._reserve_stated(unit, sets)
            except ValueError as error:  # Somebody wrote over it, and says so in each reconcile.
                log.warning("its room is not counted: %s", error, extra={"unit": str(unit)})
            except Exception as fault:  # Others wait until all are settled.
                log.warning("its room is not counted", exc_info=fault, extra={"unit": str(unit)})
        for unit in self._reserved.get(key, set()) - existing.keys():
            # Placed just now is not gone.
            if unit not in self._requests:
                self._release(unit)
        self._settled(key)

    def release(self, key: Key) -> None:
        """The deployment is gone."""
        self.keep(key, ())
        for unit in list(self._reserved.get(key, ())):
            self._release(unit)
        self._forget_move(key)
        self._early.discard(key)
        self._settled(key)

    async def run(self) -> None:
        """Decides as long as the replica leads."""
        while True:
            try:
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass  # Rules that count from waiting.
            while left := self._gathering.left_seconds(self._clock()):
                await asyncio.sleep(left)
            self._pass()
            await asyncio.sleep(PAUSE_SECONDS)

    def _settled(self, key: Key) -> None:
        self._unsettled.discard(key)
        if not self._unsettled:
            while self._early:
                self._wake(self._early.pop())

    def _pass(self) -> None:
        if self._unsettled:
            return
        self._changed.clear()
        self._gathering.done()
        for unit, pods in self._promises.ended(self._inventory.units, self._clock()):
            some = {"unit": str(unit), "pods": len(pods)}
            log.warning("room is no longer kept for pods that do not come", extra=some)
            self._inventory.forgo(unit, pods)
        if waiting := self._waiting:
            self._place(sorted(waiting, key=lambda unit: (-unit.priority, unit.waiting_since)))
            self._passed = self._clock()

    def _place(self, waiting: Sequence[UnitRequest]) -> None:
        """A fault must end neither the process, which does more, nor who happens to ask, and hold
        up nobody else: halves are placed by themselves, until who trips is alone."""
        parts, tried = deque([waiting]), 0
        while parts:
            part, tried = parts.popleft(), tried + 1
            try:
                decisions = place(self._inventory, part, self._clock())
            except Exception as fault:
                half = len(part) // 2
                if half and tried < MOST_PARTS:
                    parts.extendleft((part[half:], part[:half]))
                else:
                    for unit in part:
                        self._tripped(unit.id, fault)
            else:
                for decision in decisions:
                    self._decided(decision)

    @property
    def _waiting(self) -> list[UnitRequest]:
        placed, now = self._answers, self._clock()
        return [
            request
            for unit, request in self._requests.items()
            if self._left_out.get(unit, now) <= now and not isinstance(placed.get(unit), Placement)
        ]

    @property
    def _sound(self) -> list[UnitRequest]:
        """Those that wait, but for whom placement tripped over."""
        return [unit for unit in self._waiting if unit.id not in self._left_out]

    def _add(self, new: Sequence[UnitRequest]) -> None:
        """What is gathered is of one age: among equals the larger go first."""
        self._gathering.come(self._clock())
        opened = self._gathering.opened
        for request in new:
            since = request.waiting_since if opened is None else min(opened, request.waiting_since)
            self._requests[request.id] = replace(request, waiting_since=since)
            if why := unreadable(request):
                self._leave_out(request.id, why)
            move = self._moves.get(_key(request.id))
            if move is not None and move.request.id == request.id:
                self._forget_move(_key(request.id))
                self._reserve(request, move.found.nodes)  # What is reserved is kept if it fits.
        self._changed.set()

    def _reserve_stated(self, unit: UnitId, sets: Sequence[Object]) -> None:
        """Raises whatever it comes to where somebody wrote over a StatefulSet."""
        request, nodes = self._stated(unit, sets)
        if not nodes:
            return  # Where its place is open it has no room yet.
        made = {one.name for one in request.instances}
        unmade = [one for one in self._unmade.get(unit, ()) if one.name not in made]
        record = self._inventory.units.get(unit, UnitRecord({}, {}))
        before = dict(record.reserved)
        request = replace(request, instances=(*request.instances, *unmade))
        self._reserve(request, _nodes_now(record, nodes), unmade)
        after = self._inventory.units.get(unit)
        if (after.reserved if after else {}) != before:
            self.look()
        if any((one.get("spec") or {}).get("replicas") == 0 for one in sets):
            self._promises.forget(unit)  # Former pods are to end first, however long that takes.

    def _leave_out(self, unit: UnitId, why: str) -> None:
        """Until it is asked otherwise."""
        log.warning("left out of placement: %s", why, extra={"unit": str(unit)})
        self._left_out[unit] = math.inf
        self._answers[unit] = NoPlace(
            PlacedReason.NO_MATCHING_NODES,
            f"unit {unit.unit}: nobody can tell which nodes it may use: {why}",
        )

    def _tripped(self, unit: UnitId, fault: Exception) -> None:
        """It is tried again, but not at each of the others' turns; each fault is logged once."""
        words = " ".join(f"{type(fault).__name__}: {fault}".split())
        why = (
            f"unit {unit.unit}: the operator trips over finding its place: {words}. That is its "
            "fault: please report it with the traceback from its log. It is tried again"
        )
        self._left_out[unit] = self._clock() + AGAIN_SECONDS
        if self._answer(unit, NoPlace(PlacedReason.PLACING, why)):
            log.error("a fault of the operator", exc_info=fault, extra={"unit": str(unit)})

    def _reserve(
        self,
        unit: UnitRequest,
        nodes: Mapping[str, str],
        unmade: Sequence[InstanceRequest] | None = None,
    ) -> None:
        record = self._inventory.units.get(unit.id)
        kept = self._promises.kept(unit.id, nodes, record.bound if record else (), self._clock())
        self._inventory.reserve(unit, kept)
        self._reserved.setdefault(_key(unit.id), set()).add(unit.id)
        self._unmade[unit.id] = unit.instances if unmade is None else unmade

    def _decided(self, decision: Decision) -> None:
        answer: Answer
        self._left_out.pop(decision.unit, None)
        if isinstance(decision, Placed):
            self._promises.forget(decision.unit)
            self._reserve(self._requests[decision.unit], decision.nodes)
            answer = _placement(decision)
            log.info("placed", extra={"unit": str(decision.unit), "domain": str(decision.domain)})
        else:
            answer = NoPlace(str(decision.reason), decision.message)
        self._answer(decision.unit, answer)

    def _answer(self, unit: UnitId, answer: Answer) -> bool:
        """Whether it is another one than before."""
        if self._answers.get(unit) == answer:
            return False
        self._answers[unit] = answer
        self._wake(_key(unit))
        return True

    def _forget_move(self, key: Key) -> None:
        move = self._moves.pop(key, None)
        if move is not None:
            self._inventory.release(_aside(move.request.id))
            self.look()

    def _withdraw(self, unit: UnitId) -> None:
        """Not asked any more, or asked otherwise."""
        del self._requests[unit]
        self._answers.pop(unit, None)
        self._left_out.pop(unit, None)
        self._release(unit)

    def _release(self, unit: UnitId) -> None:
        reserved = self._reserved.get(_key(unit), set())
        if unit in reserved:
            self._inventory.release(unit)
            self._unmade.pop(unit, None)
            self._promises.forget(unit)
            reserved.discard(unit)
            if not reserved:
                del self._reserved[_key(unit)]
            self.look()


def _nodes_now(record: UnitRecord, stated: Mapping[str, str]) -> dict[str, str]:
    """An instance that was added later has no place of its own: its pods keep what they found. And
    which of several nodes a pod has is not stated, where it was reserved before it is known."""
    found = {pod: seat.node for pod, seat in record.seats.items()}
    own = set(stated.values())
    known = {pod: seat.node for pod, seat in record.reserved.items() if seat.node in own}
    return {**found, **stated, **known}


def _alike(known: UnitRequest, asked: UnitRequest) -> bool:
    """How long it waits is known from when it was asked first."""
    return replace(asked, waiting_since=known.waiting_since) == known


def _key(unit: UnitId) -> Key:
    return Key(unit.namespace, unit.deployment)


def _aside(unit: UnitId) -> UnitId:
    """By this name room is kept beside that which the unit has."""
    return unit._replace(unit=f"{unit.unit} elsewhere")


def _placement(decision: Placed) -> Placement:
    nodes: dict[str, list[str]] = {}
    for pod, node in decision.nodes.items():
        chosen = nodes.setdefault(pod.rpartition("-")[0], [])
        if node not in chosen:
            chosen.append(node)
    domain = decision.domain
    return Placement(
        level=domain.level if domain else "",
        label=domain.node_label if domain else "",
        value=domain.value if domain else "",
        nodes={instance: tuple(chosen) for instance, chosen in nodes.items()},
    )
