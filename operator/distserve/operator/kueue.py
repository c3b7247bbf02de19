"""How a deployment's units stand in their LocalQueue: `topology.scheduler: Kueue`.

    a Workload is made --> Kueue admits it --> the unit is placed, where its flavors are
            ^                                      |
            |                                      | evicted, or it is to ask for something else
            +-- its pods are gone: it is deleted <-+ the unit goes whole

A Workload is never changed: what follows another one has another name. All of this stands in the
cluster, so it goes on with a new leader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from distserve.api import labels
from distserve.api.conditions import PlacedReason
from distserve.api.deployment import DistServeDeployment
from distserve.api.topology import Scheduler
from distserve.operator.conditions import timestamp
from distserve.operator.health import LiveUnit
from distserve.operator.model import Apply, Delete, NoPlace, Observed
from distserve.operator.standings import Standing, given_back
from distserve.operator.wanted import Wanted
from distserve.operator.workloads import Entry, Unclear, admission_of, entries
from distserve.resources.kueue import (
    API_VERSION,
    GROUP,
    KIND,
    Priority,
    pod_sets,
    workload,
)
from distserve.resources.queued import Admission
from distserve.resources.revisions import Revision

PODS_READY: Final = "PodsReady"
READY: Final = ("Started", "all of its pods are ready")
NOT_READY: Final = ("WaitForRecovery", "one of its pods is not ready any more")


def has(deployment: DistServeDeployment, revision: Revision, live: LiveUnit | None) -> bool:
    return deployment.spec.topology.scheduler == Scheduler.KUEUE


def refused(observed: Observed) -> frozenset[int]:
    return frozenset(
        int(unit[1:])
        for unit, some in entries(observed).items()
        if not any(one.holds for one in some) and any(one.words for one in some)
    )


def standing(
    observed: Observed, wanted: Wanted, unit: str, revision: Revision, live: LiveUnit | None
) -> Standing:
    """Of a unit that is to have this revision."""
    deployment = wanted.deployment
    known = entries(observed).get(unit, [])
    over = [one for one in known if one.over]
    same = live is not None and live.revision in ("", revision.name)
    queue = deployment.metadata.labels.get(labels.QUEUE, "")
    priority, unclear = None, ""
    try:
        priority = priority_of(observed, deployment, revision)
    except Unclear as error:
        unclear = str(error)
    asked = pod_sets(deployment, unit, revision)
    current = _current([one for one in known if not one.over], asked.asked, queue, priority, same)
    make = None
    if current is None and priority is not None:
        last = over[-1] if over else None
        after, before = (last.uid, last.why_evicted) if last else ("", "")
        active = last.active if last else True
        make = workload(deployment, unit, asked, queue, priority, after, before, active)
    admission, waits = _answer(observed, unit, queue, current)
    if current is None and unclear:
        waits = _waits(f"unit {unit}: {unclear}")
    if over and live is None:
        waits = _evicted(unit, queue, over[-1])
    if waits is not None and live is not None:
        waits = _waits(f"{waits.message}; it runs on meanwhile")
    goes = None
    if live is not None:
        out = next((one for one in reversed(known) if one.evicted), None)
        if out is not None:
            goes = _evicted(unit, queue, out)
        elif not same and (current is None or not current.admitted):
            goes = _waits(
                f"unit {unit}: revision {revision.name} asks LocalQueue {queue} for something "
                "else; the unit goes whole, and is made again when that is admitted"
            )
    found = Standing(Scheduler.KUEUE, revision.name)
    if current is not None:
        costs = (
            f"it holds its quota of LocalQueue {current.queue} meanwhile, unless Kueue's "
            "waitForPodsReady takes it back"
        )
        since = current.admitted_since
        found = replace(
            found, current=current.uid, admitted=current.admitted, since=since, costs=costs
        )
    return replace(found, waits=waits, goes=goes, admission=admission, make=make)


def writes(
    observed: Observed,
    standings: Mapping[str, Standing],
    live: Mapping[str, LiveUnit],
    ready: frozenset[str],
) -> Iterator[Apply | Delete]:
    known = entries(observed)
    current = {found.current for found in standings.values()}
    for unit, some in sorted(known.items()):
        for one in some:
            if one.uid in current and one.admitted and unit in live:
                yield from _tell_ready(one, unit in ready, observed.now)
    yield from given_back(observed, Scheduler.KUEUE, known, standings, live)


def priority_of(
    observed: Observed, deployment: DistServeDeployment, revision: Revision
) -> Priority:
    """By the deployment's label, else of its pods: of the least urgent, as in placement. Raises
    Unclear."""
    name = deployment.metadata.labels.get(labels.QUEUE_PRIORITY, "")
    if name:
        value = observed.features.queue_priorities.get(name)
        if value is None:
            raise Unclear(
                f"there is no WorkloadPriorityClass {name}, which the label "
                f"{labels.QUEUE_PRIORITY} names; make it, or change the label"
            )
        return Priority(value, GROUP, name)
    known = observed.features.priorities
    names = [t["spec"].get("priorityClassName") or "" for t in revision.templates.values()]
    value, name = min(((known.get(name, 0), name) for name in names), default=(0, ""))
    return Priority(value, "scheduling.k8s.io" if name else "", name)


def _current(
    known: list[Entry], asked: str, queue: str, priority: Priority | None, same: bool
) -> Entry | None:
    """What has its quota is kept whatever queue and priority are now; and for a unit that has that
    revision already, whoever worked out what it asks for. A class's value may be changed, which is
    Kueue's to follow."""
    for one in reversed(known):
        if one.holds and (same or one.asked == asked):
            return one
    for one in reversed(known):
        alike = priority is None or (
            one.priority[1:] == priority[1:] if priority.name else one.priority == priority
        )
        if one.asked == asked and one.queue == queue and alike:
            return one
    return None


