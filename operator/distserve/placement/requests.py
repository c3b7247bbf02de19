"""What placement is asked: units, their instances and the levels of the fabric, made by whoever
knows deployments (the operator, `distserve plan`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from distserve.placement.quantities import PODS, Amounts, Number, amount

Labels = Mapping[str, str]


class UnitId(NamedTuple):
    namespace: str
    deployment: str
    unit: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.deployment}/{self.unit}"


class Level(NamedTuple):
    """Nodes that share a value of the label are one domain of this level."""

    name: str
    node_label: str


class Domain(NamedTuple):
    """What a unit's pods must share: required node affinity is `node_label In [value]`."""

    level: str
    node_label: str
    """The level's label; kubernetes.io/hostname for a node that lacks it, which is alone."""
    value: str

    def __str__(self) -> str:
        return f"{self.level} {self.value}"


CLUSTER = "the cluster"
"""Where a domain is named: all of it, for units that may lie anywhere."""


class Enforcement(StrEnum):
    REQUIRED = "Required"
    PREFERRED = "Preferred"


@dataclass(frozen=True)
class InstanceRequest:
    """One StatefulSet: all its pods are alike."""

    name: str
    """The StatefulSet's name: its pods are name-0, name-1, ..."""
    pods: int
    requests: Mapping[str, Number]
    """Per pod, in base units: cores, bytes, devices."""
    node_selector: Labels = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    node_affinity_terms: Sequence[Mapping[str, Any]] = ()
    """nodeSelectorTerms of the required node affinity, any of which may match. None: any node."""

    @cached_property
    def amounts(self) -> Amounts:
        """Of one pod, itself counted among the node's `pods`."""
        found = {name: amount(name, number) for name, number in self.requests.items() if number}
        return found | {PODS: 1}

    @property
    def pod_names(self) -> list[str]:
        return [f"{self.name}-{ordinal}" for ordinal in range(self.pods)]


@dataclass(frozen=True)
class UnitRequest:
    """One unit, placed whole or not at all."""

    id: UnitId
    instances: tuple[InstanceRequest, ...]
    waiting_since: float
    """Seconds, on the clock of `place`'s now. Among equal priorities the earliest goes first."""
    priority: int = 0
    """The value of the pods' priority class. It orders; nothing that runs is removed for it."""
    levels: tuple[Level, ...] = ()
    """Tightest first. Without any, the whole cluster is the domain."""
    pack_within: str | None = None
    """Name of the level of which the unit needs one domain. None: anywhere in the cluster."""
    enforcement: Enforcement = Enforcement.REQUIRED
    relax_after_seconds: float = 300.0
    """Preferred only: after each such wait the next level will do, after the last the cluster."""
    reserve_after_seconds: float | None = None
    """After this wait, nodes are kept free of units behind it. None: never."""
    within: Domain | None = None
    """The domain that the unit's StatefulSets require already: no other is considered."""
    refused: tuple[str, ...] = ()
    """Domains, as `str(Domain)` or CLUSTER, where its pods found no nodes though there was room:
    taken when no other will do, the one that was tried longest ago first."""
    elsewhere: bool = False
    """And not even then."""

    def __post_init__(self) -> None:
        if self.pack_within is not None and self.pack_within not in [n for n, _ in self.levels]:
            known = ", ".join(level.name for level in self.levels) or "none"
            raise ValueError(f"packWithin: no level {self.pack_within!r}; there is {known}")

    @cached_property
    def total(self) -> Amounts:
        found: dict[str, int] = {}
        for instance in self.instances:
            for name, count in instance.amounts.items():
                found[name] = found.get(name, 0) + count * instance.pods
        return found

    @property
    def pod_names(self) -> list[str]:
        return [name for instance in self.instances for name in instance.pod_names]

    def waited(self, now: float) -> float:
        return max(0.0, now - self.waiting_since)
