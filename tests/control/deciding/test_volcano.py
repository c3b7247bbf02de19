"""Units that a Queue of Volcano lets in before they are placed."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.played_volcano import (
    GROUP_NAME,
    LET_IN,
    QUEUE,
    SERVED,
    TEAM,
    Object,
    Volcano,
    phase,
    size,
)
from tests.control.deciding.said import message, placed

from distserve.operator.conditions import timestamp
from distserve.operator.flavors import VolcanoQueue
from distserve.operator.model import Features
from distserve.placement.quantities import parse_quantity

Make = Callable[..., Any]


@pytest.fixture
def queue(new_world: Make) -> Callable[..., Volcano]:
    def make(pods: int = 2, team: str = "team-a", **spec: Any) -> Volcano:
        world = new_world(**{"topology": {"scheduler": "Volcano"}} | spec)
        world.document["metadata"]["annotations"] = {QUEUE: team} if team else {}
        world.features = Features(served=SERVED, volcano_queues=TEAM)
        volcano = Volcano(world, pods)
        world.unschedulable = volcano.unschedulable
        return volcano

    return make


def templates(world: Any) -> list[Object]:
    return [one["spec"]["template"] for one in world.named("StatefulSet").values()]


def test_a_unit_is_one_group_and_has_no_pods_before_it_is_let_in(queue: Make) -> None:
    volcano = queue(pods=0)
    world = volcano.settle()
    one = volcano.group
    assert one["spec"]["queue"] == "team-a" and one["spec"]["minMember"] == 2
    assert "priorityClassName" not in one["spec"]
    (owner,) = one["metadata"]["ownerReferences"]
    assert owner["kind"] == "DistServeDeployment"
    assert not world.named("StatefulSet")
    assert placed(world) == ("False", "QueuedByVolcano")
    assert message(world) == (
        "unit u0: waits whole in Queue team-a of Volcano; what is short is in the events of "
        f"kubectl describe podgroup {one['metadata']['name']}; it comes when others give back "
        "quota, or the queue gets more"
    )
    volcano.pods = 2
    volcano.settle()
    assert placed(world) == ("True", "Placed")
    assert world.ready_units() == 1 and not volcano.partial
    total = 0
    for found in templates(world):
        containers = [*found["spec"].get("initContainers", ()), *found["spec"]["containers"]]
        cores = [parse_quantity(c["resources"]["requests"]["cpu"]) for c in containers]
        total += sum(cores)
        assert found["spec"]["schedulerName"] == "volcano"
        assert found["metadata"]["annotations"][GROUP_NAME] == one["metadata"]["name"]
    assert parse_quantity(one["spec"]["minResources"]["cpu"]) == total > 0
    gateways = world.named("Deployment").values()
    assert all("schedulerName" not in one["spec"]["template"]["spec"] for one in gateways)


def test_without_the_annotation_it_is_volcanos_default_queue(queue: Make) -> None:
    volcano = queue(team="")
    world = volcano.settle()
    assert volcano.group["spec"]["queue"] == "default" and world.ready_units() == 1


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ({}, "there is no Queue team-a of Volcano; make it, or have the annotation"),
        ({"team-a": VolcanoQueue("Closed")}, "is Closed and lets nothing in; open it with vcctl"),
        ({"team-a": VolcanoQueue()}, "is not opened by Volcano's controllers yet"),
        (
            {"team-a": VolcanoQueue("Open", {"cpu": 1000})},
            " cpu, and its Queue of Volcano may never have more than 1; raise the Queue's",
        ),
    ],
)
def test_a_queue_that_lets_nothing_in_is_told(
    queue: Make, queues: dict[str, VolcanoQueue], words: str
) -> None:
    volcano = queue(pods=0)
    volcano.world.features = replace(volcano.world.features, volcano_queues=queues)
    world = volcano.settle()
    assert placed(world) == ("False", "QueuedByVolcano") and words in message(world)
    assert not world.named("StatefulSet")
    world.features = replace(world.features, volcano_queues=TEAM)
    volcano.pods = 2
    volcano.settle()
    assert placed(world) == ("True", "Placed")


def test_a_queue_that_closes_later_keeps_what_it_let_in(queue: Make) -> None:
    volcano = queue()
    world = volcano.settle()
    world.features = replace(world.features, volcano_queues={"team-a": VolcanoQueue("Closed")})
    volcano.settle()
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1


def test_silence_is_told(queue: Make) -> None:
    volcano = queue()
    volcano.runs = False
    world = volcano.settle()
    assert "if no answer comes, see whether Volcano runs" in message(world)


def test_a_pod_that_is_made_again_stays_a_member(queue: Make) -> None:
    volcano = queue()
    world = volcano.settle()
    before = volcano.group["metadata"]["uid"]
    name = next(name for name, pod in world.pods.items() if pod.unit)
    del world.pods[name]
    volcano(world)
    assert phase(volcano.group) == "Unknown"
    volcano.settle()
    assert name in world.pods and world.ready_units() == 1
    assert volcano.group["metadata"]["uid"] == before and phase(volcano.group) == "Running"


def test_a_smaller_unit_heals_too(queue: Make) -> None:
    volcano = queue(pods=5, decode={"instancesPerUnit": 3})
    world = volcano.settle()
    before, let_in = volcano.group["metadata"]["uid"], volcano.group["metadata"]["annotations"]
    world.edit(decode={"instancesPerUnit": 1})
    volcano.settle()
    assert volcano.group["metadata"]["uid"] == before and size(volcano.group) == 2
    assert volcano.group["metadata"]["annotations"] == let_in
    del world.pods[next(name for name, pod in world.pods.items() if pod.unit)]
    volcano.settle()
    assert world.ready_units() == 1 and phase(volcano.group) == "Running"
    world.edit(decode={"instancesPerUnit": 2})
    volcano.settle()
    assert world.ready_units() == 1 and size(volcano.group) == 2


@pytest.mark.parametrize(("instances", "same"), [(1, True), (3, False)])
def test_a_group_that_was_made_smaller_says_what_it_asks_for(
    queue: Make, instances: int, same: bool
) -> None:
    """The next revision keeps its quota where it asks for no more than is left of it."""
    volcano = queue(pods=4, decode={"instancesPerUnit": 3})
    world = volcano.settle()
    before = volcano.group["metadata"]["uid"]
    for count in (1, instances):
        world.edit(decode={"instancesPerUnit": count})
        volcano.settle()
    world.edit(
        rollout={"maxSurgeUnits": 0, "maxUnavailableUnits": 1},
        decode={"instancesPerUnit": instances}
        | {"podTemplate": {"metadata": {"annotations": {"new": "1"}}}},
    )
    volcano.settle()
    assert (volcano.group["metadata"]["uid"] == before) is same
    assert size(volcano.group) == 1 + instances and not volcano.partial
    assert world.condition("Progressing")["reason"] == "UpToDate" and world.ready_units() == 1


def test_a_unit_that_lost_all_its_pods_queues_whole(queue: Make) -> None:
    volcano = queue()
    world = volcano.settle()
    for name in [name for name, pod in world.pods.items() if pod.unit]:
        del world.pods[name]
    volcano.pods = 0
    volcano.settle()
    assert placed(world) == ("False", "Unschedulable") and world.named("StatefulSet")
    world.now += 60.0
    volcano.settle()
    assert placed(world) == ("False", "QueuedByVolcano")
    assert not world.named("StatefulSet"), "after gangTimeout it holds no room"
    volcano.pods = 2
    volcano.settle()
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1


def test_a_rollout_keeps_the_group_of_what_asks_for_the_same(queue: Make) -> None:
    volcano = queue(pods=4)
    world = volcano.settle()
    before = volcano.group["metadata"]["uid"]
    world.edit(decode={"podTemplate": {"metadata": {"annotations": {"new": "1"}}}})
    volcano.settle()
    assert volcano.group["metadata"]["uid"] == before and not volcano.partial
    assert world.condition("Progressing")["reason"] == "UpToDate" and world.ready_units() == 1


def test_what_asks_for_something_else_queues_anew(queue: Make) -> None:
    volcano = queue(pods=4)
    world = volcano.settle()
    before = volcano.group["metadata"]["uid"]
    cores = parse_quantity(volcano.group["spec"]["minResources"]["cpu"])
    container = {"name": "engine", "resources": {"requests": {"cpu": "3"}}}
    world.edit(decode={"podTemplate": {"spec": {"containers": [container]}}})
    volcano.settle()
    assert volcano.group["metadata"]["uid"] != before and not volcano.partial
    more = parse_quantity(volcano.group["spec"]["minResources"]["cpu"])
    assert more == cores - 1 + 3
    assert world.condition("Progressing")["reason"] == "UpToDate" and world.ready_units() == 1


def test_an_extra_unit_of_a_rollout_needs_quota_too(queue: Make) -> None:
    volcano = queue()
    world = volcano.settle()
    world.edit(decode={"podTemplate": {"metadata": {"annotations": {"new": "1"}}}})
    volcano.settle()
    progress = world.condition("Progressing")
    assert progress["reason"] == "NoRoomForSurge" and "Queue team-a" in progress["message"]
    assert world.ready_units() == 1
    world.edit(rollout={"whenFull": "ReplaceOne"})
    volcano.settle()
    assert world.condition("Progressing")["reason"] == "UpToDate" and not volcano.partial
    assert len(volcano.groups) == 1


def test_scaling_in_gives_quota_back_when_the_pods_are_gone(queue: Make) -> None:
    volcano = queue(pods=4, units=2)
    world = volcano.settle()
    assert len(volcano.groups) == 2
    world.edit(units=1)
    world.reconcile()
    assert len(volcano.groups) == 2
    volcano.settle()
    assert volcano.group["metadata"]["labels"]["distserve.io/unit"] == "u0"


def test_without_a_domain_it_says_that_it_is_counted(queue: Make) -> None:
    volcano = queue()
    volcano.world.room = 0
    world = volcano.settle()
    assert placed(world) == ("False", "NoRoom")
    assert message(world).endswith("Queue team-a of Volcano counts it meanwhile")


def test_it_waits_for_room_only_since_it_was_let_in(queue: Make) -> None:
    volcano = queue(pods=0)
    world = volcano.settle()
    began = world.now
    world.now += 3600.0
    volcano.pods, world.room = 2, 0
    volcano.settle()
    (question,) = [q for q in world.questions if type(q).__name__ == "PlacementQuestion"]
    since = question.units[0].waiting_since
    assert since >= began + 3600.0, "no level is relaxed for it yet"
    assert volcano.group["metadata"]["annotations"][LET_IN] == timestamp(since)
    volcano.pods = 0
    volcano.say(volcano.group, "Pending")
    volcano.settle()
    assert LET_IN not in volcano.group["metadata"].get("annotations", {})
    assert volcano.group["spec"]["minMember"] == 2, "nothing else of it is lost"


def test_what_runs_when_the_queue_comes_goes_there_by_a_rollout(queue: Make) -> None:
    volcano = queue(pods=4, topology={})
    world = volcano.settle()
    pods = {pod.uid for pod in world.pods.values() if pod.unit}
    assert not volcano.groups
    world.edit(topology={"scheduler": "Volcano"}, rollout={"paused": True})
    volcano.settle()
    assert {pod.uid for pod in world.pods.values() if pod.unit} == pods and not volcano.groups
    world.edit(rollout={})
    volcano.settle()
    assert phase(volcano.group) == "Running" and not volcano.partial
    assert {one["spec"].get("schedulerName") for one in templates(world)} == {"volcano"}
    world.edit(topology={}, rollout={"paused": True})
    volcano.settle()
    assert phase(volcano.group) == "Running", "its pods are Volcano's as long as they are there"
    world.edit(rollout={})
    volcano.settle()
    assert not volcano.groups and world.ready_units() == 1
    assert all("schedulerName" not in one["spec"] for one in templates(world))


def test_a_group_that_somebody_deleted_is_made_again_under_its_name(queue: Make) -> None:
    volcano = queue()
    world = volcano.settle()
    name = volcano.group["metadata"]["name"]
    world.document["metadata"]["annotations"][QUEUE] = "default"
    world.objects = {r: o for r, o in world.objects.items() if r.kind != "PodGroup"}
    volcano.settle()
    assert volcano.group["metadata"]["name"] == name, "its pods name it"
    assert phase(volcano.group) == "Running" and placed(world) == ("True", "Placed")


def test_the_least_urgent_of_its_pods_counts(queue: Make) -> None:
    volcano = queue(pods=0)
    world = volcano.world
    world.features = replace(world.features, priorities={"": 0, "high": 7, "low": 3})
    world.edit(
        prefill={"podTemplate": {"spec": {"priorityClassName": "high"}}},
        decode={"podTemplate": {"spec": {"priorityClassName": "low"}}},
    )
    volcano.settle()
    assert volcano.group["spec"]["priorityClassName"] == "low"


@pytest.mark.parametrize(
    ("team", "features", "words"),
    [
        ("Team_A", SERVED, f"metadata.annotations[{QUEUE}]: 'Team_A' is no name of a Queue"),
        ("team-a", frozenset(), "install Volcano and give the operator's chart volcano.enabled"),
    ],
)
def test_what_is_missing_is_named(
    queue: Make, team: str, features: frozenset[str], words: str
) -> None:
    volcano = queue(team=team)
    volcano.world.features = Features(served=features)
    world = volcano.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False" and words in accepted["message"]
    assert not volcano.groups


def test_another_scheduler_in_a_pod_template_is_refused(queue: Make) -> None:
    volcano = queue(decode={"podTemplate": {"spec": {"schedulerName": "mine"}}})
    world = volcano.settle()
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "InvalidPodTemplate"
    assert "spec.decode.podTemplate.spec.schedulerName" in accepted["message"]


def test_from_kueue_to_volcano_and_back_leaves_nothing_behind(queue: Make) -> None:
    volcano = queue(pods=4)
    world = volcano.settle()
    world.features = replace(world.features, served=SERVED | {"kueue.x-k8s.io/v1beta2/Workload"})
    world.document["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    world.edit(topology={"scheduler": "Kueue"}, rollout={"whenFull": "ReplaceOne"})

    def admits(found: Any) -> None:
        volcano(found)
        for one in found.named("Workload").values():
            said = {"status": "True", "reason": "Said", "message": ""}
            said["lastTransitionTime"] = timestamp(found.now)
            kinds = ("QuotaReserved", "Admitted")
            one.setdefault("status", {"conditions": [{"type": k, **said} for k in kinds]})

    world._open_gate = lambda action: None
    for _ in range(60):
        world.reconcile_or_crash()
        admits(world)
        world.step()
    assert not volcano.groups and len(world.named("Workload")) == 1 and world.ready_units() == 1
    world.edit(topology={"scheduler": "Volcano"})
    volcano.settle()
    assert phase(volcano.group) == "Running" and not world.named("Workload")


@pytest.mark.parametrize("seed", range(12))
def test_whatever_crashes_no_unit_is_bound_in_parts(queue: Make, seed: int) -> None:
    chance = random.Random(seed)
    volcano = queue(pods=6, units=2)
    world = volcano.world
    world.random = chance
    for _ in range(40):
        match chance.randrange(6):
            case 0:
                world.edit(units=chance.randrange(3))
            case 1:
                cpu = chance.choice("12")
                container = {"name": "engine", "resources": {"requests": {"cpu": cpu}}}
                world.edit(decode={"podTemplate": {"spec": {"containers": [container]}}})
            case 2:
                if pods := sorted(name for name, pod in world.pods.items() if pod.unit):
                    del world.pods[chance.choice(pods)]
            case 3:
                volcano.pods = chance.choice((2, 4, 6))
        world.fail_after = chance.choice((None, 0, 1, 2, 5))
        world.reconcile_or_crash()
        world.fail_after = None
        volcano(world)
        world.step()
        volcano.look()
        assert not volcano.partial
    volcano.pods = 6
    world.edit(units=2, rollout={"whenFull": "ReplaceOne"})
    volcano.settle()
    assert not volcano.partial and world.ready_units() == 2
    assert [phase(one) for one in volcano.groups] == ["Running"] * 2
