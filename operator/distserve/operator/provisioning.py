"""Units for which there is no room, and for which nodes may be added: `topology.whenNoFit`.

    no room --> made with an open place ----> all pods have nodes --> the domain is its place
       ^        (pods tied to one domain,         (written down: as any unit from now on)
       |         an autoscaler sees them)
       |                | provisionTimeout
       +---- pause <----+ taken back whole

How often that was tried stands in the status, so a new leader goes on with the pause. The same is
remembered of units whose pods had to be there to hear that their queue has no quota (`kai`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from distserve.api import labels
from distserve.api.conditions import PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.status import ProvisioningStatus
from distserve.api.topology import DEFAULT_PROVISION_TIMEOUT, WhenNoFit
from distserve.operator.conditions import seconds, timestamp
from distserve.operator.health import LiveUnit
from distserve.operator.model import NoPlace, Object, Observed, Placement
from distserve.operator.pauses import pause_seconds
from distserve.placement.nodes import Node
from distserve.resources.provisioning import KIND

LONGEST_PAUSE_SECONDS: Final = 1800.0
LONGEST_QUOTA_PAUSE_SECONDS: Final = 300.0
"""To ask a queue takes one unit's pods and no machine; somebody waits for what got free."""
MOST_AVOIDED: Final = 16
"""Domains; the last ones are kept."""
MOST_SAID: Final = 1024
"""Characters of a queue's words."""
HELD: Final = frozenset(
    {
        PlacedReason.HELD_FOR_ANOTHER.value,
        PlacedReason.DOMAIN_SPLIT.value,
        PlacedReason.PLACING.value,
    }
)
"""Reasons that new nodes would not cure: there is room, pods run, or nobody knows yet."""


@dataclass(frozen=True)
class Attempts:
    """Of one unit, that came to nothing."""

    count: int = 0
    retry: float = 0.0
    """Not tried again before."""
    avoid: tuple[str, ...] = ()
    """Domains in which some of its pods found nodes and others did not: they did not grow."""
    lacked: str = ""
    """What its queue said of the last one, where it was quota that lacked and no node."""

    @property
    def failed_at(self) -> float:
        """When the last one ended."""
        return self.retry - _pause_seconds(self.count, self.lacked)


def attempts_of(observed: Observed) -> dict[str, Attempts]:
    """As the status has them; what cannot be read is as if it had not been."""
    found = {}
    for one in (observed.document.get("status") or {}).get("provisioning") or ():
        try:
            known = ProvisioningStatus.model_validate(one)
            found[known.unit] = Attempts(
                known.attempts, seconds(known.retry_time), tuple(known.avoid), known.lacked
            )
        except ValueError:
            continue
    return found


def attempts_status(attempts: Mapping[str, Attempts]) -> list[Object]:
    return [
        {
            "unit": unit,
            "attempts": one.count,
            "retryTime": timestamp(one.retry),
            **({"avoid": list(one.avoid)} if one.avoid else {}),
            **({"lacked": one.lacked[:MOST_SAID]} if one.lacked else {}),
        }
        for unit, one in sorted(attempts.items())
    ]


def may_provision(deployment: DistServeDeployment, attempts: Attempts, now: float) -> bool:
    """A pause for what its queue lacked is no pause for nodes."""
    paused = attempts.retry > now and not attempts.lacked
    return deployment.spec.topology.when_no_fit == WhenNoFit.PROVISION and not paused


def open_place(deployment: DistServeDeployment, attempts: Attempts) -> Placement:
    """One domain of packWithin, whichever it will be."""
    topology = deployment.spec.topology
    levels = {level.name: level.node_label for level in topology.resolved_levels}
    name = topology.pack_within or ""
    return Placement(name, levels.get(name, ""), "", {}, attempts.avoid)


