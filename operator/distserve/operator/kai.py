"""How a deployment's units stand in their Queue of KAI: `topology.scheduler: KAI`.

    a PodGroup is made --> the unit is placed, its pods are members --> KAI binds all of them
            ^                       |
            |                       | none of them, and KAI says that it is quota that lacks
            +-- pause <-- it is taken back whole after gangTimeout: no room is held for it

KAI lets nothing in that has no pods, so its quota is known only when they are there. Until it has
bound them a unit waits, and of those that were refused the first is tried.

Pods are members of one PodGroup from their making to their end, and who schedules them stands in
their revision: whatever the field says later, a unit is KAI's wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from distserve.api import labels
from distserve.api.conditions import PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import Scheduler
from distserve.operator.conditions import timestamp
from distserve.operator.health import LiveUnit
from distserve.operator.kaigroups import Group, groups
from distserve.operator.members import belongs, group_of, is_same, least_urgent
from distserve.operator.model import Apply, Delete, NoPlace, Object, Observed
from distserve.operator.provisioning import Attempts, attempts_of
from distserve.operator.standings import Standing, given_back
from distserve.operator.wanted import Wanted
from distserve.placement.quantities import describe, number
from distserve.resources.asked import Asked, asked_of
from distserve.resources.kai import (
    API_VERSION,
    GROUP_NAME,
    KIND,
    SERVED,
    membership,
    pod_group,
    queue_of,
)
from distserve.resources.revisions import Revision

SPEC: Final = ("minMember", "queue", "priorityClassName", "preemptibility", "stalenessGracePeriod")
"""Ours of a PodGroup's spec."""
NO_ATTEMPTS: Final = Attempts()


def has(deployment: DistServeDeployment, revision: Revision, live: LiveUnit | None) -> bool:
    return belongs(Scheduler.KAI, GROUP_NAME, deployment, revision, live)


def refused(observed: Observed) -> frozenset[int]:
    return frozenset(
        int(unit[1:])
        for unit in groups(observed)
        if attempts_of(observed).get(unit, NO_ATTEMPTS).lacked or _before(observed, unit)
    )


def standing(
    observed: Observed, wanted: Wanted, unit: str, revision: Revision, live: LiveUnit | None
) -> Standing:
    deployment = wanted.deployment
    known = {one.name: one for one in groups(observed).get(unit, [])}
    asked = asked_of(deployment, unit, revision)
    name = group_of(live, revision.name, GROUP_NAME) if is_same(revision, live) else ""
    make = pod_group(deployment, unit, asked.pods, least_urgent(observed, revision), name)
    name = make["metadata"]["name"]
    current = known.get(name)
    queue = current.queue if current else queue_of(deployment)
    bound = live is not None and any(pod.node for pod in live.pods)
    waits = unbound = again = None
    lacks = ""
    tried = attempts_of(observed).get(unit, NO_ATTEMPTS)
    if live is None:
        waits = _waits(observed, unit, queue, asked, current, tried)
        again = tried.retry - observed.now if tried.retry > observed.now else None
    if not bound:
        lacks = current.lacks if current and live is not None else ""
        unbound = _unbound(deployment, unit, queue, lacks)
    return Standing(
        queue=Scheduler.KAI,
        revision=revision.name,
        current=current.uid if current else "",
        admitted=bound,
        since=tried.retry if tried.lacked else 0.0,
        waits=waits,
        again_seconds=again,
        unbound=unbound,
        lacks=lacks,
        admission=membership(deployment, name),
        make=make if current is None and SERVED in observed.features.served else None,
        change=_resized(current, asked.pods, revision, live) if current else None,
    )


def writes(
    observed: Observed,
    standings: Mapping[str, Standing],
    live: Mapping[str, LiveUnit],
    ready: frozenset[str],
) -> Iterator[Apply | Delete]:
    yield from given_back(observed, Scheduler.KAI, groups(observed), standings, live)


