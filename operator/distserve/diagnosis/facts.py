"""What is known of a deployment at one time, as the API server serves it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distserve.api import labels

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Container:
    """One of a pod, init containers and sidecars too."""

    name: str
    ready: bool
    restarts: int
    waiting: str
    """Reason; empty while it runs."""
    message: str
    """The kubelet's words to that."""
    exit_code: int | None
    """Of the run before this one, or of the only one."""
    end_reason: str
    """OOMKilled, Error..."""
    running: bool
    sidecar_or_main: bool
    """Whether it is to go on running."""


@dataclass(frozen=True)
class Facts:
    document: Object
    pods: tuple[Object, ...] = ()
    children: tuple[Object, ...] = ()
    """StatefulSets and the gateway's Deployment."""
    events: tuple[Object, ...] | None = ()
    """Of the deployment, its children, their ReplicaSets and its pods, oldest first; None where
    they may not be read."""
    logs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(pod, container) -> the last lines of what ended, or of what is not ready."""
    operator_pods: tuple[Object, ...] | None = None
    """None where they may not be read."""

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"].get("namespace", "default"))

    @property
    def status(self) -> Object:
        found: Object = self.document.get("status") or {}
        return found

    def condition(self, kind: str) -> Object | None:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), None)

    def log(self, pod: str, container: str) -> list[str]:
        """The lines that are known, oldest first; of structured ones the level and the message."""
        return [_plain(line) for line in self.logs.get((pod, container), "").strip().splitlines()]

    def events_of(self, kind: str, name: str) -> list[Object]:
        return [e for e in self.events or () if regards(e) == (kind, name)]


def pod_role(pod: Object) -> str:
    """prefill, decode, hybrid or gateway."""
    found = pod["metadata"].get("labels", {})
    return str(found.get(labels.ROLE) or found.get(labels.APP_COMPONENT) or "pod")


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def unschedulable(pod: Object) -> str:
    """The scheduler's words; empty once a node is found."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return ""


def refused_pods(controller: Object) -> str:
    """Why a Deployment's pods are not made, in the API server's words; empty where they are. Of a
    StatefulSet events alone tell it."""
    for condition in (controller.get("status") or {}).get("conditions") or ():
        failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
        if failed and condition.get("reason") == "FailedCreate":
            return str(condition.get("message", ""))
    return ""


def containers(pod: Object) -> Iterator[Container]:
    """In the order in which they start."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    states = {
        one["name"]: one
        for one in (
            *status.get("initContainerStatuses", []),
            *status.get("containerStatuses", []),
        )
    }
    declared = [
        *((one, one.get("restartPolicy") == "Always") for one in spec.get("initContainers", [])),
        *((one, True) for one in spec.get("containers", [])),
    ]
    for one, stays in declared:
        seen = states.get(one["name"], {})
        state, last = seen.get("state", {}), seen.get("lastState", {})
        waiting = state.get("waiting", {})
        ended = state.get("terminated") or last.get("terminated") or {}
        yield Container(
            name=one["name"],
            ready=bool(seen.get("ready")),
            restarts=int(seen.get("restartCount", 0)),
            waiting=str(waiting.get("reason", "")),
            message=str(waiting.get("message") or ended.get("message") or ""),
            exit_code=ended.get("exitCode"),
            end_reason=str(ended.get("reason", "")),
            running="running" in state,
            sidecar_or_main=stays,
        )


def event_time(event: Object) -> str:
    """RFC 3339; sorts."""
    series = event.get("series") or {}
    candidates = (
        series.get("lastObservedTime"),
        event.get("eventTime"),
        event.get("lastTimestamp"),
        event["metadata"].get("creationTimestamp"),
    )
    return str(next((at for at in candidates if at), ""))


def event_text(event: Object) -> str:
    return str(event.get("message") or "").strip()


def _plain(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['level']}: {entry['message']}"
    except (ValueError, TypeError, KeyError):
        return line


def regards(event: Object) -> tuple[str, str]:
    """(kind, name) of the object that it is about."""
    about = event.get("involvedObject") or {}
    return str(about.get("kind", "")), str(about.get("name", ""))
