"""For how long room is kept for pods that do not come.

    promised --bound--> its pod's own
       |  ^----the pod ends----'
       +--LONGEST_SECONDS--> free, until the pod has a node after all

What is promised to one is kept from all others, and it need not be the scheduler's word that a pod
has no node: its ServiceAccount or quota may be missing, so that it is never made, it may have
scheduling gates, or the name of a scheduler that is not there. The unit stays as it is. When its
pods come, they find room as any others do, or the unit is placed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from distserve.placement.inventory import UnitRecord
from distserve.placement.requests import UnitId

LONGEST_SECONDS: Final = 1800.0
"""A node that starts anew is back by then, and has room for the pods that it had."""
LOOK_SECONDS: Final = 15.0
"""Between two looks at all units."""


class Promises:
    def __init__(self) -> None:
        self._since: dict[UnitId, dict[str, float]] = {}
        """Of each unit that is looked at, since when a pod of it has no node."""
        self._looked = 0.0

    def kept(
        self, unit: UnitId, nodes: Mapping[str, str], bound: Collection[str], now: float
    ) -> dict[str, str]:
        """Of the nodes of a unit's pods those whose room is (still) kept. It is looked at from
        then on."""
        over = self._over(unit, nodes, bound, now)
        return {pod: node for pod, node in nodes.items() if pod not in over}

    def ended(
        self, units: Mapping[UnitId, UnitRecord], now: float
    ) -> Iterator[tuple[UnitId, set[str]]]:
        """Units, and their pods for which room was kept for too long."""
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked = now
        for unit, since in list(self._since.items()):
            record = units.get(unit)
            if record is not None:
                over = self._over(unit, {*since, *record.reserved}, record.bound, now)
                if ended := over & record.reserved.keys():
                    yield unit, ended

    def forget(self, unit: UnitId) -> None:
        """Its room is given back, or it has no pods to come yet."""
        self._since.pop(unit, None)

    def _over(
        self, unit: UnitId, pods: Iterable[str], bound: Collection[str], now: float
    ) -> set[str]:
        before = self._since.get(unit, {})
        since = {pod: before.get(pod, now) for pod in pods if pod not in bound}
        self._since[unit] = since
        return {pod for pod, began in since.items() if now >= began + LONGEST_SECONDS}
