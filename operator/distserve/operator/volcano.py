"""How a deployment's units stand in their Queue of Volcano: `topology.scheduler: Volcano`.

    a PodGroup is made --> its Queue lets it in --> the unit is placed, its pods are members,
            ^                (Inqueue)              and Volcano binds all of them or none
            |                                          |
            +--- Pending again, when no pod is left <--+

Pods are members of one PodGroup from their making to their end, and who schedules them stands in
their revision: whatever the field says later, a unit is Volcano's wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from distserve.api import labels
from distserve.api.conditions import PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import Scheduler
from distserve.operator.conditions import timestamp
from distserve.operator.flavors import VolcanoQueue
from distserve.operator.health import LiveUnit
from distserve.operator.members import belongs, group_of, is_same, least_urgent
from distserve.operator.model import Apply, Delete, NoPlace, Object, Observed
from distserve.operator.podgroups import IN_QUEUE, PENDING, Group, groups
from distserve.operator.standings import Standing, given_back
from distserve.operator.wanted import Wanted
from distserve.placement.quantities import describe, number
from distserve.resources.asked import Asked, asked_of
from distserve.resources.revisions import Revision
from distserve.resources.volcano import (
    ASKED,
    GROUP_NAME,
    LET_IN,
    SERVED,
    membership,
    pod_group,
    queue_of,
)

SPEC: Final = ("minMember", "minResources", "queue", "priorityClassName")
"""Ours of a PodGroup's spec."""
OPEN: Final = "Open"


def has(deployment: DistServeDeployment, revision: Revision, live: LiveUnit | None) -> bool:
    return belongs(Scheduler.VOLCANO, GROUP_NAME, deployment, revision, live)


def refused(observed: Observed) -> frozenset[int]:
    return frozenset(
        int(unit[1:])
        for unit, some in groups(observed).items()
        if not any(one.holds for one in some)
        and any(one.phase == PENDING or _shut(observed, one.queue) for one in some)
    )


def standing(
    observed: Observed, wanted: Wanted, unit: str, revision: Revision, live: LiveUnit | None
) -> Standing:
    deployment = wanted.deployment
    known = {one.name: one for one in groups(observed).get(unit, [])}
    asked = asked_of(deployment, unit, revision)
    same, queue = is_same(revision, live), queue_of(deployment)
    name = group_of(live, revision.name, GROUP_NAME)
    stays = same or (name in known and known[name].asked == asked.digest)
    if not stays:
        name = ""  # Its pods go, and the next ones ask for something else.
    make = pod_group(deployment, unit, asked, queue, least_urgent(observed, revision), name)
    name = make["metadata"]["name"]
    current = there = known.get(name)
    if current is not None and not stays and current.asked != asked.digest:
        current = None  # It was made smaller since: it goes with its last pod, and is made anew.
    let_in = current is not None and (
        current.phase == IN_QUEUE
        or (stays and live is not None and (current.holds or any(pod.node for pod in live.pods)))
    )
    waits = goes = None
    if not let_in:
        waits = _waits(observed, unit, current.queue if current else queue, asked, current)
    if live is not None and not stays and not let_in:
        goes = _queued(
            f"unit {unit}: Queue {queue} of Volcano has not let in what revision {revision.name} "
            "asks for; the unit goes whole, and is made again when it has"
        )
    return Standing(
        queue=Scheduler.VOLCANO,
        revision=revision.name,
        current=current.uid if current else "",
        admitted=let_in,
        since=_since(observed, current),
        costs=f"Queue {queue} of Volcano counts it meanwhile",
        waits=waits,
        goes=goes,
        admission=membership(deployment, name),
        make=make if there is None and SERVED in observed.features.served else None,
        change=_shrunk(current, make) if current and stays else None,
    )


