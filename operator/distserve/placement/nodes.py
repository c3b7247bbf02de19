"""One node as placement sees it, kept small: a thousand of them stay in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from sys import intern
from typing import Any, NamedTuple

from distserve.placement.quantities import Amounts, amounts

HOSTNAME = "kubernetes.io/hostname"

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Somebody has made sure that nothing runs there any more."""
UNREACHABLE = "node.kubernetes.io/unreachable"
"""The control plane has not heard of its kubelet for a while."""

_CORDON = "node.kubernetes.io/unschedulable"
"""Says the same as spec.unschedulable."""


class Taint(NamedTuple):
    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return (
            f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"
        )


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    labels: Mapping[str, str]
    allocatable: Amounts
    taints: tuple[Taint, ...]
    """Those that keep pods off: NoSchedule and NoExecute."""
    cordoned: bool
    ready: bool
    unreachable_since: float | None = None
    """Seconds since the epoch, while it carries that taint."""

    @property
    def out_of_service(self) -> bool:
        return any(taint.key == OUT_OF_SERVICE for taint in self.taints)

    @property
    def usable(self) -> bool:
        return self.ready and not self.cordoned

    @property
    def hostname(self) -> str:
        return self.labels.get(HOSTNAME, self.name)


def node_from(document: Mapping[str, Any]) -> Node:
    """From a Node as the API serves it. Raises ValueError for a quantity that is none."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    status = document.get("status") or {}
    labels = metadata.get("labels") or {}
    ready: Mapping[str, Any] = next(
        (one for one in status.get("conditions") or () if one["type"] == "Ready"), {}
    )
    return Node(
        name=intern(metadata["name"]),
        labels={intern(key): intern(value) for key, value in labels.items()},
        allocatable={
            intern(name): count for name, count in amounts(status.get("allocatable") or {}).items()
        },
        taints=tuple(
            Taint(intern(one["key"]), intern(one.get("value") or ""), intern(one["effect"]))
            for one in spec.get("taints") or ()
            if one["effect"] != "PreferNoSchedule" and one["key"] != _CORDON
        ),
        cordoned=bool(spec.get("unschedulable")),
        ready=ready.get("status") == "True",
        unreachable_since=_unreachable_since(spec.get("taints") or (), ready),
    )


def _unreachable_since(
    taints: Iterable[Mapping[str, Any]], ready: Mapping[str, Any]
) -> float | None:
    """The control plane says when it added the taint; of a taint by somebody else, without a time,
    the node's condition tells."""
    for one in taints:
        if one["key"] == UNREACHABLE and one["effect"] == "NoExecute":
            turned = ready.get("lastTransitionTime") if ready.get("status") != "True" else None
            when = one.get("timeAdded") or turned
            return datetime.fromisoformat(when).timestamp() if when else None
    return None
