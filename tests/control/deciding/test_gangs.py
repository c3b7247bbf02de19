"""Units that are one PodGroup of Kubernetes' own scheduler, which is played as its plugin counts:
nobody is bound before all members are there and find nodes; those that are bound count."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.control.deciding.said import placed

from distserve.operator.decide import decide
from distserve.operator.model import (
    Answers,
    Apply,
    DryRunQuestion,
    Features,
    Placement,
    Pod,
)

Make = Callable[..., Any]
Object = dict[str, Any]
API = "scheduling.k8s.io/v1alpha2"
SERVED = frozenset({f"{API}/PodGroup"})
GANG = {"topology": {"scheduler": "GangScheduling"}}


@dataclass
class Gangs:
    """Binds the members of a group when all of them are there, and `room` is left for them."""

    world: Any
    room: int = 100
    member_of: dict[str, str] = field(default_factory=dict)
    """Pods' groups, as they were made."""
    let_in: set[str] = field(default_factory=set)
    """Pods for which room was found together: others do not take it while they are bound."""
    whole: set[str] = field(default_factory=set)
    """Groups that were bound whole, and their pods then: Kubernetes keeps a group while it has
    pods, here it may be made anew beside them."""
    partial: int = 0
    """Times that a part of a group was bound that had never been bound whole."""

    def unschedulable(self, pod: Pod) -> bool:
        """Asked before each try to bind it."""
        if pod.uid in self.let_in:
            return False
        template = self.template(pod)
        if template is None or not (group := template["spec"].get("schedulingGroup")):
            return False
        name = self.member_of.setdefault(pod.uid, group["podGroupName"])
        found = self.groups.get(name)
        there = len([one for one in self.members(name) if not one.terminating])
        taken = [p for p in self.world.pods.values() if p.unit and (p.node or p.uid in self.let_in)]
        missing = there - len(self.bound(name))
        if found is None or there < count(found) or self.room - len(taken) < missing:
            return True
        self.let_in |= {one.uid for one in self.members(name)}
        return False

    def template(self, pod: Pod) -> Object | None:
        found = self.world.named("StatefulSet").get(pod.instance)
        return None if found is None else found["spec"]["template"]

    def members(self, name: str) -> list[Pod]:
        found = []
        for pod in self.world.pods.values():
            if pod.unit and pod.uid not in self.member_of and (made := self.template(pod)):
                group = made["spec"].get("schedulingGroup") or {}
                self.member_of[pod.uid] = group.get("podGroupName", "")
            if self.member_of.get(pod.uid) == name:
                found.append(pod)
        return found

    def bound(self, name: str) -> list[Pod]:
        return [pod for pod in self.members(name) if pod.node]

    @property
    def groups(self) -> dict[str, Object]:
        return {ref.name: one for ref, one in self.world.objects.items() if ref[:1] == (API,)}

    @property
    def group(self) -> Object:
        (found,) = self.groups.values()
        return found

    def look(self, world: Any = None) -> None:
        for name, one in self.groups.items():
            bound, uid = {pod.uid for pod in self.bound(name)}, one["metadata"]["uid"]
            if len(bound) == count(one):
                self.whole |= {uid, *bound}
            elif uid not in self.whole and not bound <= self.whole:
                self.partial += 1

    def settle(self) -> Any:
        world = self.world.settle(check=self.look)
        assert not self.partial
        return world


def count(group: Object) -> int:
    return int(group["spec"]["schedulingPolicy"]["gang"]["minCount"])


@pytest.fixture
def gangs(new_world: Make) -> Callable[..., Gangs]:
    def make(room: int = 100, **spec: Any) -> Gangs:
        world = new_world(**GANG | spec)
        world.features = Features(served=SERVED)
        found = Gangs(world, room)
        world.unschedulable = found.unschedulable
        return found

    return make


def templates(world: Any) -> list[Object]:
    return [one["spec"]["template"] for one in world.named("StatefulSet").values()]


def names(world: Any) -> set[str]:
    """PodGroups that pods are made for."""
    fields = [one["spec"].get("schedulingGroup") or {} for one in templates(world)]
    return {one.get("podGroupName", "") for one in fields}


def queued(world: Any) -> list[Object]:
    """What stands for units with any scheduler."""
    kinds = ("Workload", "PodGroup")
    return [one for ref, one in world.objects.items() if ref.kind in kinds]


def test_a_placed_unit_is_one_group_that_is_there_before_its_pods(gangs: Make) -> None:
    found = gangs(decode={"instancesPerUnit": 2})
    world = found.settle()
    assert count(found.group) == 3
    assert found.group["metadata"]["labels"]["distserve.io/unit"] == "u0"
    (owner,) = found.group["metadata"]["ownerReferences"]
    assert owner["kind"] == "DistServeDeployment"
    assert names(world) == set(found.groups)
    kinds = [one.object["kind"] for one in world.writes if not hasattr(one, "ref")]
    assert kinds.index("PodGroup") < kinds.index("StatefulSet")
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1
    gateways = world.named("Deployment").values()
    assert all("schedulingGroup" not in g["spec"]["template"]["spec"] for g in gateways)


