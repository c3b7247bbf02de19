"""Instances of several pods: their ranks begin together. Pure, called by `decide` and `writes`.

    all pods ready ----------> who they are is written down: annotation distserve.io/world
    one of those is gone, or
    its engine began anew ---> the others end, too, and all meet again

A world of ranks (NCCL) takes nobody in again: what is left of it fails at its next step, or hangs.
Only who was written down ends, each once, so nothing goes round in circles, and pods that are still
on their way up are left alone, however many died.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from distserve.api import labels
from distserve.operator.health import LiveInstance, LiveUnit
from distserve.operator.model import Decision, Delete, Event, Object, Pod, Ref

WORLD: Final = f"{labels.GROUP}/world"
"""Annotation of a StatefulSet of several pods: uid -> restarts of its engine, as JSON."""
GRACE_SECONDS: Final = 5
"""To let go of devices and connections. There is nothing to drain: each request needs all ranks."""

World = Mapping[str, int]


def noted(objects: Sequence[Object], live: Mapping[str, LiveUnit]) -> list[Object]:
    """With the annotation on StatefulSets of several pods. It is no part of the hash of what was
    wanted: where nothing is to be noted any more, an old note means nobody who is still there."""
    notes = {instance.name: note for instance in _several(live) if (note := _note(instance))}
    return [
        _with_note(one, notes[name])
        if one["kind"] == "StatefulSet" and (name := one["metadata"]["name"]) in notes
        else one
        for one in objects
    ]


def rejoined(decision: Decision, live: Mapping[str, LiveUnit]) -> Decision:
    """Whatever else was decided: also pods that cannot go on without one that was lost end. Of what
    is to go anyway nothing is hurried."""
    going = {action.ref for action in decision.actions if isinstance(action, Delete)}
    deletions: list[Delete] = []
    events: list[Event] = []
    for instance in _several(live):
        if Ref("apps/v1", "StatefulSet", instance.name) in going:
            continue
        left = _left(instance, _read(_written(instance)))
        refs = {pod.name: Ref("v1", "Pod", pod.name) for pod in left}
        ending = [pod for pod in left if refs[pod.name] not in going]
        deletions += [Delete(refs[pod.name], pod.uid, GRACE_SECONDS) for pod in ending]
        if ending:
            events.append(_told(instance, ending))
    if not deletions:
        return decision
    return replace(
        decision,
        actions=(*deletions, *decision.actions),
        events=(*events, *decision.events),
    )


def _several(live: Mapping[str, LiveUnit]) -> Iterator[LiveInstance]:
    """Not those that are held at no pods, while a unit is replaced."""
    for unit in live.values():
        for instance in unit.instances.values():
            if (
                instance.replicas > 1
                and "deletionTimestamp" not in instance.statefulset["metadata"]
            ):
                yield instance


def _pods(instance: LiveInstance) -> list[Pod]:
    """Labels can be anybody's: what counts is who made it."""
    made = f"StatefulSet/{instance.name}"
    return [pod for pod in instance.pods if pod.controller == made]


def _left(instance: LiveInstance, world: World) -> list[Pod]:
    """Members of a world that is not whole any more. One that is ending still has its process,
    which may finish its requests with the others."""
    same = [pod for pod in _pods(instance) if world.get(pod.uid) == pod.engine_restarts]
    return [] if len(same) == len(world) else [pod for pod in same if not pod.terminating]


def _note(instance: LiveInstance) -> str:
    """Those who are there once all are ready; until then, and while some are to end, what was noted
    last: a replacement may be ready sooner than its loss was seen."""
    pods, before = _pods(instance), _written(instance)
    if not instance.ready or len(pods) != instance.replicas or _left(instance, _read(before)):
        return before
    members = {pod.uid: pod.engine_restarts for pod in pods}
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


def _with_note(found: Object, note: str) -> Object:
    metadata = found["metadata"]
    annotations = {**metadata.get("annotations", {}), WORLD: note}
    return {**found, "metadata": {**metadata, "annotations": annotations}}


def _told(instance: LiveInstance, ending: list[Pod]) -> Event:
    names = ", ".join(pod.name for pod in ending[:4])
    more = f" and {len(ending) - 4} more" if len(ending) > 4 else ""
    ends = "ends" if len(ending) == 1 else "end"
    message = (
        f"instance {instance.name} lost a pod, or an engine in one: {names}{more} {ends} as well, "
        f"since ranks that run cannot take another one in; all {instance.replicas} begin together"
    )
    return Event("Warning", "InstanceRestarted", message, of=_digest(_written(instance)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(instance: LiveInstance) -> str:
    return str((instance.statefulset["metadata"].get("annotations") or {}).get(WORLD, ""))


def _read(text: str) -> World:
    """Nobody, where somebody else wrote over it: it is written anew when all are ready."""
    try:
        found = json.loads(text or "{}")
        return {str(uid): int(restarts) for uid, restarts in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
