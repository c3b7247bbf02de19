"""KAI's PodGroups of a deployment's units, as they are: facts for `kai`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distserve.operator.conditions import seconds
from distserve.operator.members import of_units
from distserve.operator.model import Object, Observed, Ref
from distserve.resources.kai import API_VERSION, KIND

QUOTA: Final = frozenset({"NonPreemptibleOverQuota", "OverLimit", "QueueDoesNotExist"})
"""KAI's reasons for which no node would help."""


@dataclass(frozen=True)
class Group:
    """A PodGroup of a unit."""

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
    def created(self) -> float:
        return seconds(self.live["metadata"].get("creationTimestamp"))

    @property
    def queue(self) -> str:
        return str(self.live["spec"].get("queue", ""))

    @property
    def pods(self) -> int:
        return int(self.live["spec"].get("minMember") or 0)

    @property
    def ends_early(self) -> bool:
        """Its CRD is one of before 0.17: KAI would end what is left of a unit that lost pods."""
        return "stalenessGracePeriod" not in self.live["spec"]

    @property
    def lacks(self) -> str:
        """What KAI says of its quota, while that is what it lacks."""
        conditions = (self.live.get("status") or {}).get("schedulingConditions") or ()
        reasons = [one for found in conditions for one in found.get("reasons") or ()]
        said = [str(one.get("message") or "") for one in reasons if one.get("reason") in QUOTA]
        return "; ".join(dict.fromkeys(said))

    @property
    def holds(self) -> bool:
        """It is needed as long as one of its pods is there: KAI counts pods by it."""
        return True

    @property
    def evicted(self) -> bool:
        """KAI takes back pods, never a group."""
        return False


def groups(observed: Observed) -> dict[str, list[Group]]:
    """By unit, oldest first."""
    found = of_units(observed, API_VERSION, KIND)
    return {unit: [Group(live) for live in some] for unit, some in found.items()}