def test_without_a_domain_nothing_of_it_is_there(gangs: Make) -> None:
    found = gangs()
    found.world.room = 0
    world = found.settle()
    assert placed(world) == ("False", "NoRoom")
    assert not found.groups and not world.named("StatefulSet")


def test_what_finds_no_nodes_is_taken_back_whole_and_comes_again(gangs: Make) -> None:
    found = gangs(room=1)
    world = found.settle()
    assert placed(world) == ("False", "Unschedulable")
    first = min(name for name, pod in world.pods.items() if pod.unit)
    waits = "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled"
    world.pods[first] = replace(world.pods[first], unschedulable=waits)
    world.reconcile()
    assert "0/1 nodes are available" in world.condition("Placed")["message"], "not who would do"
    world.room = 0
    world.now += 60.0
    found.settle()
    assert placed(world) == ("False", "NoRoom")
    assert not world.named("StatefulSet"), "after gangTimeout it holds no room"
    world.room, found.room = 1, 2
    found.settle()
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1


def test_a_lost_pod_is_bound_to_those_that_are_left(gangs: Make) -> None:
    found = gangs()
    world = found.settle()
    before = found.group["metadata"]["uid"]
    name = next(name for name, pod in world.pods.items() if pod.unit)
    del world.pods[name]
    found.settle()
    assert name in world.pods and world.ready_units() == 1
    assert found.group["metadata"]["uid"] == before


@pytest.mark.parametrize(
    "change",
    [
        {"decode": {"instancesPerUnit": 2}},
        {"decode": {"podTemplate": {"metadata": {"annotations": {"new": "1"}}}}},
    ],
)
def test_what_changes_its_pods_is_another_group(gangs: Make, change: Object) -> None:
    """All members are to be of one number: a group's is fixed."""
    found = gangs()
    world = found.settle()
    (before,) = found.groups
    world.edit(**change)
    found.settle()
    assert world.condition("Progressing")["reason"] == "UpToDate" and world.ready_units() == 1
    assert names(world) == set(found.groups) != {before}
    assert len(found.bound(*found.groups)) == count(found.group)


def test_smaller_units_heal_too(gangs: Make) -> None:
    found = gangs(decode={"instancesPerUnit": 3})
    world = found.settle()
    world.edit(decode={"instancesPerUnit": 1})
    found.settle()
    del world.pods[next(name for name, pod in world.pods.items() if pod.unit)]
    found.settle()
    assert world.ready_units() == 1 and count(found.group) == 2


def test_without_it_the_number_of_instances_rolls_nothing_out(gangs: Make) -> None:
    found = gangs(topology={})
    world = found.settle()
    pods = {pod.uid for pod in world.pods.values() if pod.unit}
    world.edit(decode={"instancesPerUnit": 2})
    found.settle()
    assert pods < {pod.uid for pod in world.pods.values() if pod.unit} and not found.groups


def test_who_goes_takes_its_group_along(gangs: Make) -> None:
    found = gangs(units=2)
    world = found.settle()
    assert len(found.groups) == 2
    world.edit(units=1)
    found.settle()
    assert found.group["metadata"]["labels"]["distserve.io/unit"] == "u0"
    world.edit(units=0)
    found.settle()
    assert not found.groups


def test_what_runs_when_the_field_comes_goes_there_by_a_rollout(gangs: Make) -> None:
    found = gangs(topology={})
    world = found.settle()
    pods = {pod.uid for pod in world.pods.values() if pod.unit}
    world.edit(**GANG, rollout={"paused": True})
    found.settle()
    assert {pod.uid for pod in world.pods.values() if pod.unit} == pods and not found.groups
    world.edit(rollout={})
    found.settle()
    assert names(world) == set(found.groups) and len(found.groups) == 1
    world.edit(topology={}, rollout={"paused": True})
    found.settle()
    assert names(world) == set(found.groups), "its pods are members as long as they are there"
    world.edit(rollout={})
    found.settle()
    assert not found.groups and names(world) == {""} and world.ready_units() == 1


def test_an_idle_unit_moves_as_there_is_no_quota_to_wait_for(gangs: Make) -> None:
    topology = {**GANG["topology"], "repack": "WhenIdle", "repackIdleAfter": "5m"}
    found = gangs(topology=topology)
    world = found.settle()
    place = Placement("rack", "", "z1", {"tiny-u0-prefill-0": ("node-a",)})

    def there() -> bool:
        sets = world.named("StatefulSet").values()
        return any('"z1"' in one["metadata"]["annotations"]["distserve.io/place"] for one in sets)

    world.better = lambda unit: None if there() else place
    world.idle = {"u0": 900.0}
    found.settle()
    assert there() and world.ready_units() == 1 and len(found.groups) == 1


