"""Kueue, played by its documented words."""

from dataclasses import dataclass
from typing import Any

from distserve.operator.conditions import timestamp
from distserve.operator.flavors import Flavor

Object = dict[str, Any]
API = "kueue.x-k8s.io/v1beta2"
QUEUE = "kueue.x-k8s.io/queue-name"
CLASS = "kueue.x-k8s.io/priority-class"
SERVED = frozenset({f"{API}/Workload"})
A100 = Flavor({"gpu": "a100"}, ({"key": "gpu", "operator": "Exists"},))


@dataclass
class Kueue:
    """Admits what fits a number of pods: the most urgent first, then the oldest."""

    world: Any
    pods: int = 2
    made: int = 0
    uneven: int = 0
    """Times that more pods were there than had quota."""

    def __call__(self, world: Any) -> None:
        known = list(world.named("Workload").values())
        for one in known:
            if "creationTimestamp" not in one["metadata"]:
                self.made += 1
                one["metadata"]["creationTimestamp"] = f"{self.made:06}"
        used = sum(size(one) for one in known if holds(one, "QuotaReserved"))
        allowed = {
            one["metadata"]["labels"]["distserve.io/unit"]
            for one in known
            if holds(one, "QuotaReserved")
        }
        self.uneven += any(p.unit and p.unit not in allowed for p in world.pods.values())
        known.sort(key=lambda w: (-w["spec"]["priority"], w["metadata"]["creationTimestamp"]))
        for one in known:
            if holds(one, "QuotaReserved") or not one["spec"]["active"]:
                continue
            if used + size(one) > self.pods:
                free = self.pods - used
                say(one, "QuotaReserved", False, "Pending", f"insufficient quota: {free} free")
                continue
            used += size(one)
            self.admit(one)

    def admit(self, one: Object) -> None:
        say(one, "QuotaReserved", True, "QuotaReserved", "")
        say(one, "Admitted", True, "Admitted", "", self.world.now)
        say(one, "Evicted", False, "QuotaReserved", "")
        one["status"]["admission"] = {
            "clusterQueue": "all",
            "podSetAssignments": [
                {"name": s["name"], "count": s["count"], "flavors": {"cpu": "a100"}}
                for s in one["spec"]["podSets"]
            ],
        }

    def evict(self, one: Object, reason: str = "Preempted") -> None:
        say(one, "Evicted", True, reason, "to accommodate a workload (UID: 7)")

    def settle(self) -> Any:
        return self.world.settle(check=self)

    @property
    def workloads(self) -> list[Object]:
        found = list(self.world.named("Workload").values())
        return sorted(found, key=lambda one: one["metadata"]["labels"]["distserve.io/unit"])

    @property
    def workload(self) -> Object:
        (found,) = self.workloads
        return found


def size(one: Object) -> int:
    return sum(s["count"] for s in one["spec"]["podSets"])


def holds(one: Object, kind: str) -> bool:
    found = one.get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in found)


def say(one: Object, kind: str, status: bool, reason: str, message: str, now: float = 0.0) -> None:
    conditions = one.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [c for c in conditions if c["type"] != kind]
    conditions.append(
        {
            "type": kind,
            "status": str(status),
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(now),
        }
    )
