"""Who admits a deployment's units before they are placed: the queues behind `topology.scheduler`.

A queue is a module: it says how a unit stands (`standings`), and what is to be written for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from distserve.api.deployment import DistServeDeployment
from distserve.operator import kai, kueue, volcano
from distserve.operator.health import LiveUnit
from distserve.operator.model import Apply, Delete, Observed, Ref
from distserve.operator.standings import NO_QUEUE, Standing, made
from distserve.operator.wanted import Wanted
from distserve.resources.revisions import Revision


class Queue(Protocol):
    def has(
        self, deployment: DistServeDeployment, revision: Revision, live: LiveUnit | None
    ) -> bool:
        """Whether a unit that is to have this revision stands in this queue."""
        ...

    def standing(
        self,
        observed: Observed,
        wanted: Wanted,
        unit: str,
        revision: Revision,
        live: LiveUnit | None,
    ) -> Standing: ...

    def refused(self, observed: Observed) -> frozenset[int]:
        """Units for which there is no quota now, nor was any."""
        ...

    def writes(
        self,
        observed: Observed,
        standings: Mapping[str, Standing],
        live: Mapping[str, LiveUnit],
        ready: frozenset[str],
    ) -> Iterator[Apply | Delete]:
        """About what is there. `standings` of all units that there are to be, also of those in
        other queues."""
        ...


QUEUES: Final[tuple[Queue, ...]] = (volcano, kai, kueue)
"""The first that has a unit counts: pods stay Volcano's or KAI's, whatever the field says later."""


def standing(
    observed: Observed, wanted: Wanted, unit: str, revision: Revision, live: LiveUnit | None
) -> Standing:
    """Of a unit that is to have this revision."""
    for queue in QUEUES:
        if queue.has(wanted.deployment, revision, live):
            return queue.standing(observed, wanted, unit, revision, live)
    return NO_QUEUE


def refused_units(observed: Observed) -> frozenset[int]:
    return frozenset[int]().union(*(queue.refused(observed) for queue in QUEUES))


def queue_writes(
    observed: Observed,
    standings: Mapping[str, Standing],
    live: Mapping[str, LiveUnit],
    ready: frozenset[str],
    foreign: frozenset[Ref],
) -> Iterator[Apply | Delete]:
    yield from made(standings, foreign)
    for queue in QUEUES:
        yield from queue.writes(observed, standings, live, ready)