def _answer(
    observed: Observed, unit: str, queue: str, current: Entry | None
) -> tuple[Admission | None, NoPlace | None]:
    words = "" if current is None else current.words
    if current is None or not (current.admitted or words):
        silent = "if no answer comes, see whether Kueue runs"
        return None, _waits(f"unit {unit}: LocalQueue {queue} is asked; {silent}")
    if not current.admitted:
        said = [f"unit {unit}: waits whole in LocalQueue {queue}: {words}", current.cure]
        if current.before:
            said.append(f"its quota was taken back before: {current.before}")
        return None, _waits("; ".join(one.rstrip(".") for one in said if one))
    try:
        return admission_of(current, observed.features.flavors), None
    except Unclear as error:
        return None, _waits(f"unit {unit}: LocalQueue {queue} admitted it, but {error}")


def _tell_ready(entry: Entry, ready: bool, now: float) -> Iterator[Apply]:
    """For waitForPodsReady, by which Kueue takes quota back from what does not get ready."""
    found = entry.condition(PODS_READY)
    was = found is not None and found["status"] == "True"
    if ready == was:
        return
    reason, message = READY if ready else NOT_READY
    condition = {
        "type": PODS_READY,
        "status": str(ready),
        "reason": reason,
        "message": message,
        "lastTransitionTime": timestamp(now),
    }
    metadata = entry.live["metadata"]
    yield Apply(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "status": {"conditions": [condition]},
        },
        metadata["uid"],
        subresource="status",
    )


def _evicted(unit: str, queue: str, entry: Entry) -> NoPlace:
    return NoPlace(
        PlacedReason.EVICTED_BY_KUEUE,
        f"unit {unit}: Kueue takes back its quota of LocalQueue {queue} "
        f"({entry.why_evicted.rstrip('.')}); it goes whole, and queues again",
    )


def _waits(message: str) -> NoPlace:
    return NoPlace(PlacedReason.QUEUED_BY_KUEUE, message)
