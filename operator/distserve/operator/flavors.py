"""What Kueue offers, as the watches show it: flavors of resources, and priorities in its queues.

Filled by `store`, read by `queueing` through `Features`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distserve.resources.objects import Object


@dataclass(frozen=True)
class Flavor:
    """A ResourceFlavor: which nodes it means."""

    node_labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    """That pods get which were given this flavor."""


@dataclass
class Offered:
    flavors: dict[str, Flavor] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    """Value of each WorkloadPriorityClass."""

    def put(self, kind: str, document: Object) -> bool:
        """Whether it is new, or another than it was."""
        name = document["metadata"]["name"]
        if kind == "WorkloadPriorityClass":
            before, value = self.priorities.get(name), int(document["value"])
            self.priorities = {**self.priorities, name: value}
            return value != before
        spec = document.get("spec") or {}
        found = Flavor(spec.get("nodeLabels") or {}, tuple(spec.get("tolerations") or ()))
        known = self.flavors.get(name)
        self.flavors = {**self.flavors, name: found}
        return found != known

    def drop(self, kind: str, name: str) -> None:
        """What was handed out before stays as it was."""
        if kind == "WorkloadPriorityClass":
            self.priorities = {n: v for n, v in self.priorities.items() if n != name}
        else:
            self.flavors = {n: f for n, f in self.flavors.items() if n != name}