def test_the_api_server_is_asked_first_whether_it_takes_the_group(gangs: Make) -> None:
    """Rights that are missing are told before anything of the revision is made."""
    world = gangs().world
    first = decide(world.observe(), Answers(), world.settings)
    (asked,) = [one for one in first.questions if isinstance(one, DryRunQuestion)]
    assert "PodGroup" in {one["kind"] for one in asked.objects}


def test_where_the_api_is_gone_the_field_can_be_taken_away(gangs: Make) -> None:
    """An alpha API goes with an upgrade of the cluster: groups of units that run are not asked for
    any more, or nothing would be written."""
    found = gangs(units=2)
    world = found.settle()
    world.features = Features(served=frozenset())
    world.objects = {ref: one for ref, one in world.objects.items() if ref.kind != "PodGroup"}
    before = len(world.writes)
    world.edit(topology={})
    world.settle()
    written = [one.object for one in world.writes[before:] if isinstance(one, Apply)]
    assert written and all(one["apiVersion"] != API for one in written)
    assert world.ready_units() == 2
    assert world.condition("Progressing")["reason"] == "UpToDate"


@pytest.mark.parametrize("scheduler", ["Kueue", "Volcano"])
def test_it_leaves_other_schedulers_groups_alone(gangs: Make, scheduler: str) -> None:
    found = gangs()
    world = found.settle()
    world.features = Features(
        served=SERVED
        | {"kueue.x-k8s.io/v1beta2/Workload", "scheduling.volcano.sh/v1beta1/PodGroup"}
    )
    world.document["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    world.edit(topology={"scheduler": scheduler})
    found.settle()
    assert len(found.groups) == 1, "its pods run on, as nobody lets the next ones in"
    assert len(queued(world)) > 1
    world.edit(**GANG)
    found.settle()
    assert placed(world) == ("True", "Placed")
    assert queued(world) == list(found.groups.values()) and len(found.groups) == 1


@pytest.mark.parametrize(
    ("spec", "served", "reason", "words"),
    [
        ({}, frozenset(), "NotSupportedByCluster", "--runtime-config=scheduling.k8s.io/v1alpha2="),
        ({}, frozenset(), "NotSupportedByCluster", "GenericWorkload=true,GangScheduling=true"),
        ({}, frozenset(), "NotSupportedByCluster", "gangScheduling.enabled=true"),
        (
            {"decode": {"podTemplate": {"spec": {"schedulerName": "mine"}}}},
            SERVED,
            "Invalid",
            "spec.decode.podTemplate.spec.schedulerName: with topology.scheduler GangScheduling",
        ),
        (
            {"decode": {"podTemplate": {"spec": {"schedulingGroup": {"podGroupName": "mine"}}}}},
            SERVED,
            "InvalidPodTemplate",
            "podTemplate.spec.schedulingGroup: topology.scheduler says whose members",
        ),
        (
            {"topology": {}, "decode": {"podTemplate": {"spec": {"schedulingGroup": {}}}}},
            SERVED,
            "InvalidPodTemplate",
            "podTemplate.spec.schedulingGroup: topology.scheduler says whose members",
        ),
        (
            {"decode": {"podTemplate": {"spec": ["mine"]}}},
            SERVED,
            "InvalidPodTemplate",
            "spec.decode.podTemplate.spec: a map is needed",
        ),
    ],
)
def test_what_cannot_be_bound_is_refused(
    gangs: Make, spec: Object, served: frozenset[str], reason: str, words: str
) -> None:
    found = gangs(**spec)
    found.world.features = Features(served=served)
    world = found.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False" and accepted["reason"] == reason
    assert words in accepted["message"]
    assert not found.groups and not world.named("StatefulSet")


def test_one_profile_of_the_scheduler_for_all_pods_will_do(gangs: Make) -> None:
    own = {"podTemplate": {"spec": {"schedulerName": "packs"}}}
    world = gangs(prefill=own, decode=own).settle()
    assert {one["spec"]["schedulerName"] for one in templates(world)} == {"packs"}
    assert world.ready_units() == 1


@pytest.mark.parametrize("seed", range(12))
def test_whatever_crashes_no_unit_is_bound_in_parts(gangs: Make, seed: int) -> None:
    chance = random.Random(seed)
    found = gangs(units=2)
    world = found.world
    world.random = chance
    for _ in range(40):
        match chance.randrange(6):
            case 0:
                world.edit(units=chance.randrange(3))
            case 1:
                world.edit(decode={"instancesPerUnit": chance.randrange(1, 4)})
            case 2:
                if pods := sorted(name for name, pod in world.pods.items() if pod.unit):
                    del world.pods[chance.choice(pods)]
            case 3:
                found.room = chance.choice((2, 4, 8, 100))
        world.fail_after = chance.choice((None, 0, 1, 2, 5))
        world.reconcile_or_crash()
        world.fail_after = None
        world.step()
        found.look()
        assert not found.partial
    found.room = 100
    world.edit(units=2, rollout={"whenFull": "ReplaceOne"})
    found.settle()
    assert world.ready_units() == 2 and len(found.groups) == 2
    assert names(world) == set(found.groups)
