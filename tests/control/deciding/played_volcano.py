"""Volcano, played as it is told in its documentation: a group's phase, and members that are bound
all or none."""

from dataclasses import dataclass, field
from typing import Any

from distserve.operator.flavors import VolcanoQueue
from distserve.operator.model import Pod

Object = dict[str, Any]
SERVED = frozenset({"scheduling.volcano.sh/v1beta1/PodGroup"})
QUEUE = "scheduling.volcano.sh/queue-name"
GROUP_NAME = "scheduling.k8s.io/group-name"
LET_IN = "distserve.io/let-in"
TEAM = {"default": VolcanoQueue("Open"), "team-a": VolcanoQueue("Open", {"nvidia.com/gpu": 64})}


@dataclass
class Volcano:
    """Lets in what fits a number of pods, the oldest first."""

    world: Any
    pods: int = 2
    runs: bool = True
    seen: dict[str, int] = field(default_factory=dict)
    partial: int = 0
    """Times that a part of a unit was bound that had never been bound whole."""
    whole: set[str] = field(default_factory=set)
    member_of: dict[str, str] = field(default_factory=dict)
    """Pods' groups, as they were made."""

    def __call__(self, world: Any) -> None:
        if not self.runs:
            return
        for one in self.groups:
            self.seen.setdefault(one["metadata"]["uid"], len(self.seen))
            self.say(one, self.phase_of(one))
        for one in sorted(self.groups, key=lambda one: self.seen[one["metadata"]["uid"]]):
            queue = world.features.volcano_queues.get(one["spec"]["queue"])
            fits = self.used() + size(one) <= self.pods
            if phase(one) == "Pending" and fits and queue and queue.state == "Open":
                self.say(one, "Inqueue")

    def look(self) -> None:
        """After pods were bound."""
        for one in self.groups:
            bound, uid = len(self.bound(one)), one["metadata"]["uid"]
            if bound == size(one):
                self.whole.add(uid)
            elif bound and uid not in self.whole:
                self.partial += 1

    def phase_of(self, one: Object) -> str:
        bound = len(self.bound(one))
        if bound:
            return "Running" if bound == size(one) else "Unknown"
        return "Inqueue" if phase(one) == "Inqueue" else "Pending"

    def used(self) -> int:
        return sum(size(g) if phase(g) == "Inqueue" else len(self.bound(g)) for g in self.groups)

    def members(self, one: Object) -> list[Pod]:
        name = one["metadata"]["name"]
        return [p for p in self.world.pods.values() if self.member_of.get(p.uid) == name]

    def bound(self, one: Object) -> list[Pod]:
        return [p for p in self.members(one) if p.node]

    def unschedulable(self, pod: Pod) -> bool:
        """Asked before each try to bind it."""
        if not pod.instance:
            return False
        template = self.world.named("StatefulSet")[pod.instance]["spec"]["template"]
        if template["spec"].get("schedulerName") != "volcano":
            return False
        name = template["metadata"]["annotations"][GROUP_NAME]
        self.member_of.setdefault(pod.uid, name)
        group = self.world.named("PodGroup").get(self.member_of[pod.uid])
        if not self.runs or group is None or phase(group) in ("", "Pending"):
            return True
        sets = [
            found["metadata"]["name"]
            for found in self.world.named("StatefulSet").values()
            if found["spec"]["template"]["metadata"]["annotations"].get(GROUP_NAME) == name
        ]
        made = [p for p in self.world.pods.values() if p.instance in sets and not p.terminating]
        return len(made) < size(group)

    def say(self, one: Object, value: str) -> None:
        one.setdefault("status", {})["phase"] = value

    def settle(self) -> Any:
        def check(world: Any) -> None:
            self.look()
            self(world)

        return self.world.settle(check=check)

    @property
    def groups(self) -> list[Object]:
        found = list(self.world.named("PodGroup").values())
        return sorted(found, key=lambda one: one["metadata"]["labels"]["distserve.io/unit"])

    @property
    def group(self) -> Object:
        (found,) = self.groups
        return found


def size(one: Object) -> int:
    return int(one["spec"]["minMember"])


def phase(one: Object) -> str:
    return str(one.get("status", {}).get("phase", ""))
