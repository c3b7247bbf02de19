"""One node as placement sees it, kept small: a thousand of them stay in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, NamedTuple

from distserve.placement.quantities import Amounts, amounts

HOSTNAME = "kubernetes.io/hostname"

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
        ready=any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in status.get("conditions") or ()
        ),
    )
