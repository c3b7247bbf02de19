"""How the units of a deployment are, from its StatefulSets and pods: facts for all decisions."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from distserve.api import labels
from distserve.api.strategies import Role
from distserve.operator.model import Object, Observed, Placement, Pod

PLACE: Final = f"{labels.GROUP}/place"
"""Annotation of a StatefulSet: where its unit goes, as JSON."""
HELD_PODS: Final = f"{labels.GROUP}/held-pods"
"""Annotation of a StatefulSet that is held at no pods while its unit is replaced: how many it is to
have."""
CRASHING: Final = "CrashLoopBackOff"
_UNIT: Final = re.compile(r"u[0-9]{1,9}")
_OF_UNIT: Final = re.compile(rf".*-({_UNIT.pattern})-(?:[a-z]+-[0-9]+|[0-9a-f]{{8}})")
"""Names of StatefulSets, and of what stands for units in queues."""
_OF_ROLE: Final = re.compile(rf".*-({'|'.join(Role)})-[0-9]+")


@dataclass(frozen=True)
class LiveInstance:
    """A StatefulSet and its pods."""

    statefulset: Object
    pods: tuple[Pod, ...]

    @property
    def name(self) -> str:
        return str(self.statefulset["metadata"]["name"])

    @cached_property
    def role(self) -> str:
        """By its name, which nobody can write over. Empty for one that is not of our making."""
        named = _OF_ROLE.fullmatch(self.name)
        return named[1] if named else ""

    @property
    def revision(self) -> str:
        """That its pods are made of, whatever somebody wrote over its own label."""
        return _label(self.statefulset["spec"]["template"], labels.REVISION)

    @property
    def replicas(self) -> int:
        return int(self.statefulset["spec"].get("replicas", 1))

    @cached_property
    def ready(self) -> bool:
        """All its pods are there and ready, and of its revision."""
        pods = [p for p in self.pods if p.ready and not p.terminating]
        return len(pods) >= self.replicas > 0 and all(p.revision == self.revision for p in pods)

    @property
    def told_pods(self) -> int:
        """By the StatefulSet itself."""
        return int((self.statefulset.get("status") or {}).get("replicas", 0))

    @property
    def down(self) -> bool:
        """By what the StatefulSet says as well: one watch that is behind must not decide it."""
        told = int((self.statefulset.get("status") or {}).get("readyReplicas", 0))
        return not self.ready and told < max(1, self.replicas)


@dataclass(frozen=True)
class LiveUnit:
    name: str
    instances: Mapping[str, LiveInstance]
    pods: tuple[Pod, ...]

    @property
    def number(self) -> int:
        return int(self.name[1:])

    @cached_property
    def revision(self) -> str:
        """Empty while its StatefulSets are of several."""
        found = {instance.revision for instance in self.instances.values()}
        return found.pop() if len(found) == 1 else ""

    @cached_property
    def ending(self) -> bool:
        """All that is left of it goes: its name is free when the last of it is gone."""
        return all(
            "deletionTimestamp" in i.statefulset["metadata"] for i in self.instances.values()
        )

    @cached_property
    def place(self) -> Placement | None:
        """Where it was put when its first StatefulSet was made."""
        for instance in self.instances.values():
            text = instance.statefulset["metadata"].get("annotations", {}).get(PLACE)
            if text:
                return read_place(text)
        return None

    def held_for(self, revision: str) -> bool:
        """Whether pods of another revision are still there, by one watch or the other."""
        return any(pod.revision != revision for pod in self.pods) or any(
            i.revision != revision and i.told_pods for i in self.instances.values()
        )

    def ready(self, names: frozenset[str]) -> bool:
        """Whether just these instances are there and ready."""
        return self.instances.keys() == names and all(i.ready for i in self.instances.values())

    @property
    def down(self) -> bool:
        """Each request needs every role: one role without instances is enough."""
        by_role: dict[str, bool] = {}
        for instance in self.instances.values():
            by_role[instance.role] = by_role.get(instance.role, True) and instance.down
        return any(by_role.values())

    def bound(self, names: Collection[str]) -> bool:
        """Whether just these instances are there and all their pods have nodes."""
        return self.instances.keys() == set(names) and all(
            sum(bool(pod.node) for pod in instance.pods) >= max(1, instance.replicas)
            for instance in self.instances.values()
        )

    def stuck_since(self, gang_seconds: float, needed: bool = False) -> float | None:
        """Since when it waits in vain for a part of its pods, whose others hold nodes meanwhile.

        Not a unit of which enough is left to serve, or that is `needed` by others which serve with
        what it has left. One whose pods were all made together has not served yet: it is to be
        whole.
        """
        made = [p.created for p in self.pods if not p.terminating]
        waiting = [p for p in self.pods if p.unschedulable and not p.node and not p.terminating]
        if not waiting:
            return None
        if max(made) - min(made) <= gang_seconds:
            return max(made)
        return max(p.created for p in waiting) if self.down and not needed else None


def live_units(observed: Observed) -> dict[str, LiveUnit]:
    """By name, those that have a StatefulSet."""
    pods: dict[str, list[Pod]] = defaultdict(list)
    for pod in observed.pods:
        pods[pod.instance].append(pod)
    sets: dict[str, dict[str, LiveInstance]] = defaultdict(dict)
    for ref, found in observed.children.items():
        if ref.kind == "StatefulSet" and (unit := unit_by_name(ref.name, found)):
            sets[unit][ref.name] = LiveInstance(found, tuple(pods[ref.name]))
    return {
        unit: LiveUnit(unit, found, tuple(p for p in observed.pods if p.unit == unit))
        for unit, found in sets.items()
    }


def unit_by_name(name: str, found: Object) -> str:
    """By the object's name, which nobody can write over; else by its label. Empty for none."""
    if named := _OF_UNIT.fullmatch(name):
        return named[1]
    unit = _label(found, labels.UNIT)
    return unit if _UNIT.fullmatch(unit) else ""