def place_of(
    unit: LiveUnit, place: Placement, names: Collection[str], nodes: Mapping[str, Node | None]
) -> Placement:
    """Where a unit with an open place came to lie; still open while an instance of `names` or a
    pod's node is missing."""
    if not place.open or unit.instances.keys() != set(names):
        return place
    chosen: dict[str, tuple[str, ...]] = {}
    for name, instance in unit.instances.items():
        pods = sorted((p for p in instance.pods if p.node), key=lambda pod: pod.name)
        if len(pods) < max(1, instance.replicas):
            return place
        chosen[name] = tuple(dict.fromkeys(pod.node for pod in pods))
    if not place.label:
        return Placement("", "", "", chosen)
    values = domains_of(unit, place, nodes)
    return Placement(place.level, place.label, values.pop(), chosen) if len(values) == 1 else place


def domains_of(unit: LiveUnit, place: Placement, nodes: Mapping[str, Node | None]) -> set[str]:
    """Values of the place's label on the nodes that its pods have."""
    found = (nodes.get(pod.node) for pod in unit.pods if pod.node)
    return {node.labels[place.label] for node in found if node and place.label in node.labels}


def failed(
    unit: LiveUnit, place: Placement, observed: Observed, known: Attempts, lacked: str = ""
) -> Attempts:
    """One more; asked again while its pods go, it is still the same one."""
    made = max((pod.created for pod in unit.pods), default=0.0)
    if known.retry > observed.now and made <= known.failed_at:
        return known
    grows = place.open and place.label and not lacked
    stuck = domains_of(unit, place, observed.nodes) if grows else set()
    avoid = tuple(dict.fromkeys([*known.avoid, *sorted(stuck)]))[-MOST_AVOIDED:]
    count = known.count + 1
    return Attempts(count, observed.now + _pause_seconds(count, lacked), avoid, lacked)


def _pause_seconds(count: int, lacked: str) -> float:
    """After so many attempts."""
    longest = LONGEST_QUOTA_PAUSE_SECONDS if lacked else LONGEST_PAUSE_SECONDS
    return pause_seconds(count, longest)


def comes(deployment: DistServeDeployment, unit: LiveUnit, observed: Observed) -> NoPlace:
    """What is said while its pods wait for nodes."""
    pods = sum(instance.replicas for instance in unit.instances.values())
    waiting = pods - sum(bool(pod.node) for pod in unit.pods)
    said = _request_says(unit, observed) or next(
        (pod.unschedulable for pod in unit.pods if pod.unschedulable), ""
    )
    return NoPlace(
        PlacedReason.PROVISIONING,
        f"unit {unit.name}: {waiting} of its {pods} pods wait for nodes that the "
        f"cluster's autoscaler is to add{': ' + said if said else ''}. It is taken back whole "
        f"after topology.provisionTimeout, {_timeout(deployment)}",
    )


def _request_says(unit: LiveUnit, observed: Observed) -> str:
    """The autoscaler's last words in the unit's ProvisioningRequest."""
    conditions = [
        condition
        for ref, found in observed.children.items()
        if ref.kind == KIND and found["metadata"].get("labels", {}).get(labels.UNIT) == unit.name
        for condition in (found.get("status") or {}).get("conditions") or ()
    ]
    last = max(conditions, key=lambda one: str(one["lastTransitionTime"]), default=None)
    if last is None:
        return ""
    return f"its ProvisioningRequest is {last['type']}={last['status']}, {last['message']}"


def pauses(deployment: DistServeDeployment, name: str, known: Attempts, why: str) -> NoPlace:
    """What is said between two attempts. `why`: what placement says of it."""
    times = f"{known.count} times" if known.count > 1 else "once"
    return NoPlace(
        PlacedReason.PROVISIONING_TIMED_OUT,
        f"unit {name}: no nodes came for it within topology.provisionTimeout, "
        f"{_timeout(deployment)}; it was taken back {times} and is made "
        f"again at {timestamp(known.retry)}. See the autoscaler's events why it adds none, or "
        f"make room: {why}",
    )


def _timeout(deployment: DistServeDeployment) -> str:
    return deployment.spec.topology.provision_timeout or DEFAULT_PROVISION_TIMEOUT


def still(attempts: Mapping[str, Attempts], units: Iterable[str]) -> dict[str, Attempts]:
    """Those of units that have no place yet."""
    wanted = set(units)
    return {unit: one for unit, one in attempts.items() if unit in wanted and one.count}