def _resized(group: Group, asked: int, revision: Revision, live: LiveUnit | None) -> Apply | None:
    """A unit gets more instances, or fewer, as it is. Fewer at once; more when all of them are
    bound, since KAI binds what lacks of the number together: a pod that is lost before would wait
    for those that the Queue has no quota for. With all that is ours of its group, since what is
    left out would go."""
    pods = [] if live is None else [pod for pod in live.pods if pod.revision == revision.name]
    bound = sum(bool(pod.node) for pod in pods)
    size = min(group.pods, asked) if 0 < bound < asked else asked
    if group.pods == size:
        return None
    metadata = group.live["metadata"]
    ours = ("name", "namespace", "labels", "ownerReferences")
    spec = {name: group.live["spec"][name] for name in SPEC if name in group.live["spec"]}
    found: Object = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {name: metadata[name] for name in ours if name in metadata},
        "spec": {**spec, "minMember": size},
    }
    return Apply(found, group.uid)


def _waits(
    observed: Observed,
    unit: str,
    queue: str,
    asked: Asked,
    current: Group | None,
    tried: Attempts,
) -> NoPlace | None:
    """Why its pods are not to be made."""
    if why := _shut(observed, queue, asked):
        return _queued(f"unit {unit}: {why}")
    if current is None:
        return _queued(f"unit {unit}: its PodGroup in Queue {queue} of KAI is being made")
    if current.ends_early:
        return _queued(
            f"unit {unit}: PodGroups of the KAI that is installed have no stalenessGracePeriod, so "
            "it would end a unit that serves with what is left of it; install KAI 0.17 or newer, "
            f"with its CRDs, and delete podgroup {current.name}"
        )
    if first := _before(observed, unit):
        return _queued(f"unit {unit}: waits behind unit {first}, which lacks quota")
    # A group that was made since then asks for something else: it has not been tried.
    if tried.lacked and tried.retry > observed.now and current.created <= tried.failed_at:
        times = f"{tried.count} times" if tried.count > 1 else "once"
        return _queued(
            f"unit {unit}: Queue {queue} of KAI has no quota for it: {_sentence(tried.lacked)}; it "
            f"was taken back {times} and is made again at {timestamp(tried.retry)}. It comes when "
            "others give back quota, or the queue gets more"
        )
    return None


def _unbound(deployment: DistServeDeployment, unit: str, queue: str, lacks: str) -> NoPlace:
    if not lacks:
        return _queued(
            f"unit {unit}: KAI is to bind its pods, by Queue {queue}; if no answer comes, see "
            "whether KAI runs"
        )
    return _queued(
        f"unit {unit}: its pods wait whole for quota of Queue {queue} of KAI: {_sentence(lacks)}; "
        f"after topology.gangTimeout, {deployment.spec.topology.gang_timeout}, they are taken "
        "back, and made again after a pause"
    )


def _before(observed: Observed, unit: str) -> str:
    """A unit before this one that lacks quota: who asks for the same would hear the same. KAI's
    words stand for a while in the group of a unit that is bound."""
    attempts = attempts_of(observed)
    bound = {pod.unit for pod in observed.pods if pod.node}
    lacking = {
        other
        for other, some in groups(observed).items()
        if attempts.get(other, NO_ATTEMPTS).lacked
        or (other not in bound and any(one.lacks for one in some))
    }
    found = min(lacking, key=lambda other: int(other[1:]), default="")
    return found if found and int(found[1:]) < int(unit[1:]) else ""


def _shut(observed: Observed, queue: str, asked: Asked) -> str:
    """Why this Queue, or one above it, never takes what is asked for."""
    other = f"or have the label {labels.KAI_QUEUE} name another"
    known = observed.features.kai_queues
    name, below = queue, ""
    for _ in known:  # A Queue may have itself above it.
        found = known.get(name)
        if found is None:
            break
        for resource, most in sorted(found.limits.items()):
            count = asked.amounts.get(resource, 0)
            if count > most:
                return (
                    f"asks for {describe(resource, count)}, and Queue {name} of KAI may never have "
                    f"more than {number(resource, most)}; raise its spec.resources, {other}"
                )
        if not found.parent:
            return ""
        name, below = found.parent, name
    if name in known:
        return f"Queue {queue} of KAI is below itself; change its spec.parentQueue, {other}"
    whose = f", which is spec.parentQueue of Queue {below}" if below else ""
    return f"there is no Queue {name} of KAI{whose}; make it, {other}"


def _sentence(said: str) -> str:
    return said.strip().rstrip(".")


def _queued(message: str) -> NoPlace:
    return NoPlace(PlacedReason.QUEUED_BY_KAI, message)
