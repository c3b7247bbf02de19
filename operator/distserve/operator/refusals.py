"""Units whose pods find no nodes where placement put them: where that was, and when they are tried
there again.

    placed --> pods find no nodes --gangTimeout--> taken back --> placed elsewhere, at once
       ^                                               |
       |                                               | nowhere else is room
       +-- where it was longest ago <----- pause <-----+

Placement knows room, labels and taints. Of volumes, host ports, spread rules and pods in other
namespaces only the scheduler knows, and it says so when the pods are there. It stands in the
status, so a new leader goes on with it, and is forgotten when all pods have nodes, or the unit is
made from something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from distserve.api.conditions import PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.status import RefusalStatus
from distserve.operator.conditions import seconds, timestamp
from distserve.operator.model import NoPlace, Object, Observed, Placement
from distserve.operator.pauses import pause_seconds
from distserve.operator.wanted import Wanted
from distserve.placement.requests import CLUSTER
from distserve.resources.revisions import HASH_LENGTH, Revision

LONGEST_PAUSE_SECONDS: Final = 600.0
MOST_DOMAINS: Final = 8
"""The last ones are kept."""
MOST_SAID: Final = 1024
"""Characters of the scheduler's words."""
CURE: Final = (
    "Placement sees no volumes, host ports, spread rules or pods in namespaces that the operator "
    "does not watch: where one of these is the cause, name the nodes that will do in podTemplate's "
    "nodeSelector or nodeAffinity. A changed podTemplate or topology is tried at once"
)


@dataclass(frozen=True)
class Refusals:
    """Of one unit."""

    count: int = 0
    at: float = 0.0
    """When it was taken back last."""
    domains: tuple[str, ...] = ()
    """`Placement.names[0]` of each; that of the last time comes last."""
    said: str = ""
    """The scheduler's words of that."""
    inputs_hash: str = ""
    """Of what it was made from then."""

    @property
    def retry(self) -> float:
        """Not tried before where it was already. Each domain once without a pause: mostly somebody
        else had taken the room, which placement knows then."""
        again = self.count - len(self.domains)
        return self.at + (pause_seconds(again, LONGEST_PAUSE_SECONDS) if again else 0.0)

    @property
    def avoided(self) -> tuple[str, ...]:
        """For placement. When no more are kept nothing is new: it may be one that was forgotten."""
        full = len(self.domains) == MOST_DOMAINS
        return (CLUSTER, *self.domains) if full else self.domains

    def once_more(self, domain: str, said: str, now: float, patience_seconds: float) -> Refusals:
        """Asked again while its pods go, it is still the same one: others take so long."""
        if self.count and now < self.at + patience_seconds:
            return self
        others = [one for one in self.domains if one != domain]
        domains = (*others, domain)[-MOST_DOMAINS:]
        return replace(self, count=self.count + 1, at=now, domains=domains, said=said)

    def paused(self, unit: str) -> NoPlace:
        """What is said while no other domain has room."""
        words = f"nowhere else is room, so it is made again at {timestamp(self.retry)}"
        return self._told(unit, words)

    def tried_in(self, unit: str, place: Placement) -> NoPlace:
        """What is said until its pods have nodes."""
        return self._told(unit, f"now it is tried in {place.names[0]}")

    def _told(self, unit: str, now: str) -> NoPlace:
        times = f"{self.count} times" if self.count > 1 else "once"
        said = f" ({self.said.strip().rstrip('.')})" if self.said else ""
        return NoPlace(
            PlacedReason.UNSCHEDULABLE,
            f"unit {unit}: the scheduler found no nodes for its pods in {', '.join(self.domains)}, "
            f"tried {times}{said}; {now}. {CURE}",
        )


def inputs_hash(deployment: DistServeDeployment, revision: Revision) -> str:
    """Of what the pods of a unit and the domains for them follow from. Not of the generation: that
    changes with each write to /scale, and an edit counts only when it was accepted."""
    topology = deployment.spec.topology.model_dump(mode="json", exclude_defaults=True)
    numbers = revision.unit.model_dump(mode="json", exclude_none=True)
    text = json.dumps([revision.name, numbers, topology], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def refusals_of(
    observed: Observed, wanted: Wanted, revisions: Mapping[str, str]
) -> dict[str, Refusals]:
    """As the status has them, of each unit with a revision that is known; what cannot be read, or
    was made from something else, is as if it had not been.

    `revisions`: the one that each unit has, or gets.
    """
    hashes = {
        name: inputs_hash(wanted.deployment, made)
        for name in set(revisions.values())
        if (made := wanted.revision(name)) is not None
    }
    found = {
        unit: Refusals(inputs_hash=hashes[name])
        for unit, name in revisions.items()
        if name in hashes
    }
    for one in (observed.document.get("status") or {}).get("refusals") or ():
        try:
            known = RefusalStatus.model_validate(one)
            at = seconds(known.last_time)
        except ValueError:
            continue
        now = found.get(known.unit)
        if now is not None and known.inputs_hash == now.inputs_hash:
            found[known.unit] = Refusals(
                known.attempts, at, tuple(known.domains), known.said, known.inputs_hash
            )
    return found


def refusals_status(refusals: Mapping[str, Refusals]) -> list[Object]:
    return [
        {
            "unit": unit,
            "attempts": one.count,
            "lastTime": timestamp(one.at),
            "domains": list(one.domains),
            "inputsHash": one.inputs_hash,
            **({"said": one.said[:MOST_SAID]} if one.said else {}),
        }
        for unit, one in sorted(refusals.items())
    ]