def writes(
    observed: Observed,
    standings: Mapping[str, Standing],
    live: Mapping[str, LiveUnit],
    ready: frozenset[str],
) -> Iterator[Apply | Delete]:
    known = groups(observed)
    current = {found.current for found in standings.values()}
    for unit, some in sorted(known.items()):
        for one in some:
            if one.uid in current and unit not in live and one.holds != bool(one.let_in):
                yield Apply(_marked(one, observed.now if one.holds else None), one.uid)
    yield from given_back(observed, Scheduler.VOLCANO, known, standings, live)


def _waits(
    observed: Observed, unit: str, queue: str, asked: Asked, current: Group | None
) -> NoPlace:
    """Why its pods are not to be made, or are not bound."""
    why = _shut(observed, queue) or _too_large(observed.features.volcano_queues[queue], asked)
    if why:
        return _queued(f"unit {unit}: {why}")
    if current is None or not current.phase:
        silent = "if no answer comes, see whether Volcano runs"
        return _queued(f"unit {unit}: Queue {queue} of Volcano is asked; {silent}")
    if current.phase != PENDING:
        return _queued(f"unit {unit}: Queue {queue} of Volcano still counts its former pods")
    return _queued(
        f"unit {unit}: waits whole in Queue {queue} of Volcano; what is short is in the events of "
        f"kubectl describe podgroup {current.name}; it comes when others give back quota, or the "
        "queue gets more"
    )


def _shut(observed: Observed, queue: str) -> str:
    """Why this Queue lets nothing in, whatever it is asked for."""
    known = observed.features.volcano_queues.get(queue)
    other = f"have the annotation {labels.VOLCANO_QUEUE} name another"
    if known is None:
        return f"there is no Queue {queue} of Volcano; make it, or {other}"
    if known.state != OPEN:
        state = known.state or "not opened by Volcano's controllers yet"
        return (
            f"Queue {queue} of Volcano is {state} and lets nothing in; open it with vcctl queue "
            f"operate --action open --name {queue}, or {other}"
        )
    return ""


def _too_large(queue: VolcanoQueue, asked: Asked) -> str:
    for name, count in sorted(asked.amounts.items()):
        most = queue.capability.get(name)
        if most is not None and count > most:
            return (
                f"asks for {describe(name, count)}, and its Queue of Volcano may never have more "
                f"than {number(name, most)}; raise the Queue's spec.capability, or make the unit "
                "smaller"
            )
    return ""


def _since(observed: Observed, current: Group | None) -> float:
    if current is None or not current.holds:
        return 0.0
    return current.let_in_since if current.let_in else observed.now


def _shrunk(group: Group, wanted: Object) -> Apply | None:
    """A unit gets fewer instances as it is: with the former number a lost pod would never come
    back. Of more nothing is said, since those that are there would be bound by what is not."""
    if wanted["spec"]["minMember"] >= group.live["spec"].get("minMember", 0):
        return None
    found = _marked(group, group.let_in_since if group.let_in else None)
    counts = {name: wanted["spec"][name] for name in ("minMember", "minResources")}
    marks = {**found["metadata"]["labels"], ASKED: wanted["metadata"]["labels"][ASKED]}
    metadata = {**found["metadata"], "labels": marks}
    return Apply({**found, "metadata": metadata, "spec": {**found["spec"], **counts}}, group.uid)


def _marked(group: Group, since: float | None) -> Object:
    """With the time since when it is in, or without: all that is ours of it, since what is left
    out of it would go."""
    metadata = group.live["metadata"]
    ours = ("name", "namespace", "labels", "ownerReferences")
    found: Object = {name: metadata[name] for name in ours if name in metadata}
    if since is not None:
        found["annotations"] = {LET_IN: timestamp(since)}
    spec = {name: group.live["spec"][name] for name in SPEC if name in group.live["spec"]}
    return {
        "apiVersion": group.ref.api_version,
        "kind": group.ref.kind,
        "metadata": found,
        "spec": spec,
    }


def _queued(message: str) -> NoPlace:
    return NoPlace(PlacedReason.QUEUED_BY_VOLCANO, message)
