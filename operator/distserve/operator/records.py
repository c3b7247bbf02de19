"""From objects as the API server serves them to what the store keeps of them."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from distserve.api import labels
from distserve.operator.keys import key_of
from distserve.operator.model import Key, Object, Pod

LAST_LINES = 3
LAST_CHARACTERS = 500
"""Of what a container said before it ended; the kubelet keeps up to 2 KB."""
ENGINE = "engine"
"""The container whose process is a rank, or several."""
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})


def pack(document: Object) -> bytes:
    """Small, as a thousand times twenty of them stay in memory; without managedFields, half of the
    object's size and nobody's to decide on."""
    metadata = {k: v for k, v in document["metadata"].items() if k != "managedFields"}
    return zlib.compress(msgspec.json.encode({**document, "metadata": metadata}))


def unpack(text: bytes) -> Object:
    found: Object = msgspec.json.decode(zlib.decompress(text))
    return found


def version(document: Mapping[str, Any]) -> int:
    """resourceVersions of one kind are numbers that grow (stated by Kubernetes since 1.35, true
    since the first release)."""
    return int(document["metadata"].get("resourceVersion") or 0)


def owner(document: Mapping[str, Any]) -> tuple[Key, str] | None:
    """The deployment that controls the object, and its uid."""
    metadata = document["metadata"]
    for reference in metadata.get("ownerReferences") or ():
        if (
            reference.get("controller")
            and reference["kind"] == labels.KIND
            and reference["apiVersion"].startswith(f"{labels.GROUP}/")
        ):
            return Key(metadata["namespace"], reference["name"]), reference["uid"]
    return None


def conditions_of(document: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(type, status, reason) of each of a deployment's conditions."""
    found = (document.get("status") or {}).get("conditions") or ()
    intern = sys.intern
    return tuple((intern(c["type"]), intern(c["status"]), intern(c["reason"])) for c in found)


def pod_key(document: Mapping[str, Any]) -> Key | None:
    """The deployment whose pod this is: pods carry their template's labels."""
    metadata = document["metadata"]
    name = (metadata.get("labels") or {}).get(labels.DEPLOYMENT)
    return Key(metadata["namespace"], name) if name else None


def pod_record(document: Mapping[str, Any]) -> Pod:
    metadata, status = document["metadata"], document.get("status") or {}
    marks = metadata.get("labels") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    worst: Mapping[str, Any] = max(
        containers, key=lambda one: one.get("restartCount") or 0, default={}
    )
    waiting, message = _trouble(containers)
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        instance=marks.get(labels.INSTANCE, ""),
        unit=marks.get(labels.UNIT, ""),
        revision=marks.get(labels.REVISION, ""),
        node=(document.get("spec") or {}).get("nodeName") or "",
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        created=seconds(metadata["creationTimestamp"]),
        unschedulable=(scheduled.get("message") or "")
        if scheduled.get("reason") == "Unschedulable"
        else "",
        restarts=worst.get("restartCount") or 0,
        engine_restarts=sum(
            one.get("restartCount") or 0 for one in containers if one["name"] == ENGINE
        ),
        ran_seconds=_ran(worst),
        waiting=waiting,
        message=message,
        starting_since=_starting_since(document, scheduled, containers),
        controller=_controller(metadata),
        forced=metadata.get("deletionGracePeriodSeconds") == 0,
        host=status.get("podIP") or "",
        containers_ready=(conditions.get("ContainersReady") or {}).get("status") == "True",
        fabric_gate=_fabric_gate(document, conditions),
        key=sys.intern(key_of(document.get("spec") or {})),
    )


def _fabric_gate(document: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool | None:
    gates = (document.get("spec") or {}).get("readinessGates") or ()
    if all(gate["conditionType"] != labels.FABRIC_VERIFIED for gate in gates):
        return None
    return bool((conditions.get(labels.FABRIC_VERIFIED) or {}).get("status") == "True")


def _controller(metadata: Mapping[str, Any]) -> str:
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            return sys.intern(f"{reference['kind']}/{reference['name']}")
    return ""


def _starting_since(
    document: Mapping[str, Any],
    scheduled: Mapping[str, Any],
    containers: Iterable[Mapping[str, Any]],
) -> float | None:
    if scheduled.get("status") != "True" or document["status"].get("phase") != "Pending":
        return None
    for one in containers:
        waiting = (one.get("state") or {}).get("waiting")
        if waiting is None or (waiting.get("reason") or "") not in _STARTING:
            return None
    return seconds(scheduled["lastTransitionTime"])


def _ran(container: Mapping[str, Any]) -> float:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended.get("startedAt") or not ended.get("finishedAt"):
        return 0.0
    return seconds(ended["finishedAt"]) - seconds(ended["startedAt"])


def _trouble(containers: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Why the first container that cannot start does not, and the words to that."""
    for one in containers:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason in _STARTING:
            continue
        ended = (one.get("lastState") or {}).get("terminated")
        if not ended:
            return reason, f"{one['name']}: {waiting.get('message') or reason}"
        said = ended.get("message") or ended.get("reason") or ""
        return reason, f"{one['name']}: exit code {ended.get('exitCode')}: {_last_words(said)}"
    return "", ""


def _last_words(said: str) -> str:
    """On one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-LAST_LINES:])[-LAST_CHARACTERS:]


def seconds(timestamp: str) -> float:
    """Since the epoch, from the API server's RFC 3339."""
    return datetime.fromisoformat(timestamp).timestamp()
