"""Kueue's Workloads of a deployment's units, as they are: facts for `kueue`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from distserve.operator.conditions import seconds
from distserve.operator.flavors import Flavor
from distserve.operator.health import unit_by_name
from distserve.operator.model import Object, Observed, Ref
from distserve.resources.kueue import API_VERSION, ASKED, BEFORE, KIND, Priority
from distserve.resources.queued import Admission, Admitted


class Unclear(Exception):
    """Why an admission cannot be followed."""


@dataclass(frozen=True)
class Entry:
    """A Workload of a unit."""

    live: Object

    @property
    def name(self) -> str:
        return str(self.live["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.live["metadata"]["uid"])

    @property
    def asked(self) -> str:
        return str(self.live["metadata"]["labels"].get(ASKED, ""))

    @property
    def active(self) -> bool:
        return bool(self.live["spec"].get("active", True))

    @property
    def queue(self) -> str:
        return str(self.live["spec"].get("queueName", ""))

    @property
    def before(self) -> str:
        """Why the unit's last one lost its quota."""
        return str((self.live["metadata"].get("annotations") or {}).get(BEFORE, ""))

    @property
    def priority(self) -> Priority:
        found = self.live["spec"].get("priorityClassRef") or {}
        value = int(self.live["spec"].get("priority") or 0)
        return Priority(value, found.get("group", ""), found.get("name", ""))

    @property
    def ref(self) -> Ref:
        return Ref(API_VERSION, KIND, self.name)

    @property
    def holds(self) -> bool:
        """It has its quota."""
        return self._is("QuotaReserved")

    @property
    def admitted(self) -> bool:
        return self._is("Admitted") and self.holds and not self.evicted

    @property
    def admitted_since(self) -> float:
        """0 where it is not."""
        found = self.condition("Admitted") if self.admitted else None
        return seconds(found.get("lastTransitionTime", "")) if found else 0.0

    @property
    def evicted(self) -> bool:
        return self._is("Evicted")

    @property
    def over(self) -> bool:
        """Nothing comes of it any more: its unit goes, and then it does."""
        return self._is("Finished") or (self.evicted and self.holds)

    @cached_property
    def why_evicted(self) -> str:
        found = self.condition("Evicted") or self.condition("Finished") or {}
        return ": ".join(filter(None, (found.get("reason"), found.get("message"))))

    def condition(self, kind: str) -> Object | None:
        status = self.live.get("status") or {}
        return next((c for c in status.get("conditions") or () if c["type"] == kind), None)

    @property
    def words(self) -> str:
        """What Kueue says of it while it waits; empty as long as it says nothing."""
        if not self.active:
            return f"Workload {self.name} is deactivated; set its spec.active to true"
        if self.holds:
            checks = (self.live.get("status") or {}).get("admissionChecks") or ()
            names = [f"{c['name']} ({c['state']})" for c in checks if c["state"] != "Ready"]
            if not names:
                return ""
            return f"it has its quota and waits for admission checks: {', '.join(names)}"
        return str((self.condition("QuotaReserved") or {}).get("message", "")).strip()

    @property
    def cure(self) -> str:
        """What may be done about that; empty where the words say it."""
        if not self.active:
            return ""
        if (self.condition("QuotaReserved") or {}).get("reason") == "Inadmissible":
            return f"see kubectl describe localqueue {self.queue}, or have the label name another"
        more = "" if self.holds else "; it comes when others give back quota, or it gets more"
        return f"see kubectl describe workload {self.name}{more}"

    def _is(self, kind: str) -> bool:
        found = self.condition(kind)
        return found is not None and found["status"] == "True"


def entries(observed: Observed) -> dict[str, list[Entry]]:
    """By unit, oldest first."""
    found: dict[str, list[Entry]] = {}
    for ref, live in observed.children.items():
        stays = ref.kind == KIND and "deletionTimestamp" not in live["metadata"]
        if stays and (unit := unit_by_name(ref.name, live)):
            found.setdefault(unit, []).append(Entry(live))
    for some in found.values():
        some.sort(key=lambda one: (one.live["metadata"].get("creationTimestamp", ""), one.name))
    return found


def admission_of(entry: Entry, flavors: Mapping[str, Flavor]) -> Admission:
    """Raises Unclear."""
    status = entry.live.get("status") or {}
    found = {}
    for one in (status.get("admission") or {}).get("podSetAssignments") or ():
        if one.get("topologyAssignment"):
            raise Unclear(
                "its flavor has a Topology, by which Kueue chooses nodes itself: "
                "topology.packWithin does that here; use a ResourceFlavor without topologyName"
            )
        got = Admitted()
        for name in sorted(set((one.get("flavors") or {}).values())):
            if name not in flavors:
                raise Unclear(f"its ResourceFlavor {name} is not seen yet")
            got = _also(got, flavors[name].node_labels, flavors[name].tolerations)
        for check in status.get("admissionChecks") or ():
            for update in check.get("podSetUpdates") or ():
                if update["name"] == one["name"]:
                    got = _also(
                        got,
                        update.get("nodeSelector") or {},
                        tuple(update.get("tolerations") or ()),
                        update.get("labels") or {},
                        update.get("annotations") or {},
                    )
        found[str(one["name"])] = got
    return found


def _also(
    got: Admitted,
    selector: Mapping[str, str],
    tolerations: tuple[Object, ...],
    marks: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Admitted:
    return Admitted(
        {**got.node_selector, **selector},
        (*got.tolerations, *(one for one in tolerations if one not in got.tolerations)),
        {**got.labels, **(marks or {})},
        {**got.annotations, **(annotations or {})},
    )