def needed_together(units: Collection[LiveUnit]) -> frozenset[str]:
    """Names of units that cannot serve by themselves, and without which nobody serves: as few as
    will do, the lowest."""
    revisions = serve_together(units)
    if not revisions or not all(unit.down for unit in units):
        return frozenset()
    asked: dict[str, set[str]] = defaultdict(set)
    has: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for unit in units:
        for instance in unit.instances.values():
            asked[instance.revision].add(instance.role)
            if not instance.down:
                has[instance.revision][unit.name].add(instance.role)
    revision = min(revisions)
    left = has[revision]
    for name in sorted(left, key=lambda unit: -int(unit[1:])):
        others = set[str]().union(*(roles for other, roles in left.items() if other != name))
        if others == asked[revision]:
            left = {other: roles for other, roles in left.items() if other != name}
    return frozenset(left)


def serve_together(units: Iterable[LiveUnit]) -> frozenset[str]:
    """Revisions of which no unit can serve by itself and several can with each other's instances,
    since gateways pair across units where they must."""
    asked: dict[str, set[str]] = defaultdict(set)
    up: dict[str, set[str]] = defaultdict(set)
    alone = set()
    for unit in units:
        for instance in unit.instances.values():
            asked[instance.revision].add(instance.role)
            if not instance.down:
                up[instance.revision].add(instance.role)
        if not unit.down:
            alone.add(unit.revision)
    return frozenset(r for r in asked if up[r] == asked[r] and r not in alone)


def crashed(pods: tuple[Pod, ...], budget: int, within_seconds: float) -> Pod | None:
    """A pod whose container was restarted more often than `budget` and does not stay up: its last
    run was shorter than the time in which the budget holds."""
    for pod in pods:
        spent = pod.restarts > budget and pod.ran_seconds < within_seconds
        if spent and not pod.ready and not pod.terminating and pod.waiting == CRASHING:
            return pod
    return None


def write_place(place: Placement) -> str:
    rare = ("avoid", "repack")
    found = {name: value for name, value in vars(place).items() if name not in rare or value}
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def read_place(text: str) -> Placement | None:
    """None where somebody else wrote over it: the place is asked for again."""
    try:
        found: dict[str, Any] = json.loads(text)
        nodes = {str(name): tuple(map(str, names)) for name, names in found["nodes"].items()}
        avoid = tuple(map(str, found.get("avoid", ())))
        level, label, value = (str(found[name]) for name in ("level", "label", "value"))
        return Placement(level, label, value, nodes, avoid, str(found.get("repack", "")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _label(found: Object, name: str) -> str:
    return str(found["metadata"].get("labels", {}).get(name, ""))
