"""How a unit stands in its queue: what each queue of `queues` says of it, and what is done about it
in the same way for all of them.

What stands for a unit in a queue (a Workload, a PodGroup) is made once. Where something else is to
be asked, another one is made under another name, and goes when nothing of the unit needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from distserve.api.topology import Scheduler
from distserve.operator.health import LiveUnit
from distserve.operator.model import Apply, Delete, NoPlace, Object, Observed, Ref
from distserve.resources.queued import Admission


@dataclass(frozen=True)
class Standing:
    """Of one unit. Without a queue nothing of it is set."""

    queue: Scheduler | None = None
    revision: str = ""
    current: str = ""
    """Uid of what stands for it in the queue."""
    admitted: bool = False
    since: float = 0.0
    """When it might be placed: before that it did not wait for room."""
    costs: str = ""
    """What others of its queue pay while it waits for room."""
    waits: NoPlace | None = None
    """Why it is not to be placed yet."""
    again_seconds: float | None = None
    """Until it is to be placed all the same."""
    unbound: NoPlace | None = None
    """What is said of it from its placing until its pods are bound."""
    lacks: str = ""
    """Its pods are there, and this is why its queue gives them nothing: no node would cure it."""
    goes: NoPlace | None = None
    """Why it is to be deleted whole."""
    admission: Admission | None = None
    make: Object | None = None
    """What is to stand for it, and is not there."""
    change: Apply | None = None
    """Of what stands for it: only how many its pods are."""

    def told(self, why: NoPlace) -> NoPlace:
        """Why it waits for room, with what that costs the others of its queue."""
        if not self.admitted or not self.costs:
            return why
        return replace(why, message=f"{why.message}; {self.costs}")


NO_QUEUE: Final = Standing()


class Stand(Protocol):
    """What stands for a unit in a queue."""

    @property
    def ref(self) -> Ref: ...

    @property
    def uid(self) -> str: ...

    @property
    def holds(self) -> bool:
        """Quota is counted for it."""
        ...

    @property
    def evicted(self) -> bool: ...


def made(standings: Mapping[str, Standing], foreign: frozenset[Ref]) -> Iterator[Apply]:
    """What is to stand for units and is not there, or not so."""
    for found in standings.values():
        if found.make is not None and Ref.of(found.make) not in foreign:
            yield Apply(found.make, create_only=True)
        if found.change is not None:
            yield found.change


def given_back(
    observed: Observed,
    queue: Scheduler,
    stands: Mapping[str, Sequence[Stand]],
    standings: Mapping[str, Standing],
    live: Mapping[str, LiveUnit],
) -> Iterator[Delete]:
    """Quota is given back when nothing of its unit is left, since until then somebody else's pods
    would find no room. `standings` of the units that there are to be."""
    left = {pod.unit for pod in observed.pods} | live.keys()
    mixed = {
        pod.unit
        for pod in observed.pods
        if pod.unit in standings and pod.revision != standings[pod.unit].revision
    }
    for unit, some in sorted(stands.items()):
        known = standings.get(unit)
        here = known is not None and known.queue == queue
        for one in some:
            if known is not None and here and known.current == one.uid:
                continue
            # What its pods run on now: they have another one of the same revision.
            other = known is not None and here and known.admitted
            spare = other and not one.evicted and unit not in mixed
            elsewhere = known is not None and not here
            if elsewhere or not one.holds or unit not in left or spare:
                yield Delete(one.ref, one.uid)
