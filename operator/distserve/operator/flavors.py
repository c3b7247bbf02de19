"""What queues offer, as the watches show it: Kueue's flavors of resources and its priorities, and
Volcano's Queues.

Filled by `store`, read by `kueue` and `volcano` through `Features`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from distserve.placement.quantities import amounts
from distserve.resources.objects import Object
from distserve.resources.volcano import QUEUE_KIND

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavor:
    """A ResourceFlavor: which nodes it means."""

    node_labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    """That pods get which were given this flavor."""


@dataclass(frozen=True)
class VolcanoQueue:
    """What of a Queue changes seldom: what is allocated of it does with every pod."""

    state: str = ""
    capability: Mapping[str, int] = field(default_factory=dict)
    """What it may have at most, as placement counts; of other resources there is no limit."""


@dataclass
class Offered:
    flavors: dict[str, Flavor] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    """Value of each WorkloadPriorityClass."""
    queues: dict[str, VolcanoQueue] = field(default_factory=dict)

    def put(self, kind: str, document: Object) -> bool:
        """Whether it is new, or another than it was."""
        name = document["metadata"]["name"]
        if kind == "WorkloadPriorityClass":
            before, value = self.priorities.get(name), int(document["value"])
            self.priorities = {**self.priorities, name: value}
            return value != before
        spec = document.get("spec") or {}
        if kind == QUEUE_KIND:
            old, queue = self.queues.get(name), _queue(document)
            self.queues = {**self.queues, name: queue}
            return queue != old
        found = Flavor(spec.get("nodeLabels") or {}, tuple(spec.get("tolerations") or ()))
        known = self.flavors.get(name)
        self.flavors = {**self.flavors, name: found}
        return found != known

    def drop(self, kind: str, name: str) -> None:
        """What was handed out before stays as it was."""
        if kind == "WorkloadPriorityClass":
            self.priorities = {n: v for n, v in self.priorities.items() if n != name}
        elif kind == QUEUE_KIND:
            self.queues = {n: q for n, q in self.queues.items() if n != name}
        else:
            self.flavors = {n: f for n, f in self.flavors.items() if n != name}


def _queue(document: Object) -> VolcanoQueue:
    capability = (document.get("spec") or {}).get("capability") or {}
    state = (document.get("status") or {}).get("state") or ""
    try:
        most = amounts(capability)
    except ValueError as error:  # It is not lost for that: Volcano decides.
        log.warning("what Queue %s may have is not known: %s", document["metadata"]["name"], error)
        most = {}
    return VolcanoQueue(str(state), most)
