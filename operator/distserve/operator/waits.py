"""How long units wait until they are whole, for Prometheus: the reconciler tells what it decided.

Known to the leader alone, and from when it saw a unit lack something: what a replica before it saw
is not added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from distserve.operator.model import Decision, Key

Labels = tuple[str, ...]
"""The deployment as NAMESPACE/NAME: a label `namespace` would be the operator's own."""


class Waits:
    def __init__(
        self, ended: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ended(seconds)` is told each wait that ends with a whole unit."""
        self._ended = ended
        self._clock = clock
        self._since: dict[Key, dict[str, float]] = {}

    def follow(self, key: Key, decision: Decision) -> None:
        """What was decided. While it is not known which units there are to be, those that are there
        are as they are; of the rest nothing is made, so it waits on."""
        if decision.whole is not None:
            self.see(key, decision.whole)
        else:
            lacking = dict.fromkeys(self._since.get(key, ()), False)
            self.see(key, {**lacking, **decision.standing})

    def see(self, key: Key, whole: Mapping[str, bool]) -> None:
        """Each unit that there is to be. The others' waits end as well, and are not told."""
        before, now = self._since.pop(key, {}), self._clock()
        waiting = {unit: before.get(unit, now) for unit, done in whole.items() if not done}
        if waiting:
            self._since[key] = waiting
        for unit, since in before.items():
            if whole.get(unit):
                self._ended(now - since)

    def release(self, key: Key) -> None:
        self._since.pop(key, None)

    def counts(self) -> Mapping[Labels, float]:
        """Units that wait."""
        return {_labels(key): len(units) for key, units in self._since.items()}

    def longest(self) -> Mapping[Labels, float]:
        """Seconds for which the first of them has waited by now."""
        now = self._clock()
        return {_labels(key): now - min(units.values()) for key, units in self._since.items()}


def _labels(key: Key) -> Labels:
    return (f"{key.namespace}/{key.name}",)
