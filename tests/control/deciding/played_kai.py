"""KAI, played as its source tells it: a PodGroup's members are bound all or none, and its
scheduling conditions say what is lacking."""

from dataclasses import dataclass, field
from typing import Any

from distserve.operator.flavors import KaiQueue
from distserve.operator.model import Pod

Object = dict[str, Any]
SERVED = frozenset({"scheduling.run.ai/v2alpha2/PodGroup"})
QUEUE = "kai.scheduler/queue"
GROUP_NAME = "pod-group-name"
TEAM = {"team": KaiQueue(), "team-a": KaiQueue("team", {"nvidia.com/gpu": 64})}
WORDS = "Non-preemptible workload is over quota. Use a preemptible workload to go over quota."


@dataclass
class Kai:
    """Binds what fits a number of pods."""

    world: Any
    pods: int = 2
    partial: int = 0
    """Times that a part of a unit was bound that had never been bound whole."""
    whole: set[str] = field(default_factory=set)
    member_of: dict[str, str] = field(default_factory=dict)

    def unschedulable(self, pod: Pod) -> bool:
        """Asked before each try to bind it."""
        if not pod.instance:
            return False
        template = self.world.named("StatefulSet")[pod.instance]["spec"]["template"]
        if template["spec"].get("schedulerName") != "kai-scheduler":
            return False
        notes = template["metadata"]["annotations"]
        assert notes["kai.scheduler/skip-podgrouper"] == "true"
        name = self.member_of.setdefault(pod.uid, notes[GROUP_NAME])
        group = self.world.named("PodGroup").get(name)
        if group is None:
            return True
        bound, waiting = self.bound(group), self.members(group, node=False)
        if bound or group["metadata"]["uid"] in self.whole:
            fits = len(bound) + len(waiting) >= size(group)
        else:
            fits = len(waiting) >= size(group)
        used = sum(len(self.bound(one)) for one in self.groups)
        lacks = used + max(1, size(group) - len(bound)) > self.pods and not bound
        status = group.setdefault("status", {})
        if lacks and fits:
            reason = {"reason": "NonPreemptibleOverQuota", "message": WORDS}
            status["schedulingConditions"] = [{"reason": "Unschedulable", "reasons": [reason]}]
        else:
            status.pop("schedulingConditions", None)
        if lacks or not fits:
            return True
        if not bound:  # All of them at once.
            for one in waiting:
                self.world._schedule(one)
        return False

    def members(self, group: Object, node: bool) -> list[Pod]:
        for pod in self.world.pods.values():
            if pod.instance and pod.instance in self.world.named("StatefulSet"):
                notes = self.world.named("StatefulSet")[pod.instance]["spec"]["template"]
                name = notes["metadata"]["annotations"].get(GROUP_NAME, "")
                self.member_of.setdefault(pod.uid, name)
        name = group["metadata"]["name"]
        return [
            pod
            for pod in self.world.pods.values()
            if self.member_of.get(pod.uid) == name
            and bool(pod.node) == node
            and (node or not pod.terminating)
        ]

    def bound(self, group: Object) -> list[Pod]:
        return self.members(group, node=True)

    def look(self) -> None:
        for one in self.groups:
            bound, uid = len(self.bound(one)), one["metadata"]["uid"]
            if bound >= size(one):
                self.whole.add(uid)
            elif bound and uid not in self.whole:
                self.partial += 1

    def settle(self) -> Any:
        return self.world.settle(check=lambda world: self.look())

    @property
    def groups(self) -> list[Object]:
        found = list(self.world.named("PodGroup").values())
        return sorted(found, key=lambda one: one["metadata"]["labels"]["distserve.io/unit"])

    @property
    def group(self) -> Object:
        (found,) = self.groups
        return found


def size(group: Object) -> int:
    return int(group["spec"]["minMember"])
