"""What queues offer, as the watches show it: Kueue's flavors of resources and its priorities, and
the Queues of Volcano and of KAI.

Filled by `store`, read by `kueue`, `volcano` and `kai` through `Features`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from distserve.placement.quantities import amounts
from distserve.resources import kai, volcano
from distserve.resources.objects import Object

log = logging.getLogger(__name__)

GPU: Final = "nvidia.com/gpu"
KAI_LIMITS: Final = {"cpu": "cpu", "gpu": GPU}
"""Field of a Queue's resources -> what placement counts, in the same units."""


class Kind(Protocol):
    @property
    def api_version(self) -> str: ...

    @property
    def kind(self) -> str: ...


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


@dataclass(frozen=True)
class KaiQueue:
    """What of a Queue of KAI changes seldom."""

    parent: str = ""
    """Whose quota its own is a part of."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """What it may have at most, as placement counts; of other resources there is no limit."""


@dataclass
class Offered:
    flavors: dict[str, Flavor] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    """Value of each WorkloadPriorityClass."""
    queues: dict[str, VolcanoQueue] = field(default_factory=dict)
    kai_queues: dict[str, KaiQueue] = field(default_factory=dict)

    def put(self, kind: Kind, document: Object) -> bool:
        """Whether it is new, or another than it was."""
        name = document["metadata"]["name"]
        if kind.kind == "WorkloadPriorityClass":
            before, value = self.priorities.get(name), int(document["value"])
            self.priorities = {**self.priorities, name: value}
            return value != before
        spec = document.get("spec") or {}
        if kind.api_version == kai.QUEUE_API_VERSION:
            previous, limited = self.kai_queues.get(name), _kai_queue(spec)
            self.kai_queues = {**self.kai_queues, name: limited}
            return limited != previous
        if kind.kind == volcano.QUEUE_KIND:
            old, queue = self.queues.get(name), _queue(document)
            self.queues = {**self.queues, name: queue}
            return queue != old
        found = Flavor(spec.get("nodeLabels") or {}, tuple(spec.get("tolerations") or ()))
        known = self.flavors.get(name)
        self.flavors = {**self.flavors, name: found}
        return found != known

    def drop(self, kind: Kind, name: str) -> None:
        """What was handed out before stays as it was."""
        if kind.kind == "WorkloadPriorityClass":
            self.priorities = {n: v for n, v in self.priorities.items() if n != name}
        elif kind.api_version == kai.QUEUE_API_VERSION:
            self.kai_queues = {n: q for n, q in self.kai_queues.items() if n != name}
        elif kind.kind == volcano.QUEUE_KIND:
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


def _kai_queue(spec: Object) -> KaiQueue:
    """A number that is not there is 0 to KAI, and -1 is no limit."""
    resources = spec.get("resources") or {}
    limits = {
        counted: int((resources.get(name) or {}).get("limit") or 0)
        for name, counted in KAI_LIMITS.items()
    }
    known = {name: most for name, most in limits.items() if most >= 0}
    return KaiQueue(str(spec.get("parentQueue") or ""), known)
