"""Answers placement questions: one serial loop decides for all units that wait, in the cluster.

    ask --> waiting --pass--> placed, room reserved --> StatefulSets exist --> gone, room released
              ^  no place yet |
              +---------------+  again when nodes, pods or units change, and every few seconds

A place lives here only until the unit's StatefulSets carry it; what they say is reserved again
when a replica begins to lead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from distserve.operator.model import Key, NoPlace, Object, Pending, Placement
from distserve.placement.decisions import Decision, Placed
from distserve.placement.inventory import Inventory
from distserve.placement.placing import place
from distserve.placement.requests import UnitId, UnitRequest

log = logging.getLogger(__name__)

Answer = Placement | NoPlace

Stated = Callable[[UnitId, Sequence[Object]], tuple[UnitRequest, Mapping[str, str]]]
"""What a unit's StatefulSets say: its request and the node of each pod that has one."""

PAUSE_SECONDS = 0.1
"""Between passes: what changes together is decided together."""
AGAIN_SECONDS = 15.0
"""While units wait: some rules count from how long they did."""


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
        self._waiting: dict[UnitId, UnitRequest] = {}
        self._answers: dict[UnitId, Answer] = {}
        self._reserved: dict[Key, set[UnitId]] = {}
        self._unsettled: set[Key] = set()
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Nodes or pods changed."""
        if self._waiting:
            self._changed.set()

    def ask(
        self, key: Key, units: Sequence[UnitRequest]
    ) -> Mapping[str, Placement | NoPlace | Pending]:
        """Answers by unit; units that are not named are no longer waited for."""
        asked = {unit.id for unit in units}
        for unit in [one for one in self._waiting if _key(one) == key and one not in asked]:
            del self._waiting[unit]
            self._answers.pop(unit, None)
        for request in units:
            if isinstance(self._answers.get(request.id), Placement):
                continue
            if request.id not in self._waiting:
                # It is not there (any more): room that it had is no reason to go back.
                self._release(request.id)
            if self._waiting.get(request.id) != request:
                self._waiting[request.id] = request
                self._changed.set()
        return {unit.unit: self._answers.get(unit, Pending()) for unit in asked}

    def begin(self, keys: Iterable[Key]) -> None:
        """A replica begins to lead: nothing is placed before each deployment was settled once,
        so that room which was given is not given again while its pods are not bound."""
        self._unsettled = set(keys)

    def settle(self, key: Key, units: Mapping[str, Sequence[Object]]) -> None:
        """These units have StatefulSets: they carry their place, and keep their room."""
        existing = {UnitId(key.namespace, key.name, unit): sets for unit, sets in units.items()}
        for unit, sets in existing.items():
            self._waiting.pop(unit, None)
            self._answers.pop(unit, None)
            if unit not in self._reserved.get(key, ()):
                self._reserve(*self._stated(unit, sets))
        for unit in self._reserved.get(key, set()) - existing.keys():
            # Placed just now is not gone.
            if unit not in self._answers:
                self._release(unit)
        self._unsettled.discard(key)

    def release(self, key: Key) -> None:
        """The deployment is gone."""
        for unit in [one for one in (*self._waiting, *self._answers) if _key(one) == key]:
            self._waiting.pop(unit, None)
            self._answers.pop(unit, None)
        for unit in list(self._reserved.get(key, ())):
            self._release(unit)
        self._unsettled.discard(key)
        self.look()

    async def run(self) -> None:
        """Decides as long as the replica leads."""
        while True:
            try:
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass  # Rules that count from waiting.
            if self._waiting and not self._unsettled:
                self._changed.clear()
                for decision in place(self._inventory, [*self._waiting.values()], self._clock()):
                    self._decided(decision)
            await asyncio.sleep(PAUSE_SECONDS)

    def _reserve(self, unit: UnitRequest, nodes: Mapping[str, str]) -> None:
        self._inventory.reserve(unit, nodes)
        self._reserved.setdefault(_key(unit.id), set()).add(unit.id)

    def _decided(self, decision: Decision) -> None:
        answer: Answer
        if isinstance(decision, Placed):
            request = self._waiting.pop(decision.unit)
            self._reserve(request, decision.nodes)
            answer = _placement(decision)
            log.info("placed", extra={"unit": str(decision.unit), "domain": str(decision.domain)})
        else:
            answer = NoPlace(str(decision.reason), decision.message)
        if self._answers.get(decision.unit) != answer:
            self._answers[decision.unit] = answer
            self._wake(_key(decision.unit))

    def _release(self, unit: UnitId) -> None:
        reserved = self._reserved.get(_key(unit), set())
        if unit in reserved:
            self._inventory.release(unit)
            reserved.discard(unit)
            if not reserved:
                del self._reserved[_key(unit)]
            self.look()


def _key(unit: UnitId) -> Key:
    return Key(unit.namespace, unit.deployment)


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
