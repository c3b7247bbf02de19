"""Volcano's PodGroups of a deployment's units, as they are: facts for `volcano`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distserve.operator.conditions import seconds
from distserve.operator.members import of_units
from distserve.operator.model import Object, Observed, Ref
from distserve.resources.volcano import API_VERSION, ASKED, KIND, LET_IN

IN_QUEUE: Final = "Inqueue"
PENDING: Final = "Pending"


@dataclass(frozen=True)
class Group:
    """A PodGroup of a unit.

    Its phase is Pending until its Queue lets it in, then Inqueue, Running once all its pods have
    nodes, Unknown while some of them have none; and Pending again when the last one is gone."""

    live: Object

    @property
    def name(self) -> str:
        return str(self.live["metadata"]["name"])

    @property
    def ref(self) -> Ref:
        return Ref(API_VERSION, KIND, self.name)

    @property
    def uid(self) -> str:
        return str(self.live["metadata"]["uid"])

    @property
    def asked(self) -> str:
        return str(self.live["metadata"]["labels"].get(ASKED, ""))

    @property
    def queue(self) -> str:
        return str(self.live["spec"].get("queue", ""))

    @property
    def phase(self) -> str:
        """Empty until Volcano has seen it."""
        return str((self.live.get("status") or {}).get("phase") or "")

    @property
    def holds(self) -> bool:
        """Its Queue counts what it asks for, or what its pods have."""
        return self.phase not in ("", PENDING)

    @property
    def evicted(self) -> bool:
        """Volcano takes back pods, never a group."""
        return False

    @property
    def let_in(self) -> str:
        """When that was first seen; empty where it was not."""
        return str((self.live["metadata"].get("annotations") or {}).get(LET_IN, ""))

    @property
    def let_in_since(self) -> float:
        return seconds(self.let_in)


def groups(observed: Observed) -> dict[str, list[Group]]:
    """By unit, oldest first."""
    found = of_units(observed, API_VERSION, KIND)
    return {unit: [Group(live) for live in some] for unit, some in found.items()}
