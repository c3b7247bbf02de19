"""Units that KAI binds whole, by the quota of a Queue."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.played_kai import QUEUE, SERVED, TEAM, WORDS, Kai, size
from tests.control.deciding.said import message, placed

from distserve.operator.flavors import KaiQueue
from distserve.operator.model import Features

Make = Callable[..., Any]


@pytest.fixture
def queue(new_world: Make) -> Callable[..., Kai]:
    def make(pods: int = 2, team: str = "team-a", **spec: Any) -> Kai:
        world = new_world(**{"topology": {"scheduler": "KAI"}} | spec)
        world.document["metadata"]["labels"] = {QUEUE: team} if team else {}
        world.features = Features(served=SERVED, kai_queues=TEAM)
        kai = Kai(world, pods)
        world.unschedulable = kai.unschedulable
        return kai

    return make


def attempts(world: Any) -> dict[str, int]:
    return {one["unit"]: one["attempts"] for one in world.status.get("provisioning") or ()}


def test_a_unit_is_one_group_that_is_bound_whole(queue: Make) -> None:
    kai = queue()
    world = kai.settle()
    spec = kai.group["spec"]
    assert spec == {"minMember": 2, "queue": "team-a", "stalenessGracePeriod": "-1s"}
    (owner,) = kai.group["metadata"]["ownerReferences"]
    assert owner["kind"] == "DistServeDeployment"
    assert placed(world) == ("True", "Placed")
    assert world.ready_units() == 1 and not kai.partial
    gateways = world.named("Deployment").values()
    assert all("schedulerName" not in one["spec"]["template"]["spec"] for one in gateways)


def test_without_quota_it_is_taken_back_and_tried_again_ever_more_seldom(queue: Make) -> None:
    kai = queue(pods=0)
    world = kai.settle()
    assert placed(world) == ("False", "QueuedByKAI")
    assert f"wait whole for quota of Queue team-a of KAI: {WORDS[:-1]}; after" in message(world)
    assert world.named("StatefulSet"), "KAI says nothing of what has no pods"
    began = world.now
    for count, pause in ((1, 60.0), (2, 120.0), (3, 240.0), (4, 300.0), (5, 300.0)):
        world.now += 31.0
        kai.settle()
        assert not world.named("StatefulSet"), "it holds no room for ever"
        assert placed(world) == ("False", "QueuedByKAI") and attempts(world) == {"u0": count}
        words = "once" if count == 1 else f"{count} times"
        assert WORDS[:-1] in message(world) and f"taken back {words} and" in message(world)
        world.now += pause - 30.0
        kai.settle()
        assert not world.named("StatefulSet"), "it is still the pause"
        world.now += 30.0
        kai.settle()
        assert world.named("StatefulSet") and attempts(world) == {"u0": count}
    assert world.now < began + 1300.0
    kai.pods = 2
    kai.settle()
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1
    assert not attempts(world) and not kai.partial


@pytest.mark.parametrize("other", ["team", "team-a"])
def test_a_group_that_was_not_tried_is_tried_at_once(queue: Make, other: str) -> None:
    kai = queue(pods=0)
    world = kai.settle()
    world.now += 31.0
    kai.settle()
    assert not world.named("StatefulSet")
    world.now += 5.0
    if other == "team-a":  # Somebody deletes it.
        world.objects = {r: o for r, o in world.objects.items() if r.kind != "PodGroup"}
    world.document["metadata"]["labels"][QUEUE] = other
    kai.settle()
    assert kai.group["spec"]["queue"] == other
    assert world.named("StatefulSet"), "that has not said no"


def test_of_those_that_were_refused_the_first_is_tried(queue: Make) -> None:
    kai = queue(pods=2, units=4)
    world = kai.settle()
    assert world.ready_units() == 1
    world.now += 31.0
    kai.settle()
    first, *others = sorted(attempts(world))
    assert len(others) == 2 and len(world.units()) == 1
    for count in (2, 3):
        world.now += 1800.0
        kai.settle()
        assert len(world.units()) == 2 and first in world.units()
        world.now += 31.0
        kai.settle()
        assert attempts(world) == {first: count} | dict.fromkeys(others, 1)
    assert f"unit {first}" in message(world) and "(and 2 more units)" in message(world)
    kai.pods = 8
    world.now += 1800.0
    kai.settle()
    assert world.ready_units() == 4 and not attempts(world) and not kai.partial


def test_what_lacks_room_is_placed_anew_without_a_pause(queue: Make) -> None:
    kai = queue()
    world = kai.world
    world.unschedulable = lambda pod: bool(pod.instance)
    kai.settle()
    assert placed(world) == ("False", "Unschedulable")
    world.now += 31.0
    kai.settle()
    assert not attempts(world) and placed(world) == ("False", "Unschedulable")
    world.unschedulable = kai.unschedulable
    kai.settle()
    assert placed(world) == ("True", "Placed")


def test_with_nodes_to_come_only_room_is_waited_for_so_long(queue: Make) -> None:
    topology = {"scheduler": "KAI", "whenNoFit": "Provision", "provisionTimeout": "10m"}
    kai = queue(topology=topology)
    world = kai.world
    world.room = 0
    world.unschedulable = lambda pod: bool(pod.instance)
    kai.settle()
    assert placed(world) == ("False", "Provisioning")
    world.now += 300.0
    kai.settle()
    assert placed(world) == ("False", "Provisioning") and world.named("StatefulSet")
    kai.pods, world.unschedulable = 0, kai.unschedulable
    kai.settle()
    assert placed(world) == ("False", "QueuedByKAI") and not world.named("StatefulSet")
    assert attempts(world) == {"u0": 1}, "no node would help"
    kai.pods = 2
    world.now += 61.0
    kai.settle()
    assert placed(world) == ("True", "Placed") and not attempts(world)


def test_a_pod_that_is_made_again_stays_a_member(queue: Make) -> None:
    kai = queue()
    world = kai.settle()
    before = kai.group["metadata"]["uid"]
    name = next(name for name, pod in world.pods.items() if pod.unit)
    del world.pods[name]
    kai.settle()
    assert name in world.pods and world.ready_units() == 1
    assert kai.group["metadata"]["uid"] == before and placed(world) == ("True", "Placed")


def test_what_serves_goes_on_without_its_queue_and_its_group(queue: Make) -> None:
    kai = queue()
    world = kai.settle()
    pods = {pod.uid for pod in world.pods.values()}
    name = kai.group["metadata"]["name"]
    world.features = replace(world.features, kai_queues={})
    world.document["metadata"]["labels"][QUEUE] = "team-b"
    world.objects = {r: o for r, o in world.objects.items() if r.kind != "PodGroup"}
    world.now += 600.0
    kai.settle()
    assert {pod.uid for pod in world.pods.values()} == pods and world.ready_units() == 1
    assert placed(world) == ("True", "Placed")
    assert kai.group["metadata"]["name"] == name, "its pods name it"


def test_a_group_counts_the_pods_that_its_unit_has_now(queue: Make) -> None:
    kai = queue(pods=6)
    world = kai.settle()
    before = kai.group["metadata"]["uid"]
    for instances, pods in ((2, 3), (1, 2)):
        world.edit(decode={"instancesPerUnit": instances})
        kai.settle()
        assert size(kai.group) == pods and kai.group["metadata"]["uid"] == before
        assert kai.group["spec"]["queue"] == "team-a", "nothing else of it is lost"
        assert world.ready_units() == 1


def test_a_larger_unit_counts_more_pods_when_all_are_bound(queue: Make) -> None:
    """KAI binds together what lacks of a group: a lost pod would wait for those without quota."""
    kai = queue(pods=2)
    world = kai.settle()
    kai.world.unschedulable = lambda pod: "decode-1" in pod.name
    world.edit(decode={"instancesPerUnit": 2})
    kai.settle()
    assert size(kai.group) == 2 and len(kai.bound(kai.group)) == 2
    kai.world.unschedulable = lambda pod: False
    kai.settle()
    assert size(kai.group) == 3 == len(kai.bound(kai.group))


def test_what_kai_said_of_a_unit_that_is_bound_holds_nobody_back(queue: Make) -> None:
    """Its words stay in the group until a binding is over."""
    kai = queue(pods=2)
    world = kai.settle()
    said = {"reason": "Unschedulable", "reasons": [{"reason": "OverLimit", "message": WORDS}]}
    kai.group["status"] = {"schedulingConditions": [said]}
    kai.look = lambda: None
    world.unschedulable = lambda pod: False
    world.edit(units=2)
    kai.settle()
    assert world.ready_units() == 2


def test_another_queue_in_a_pause_is_tried_once(queue: Make) -> None:
    """Its refusal begins a pause of its own; the former one's end is not looked at."""
    kai = queue(pods=0)
    world = kai.settle()
    for pause in (60, 120, 240, 300):
        world.now += 31
        kai.settle()
        world.now += pause
        kai.settle()
    world.now += 31
    kai.settle()
    assert attempts(world) == {"u0": 5} and not world.named("StatefulSet")
    world.document["metadata"]["labels"][QUEUE] = "team"
    kai.settle()
    assert world.named("StatefulSet"), "at once"
    world.now += 31
    kai.settle()
    assert attempts(world) == {"u0": 6}
    world.now += 31
    kai.settle()
    assert not world.named("StatefulSet") and "Queue team of KAI" in message(world)


@pytest.mark.parametrize("fit", ["Wait", "Provision"])
def test_a_pause_for_quota_is_no_pause_for_nodes(queue: Make, fit: str) -> None:
    kai = queue(pods=0, topology={"scheduler": "KAI", "whenNoFit": fit})
    world = kai.settle()
    world.now += 31
    kai.settle()
    assert attempts(world) == {"u0": 1} and not world.named("StatefulSet")
    world.room = 0
    world.document["metadata"]["labels"][QUEUE] = "team"
    kai.settle()
    assert bool(world.named("StatefulSet")) == (fit == "Provision")
    assert placed(world)[1] == ("NoRoom" if fit == "Wait" else "QueuedByKAI")


def test_an_extra_unit_of_a_rollout_needs_quota_too(queue: Make) -> None:
    kai = queue()
    world = kai.settle()
    world.edit(decode={"podTemplate": {"metadata": {"annotations": {"new": "1"}}}})
    kai.settle()
    world.now += 31.0
    kai.settle()
    progress = world.condition("Progressing")
    assert progress["reason"] == "NoRoomForSurge" and "Queue team-a" in progress["message"]
    assert world.ready_units() == 1
    world.edit(rollout={"whenFull": "ReplaceOne"})
    for _ in range(4):
        kai.settle()
        world.now += 61.0
    kai.settle()
    assert world.condition("Progressing")["reason"] == "UpToDate" and not kai.partial
    assert len(kai.groups) == 1 and world.ready_units() == 1


def test_what_runs_when_it_comes_goes_there_by_a_rollout_and_back(queue: Make) -> None:
    kai = queue(pods=6, topology={})
    world = kai.settle()
    assert not kai.groups
    world.edit(topology={"scheduler": "KAI"}, rollout={"paused": True})
    kai.settle()
    assert not kai.groups and world.ready_units() == 1
    world.edit(rollout={})
    kai.settle()
    assert kai.bound(kai.group) and world.ready_units() == 1 and not kai.partial
    world.edit(topology={})
    kai.settle()
    assert not kai.groups and world.ready_units() == 1


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ({}, "there is no Queue team-a of KAI; make it, or have the label"),
        ({"team-a": KaiQueue("top")}, "no Queue top of KAI, which is spec.parentQueue of Queue te"),
        ({"team-a": KaiQueue("team-a")}, "Queue team-a of KAI is below itself"),
        (
            {"team-a": KaiQueue("top"), "top": KaiQueue("", {"cpu": 1000})},
            " cpu, and Queue top of KAI may never have more than 1; raise its spec.resources",
        ),
    ],
)
def test_a_queue_that_never_lets_it_in_is_told_and_no_pod_is_made(
    queue: Make, queues: dict[str, KaiQueue], words: str
) -> None:
    kai = queue()
    kai.world.features = replace(kai.world.features, kai_queues=queues)
    world = kai.settle()
    assert placed(world) == ("False", "QueuedByKAI") and words in message(world)
    assert not world.named("StatefulSet")
    world.features = replace(world.features, kai_queues=TEAM)
    kai.settle()
    assert placed(world) == ("True", "Placed")


def test_a_kai_that_would_end_what_serves_is_told(queue: Make) -> None:
    """The API server drops what the CRD of an older one does not have."""
    kai = queue()
    world = kai.world
    world.reconcile()
    del kai.group["spec"]["stalenessGracePeriod"]
    kai.settle()
    assert placed(world) == ("False", "QueuedByKAI") and "KAI 0.17 or newer" in message(world)
    assert not world.named("StatefulSet")


def test_priority_and_preemptibility_are_its_pods_and_its_label(queue: Make) -> None:
    kai = queue()
    world = kai.world
    world.features = replace(world.features, priorities={"": 0, "high": 7, "low": 3})
    world.document["metadata"]["labels"]["kai.scheduler/preemptibility"] = "non-preemptible"
    world.edit(
        prefill={"podTemplate": {"spec": {"priorityClassName": "high"}}},
        decode={"podTemplate": {"spec": {"priorityClassName": "low"}}},
    )
    kai.settle()
    spec = kai.group["spec"]
    assert (spec["priorityClassName"], spec["preemptibility"]) == ("low", "non-preemptible")


@pytest.mark.parametrize(
    ("marks", "features", "words"),
    [
        ({}, SERVED, f"metadata.labels[{QUEUE}]: there is no such label; with topology.scheduler"),
        ({QUEUE: "A_b"}, SERVED, "'A_b' is no name of a Queue"),
        ({QUEUE: "a", "kai.scheduler/preemptibility": "no"}, SERVED, "'no' is none of preemptible"),
        (
            {QUEUE: "a"},
            frozenset(),
            "install KAI 0.17 or newer and give the operator's chart kai.e",
        ),
    ],
)
def test_what_is_missing_is_named(
    queue: Make, marks: dict[str, str], features: frozenset[str], words: str
) -> None:
    kai = queue()
    kai.world.document["metadata"]["labels"] = marks
    kai.world.features = Features(served=features)
    world = kai.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False" and words in accepted["message"]
    assert not kai.groups


def test_deployments_of_one_name_in_two_namespaces_are_two_groups(queue: Make) -> None:
    """KAI knows PodGroups by their name alone."""
    first, second = queue(), queue()
    second.world.document["metadata"]["uid"] = "another"
    second.world.document["metadata"]["namespace"] = "elsewhere"
    first.settle()
    second.settle()
    assert first.group["metadata"]["name"] != second.group["metadata"]["name"]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_crashes_no_unit_is_bound_in_parts(queue: Make, seed: int) -> None:
    chance = random.Random(seed)
    kai = queue(pods=6, units=2)
    world = kai.world
    world.random = chance
    for _ in range(40):
        match chance.randrange(6):
            case 0:
                world.edit(units=chance.randrange(3))
            case 1:
                world.edit(decode={"instancesPerUnit": chance.randrange(1, 3)})
            case 2:
                if pods := sorted(name for name, pod in world.pods.items() if pod.unit):
                    del world.pods[chance.choice(pods)]
            case 3:
                kai.pods = chance.choice((0, 2, 4, 6))
            case 4:
                world.now += chance.choice((5.0, 31.0, 100.0))
        world.fail_after = chance.choice((None, 0, 1, 2, 5))
        world.reconcile_or_crash()
        world.fail_after = None
        world.step()
        kai.look()
    kai.pods = 8
    world.edit(units=2, decode={"instancesPerUnit": 1})
    for _ in range(4):
        kai.settle()
        world.now += 1800.0
    kai.settle()
    assert world.ready_units() == 2 and not attempts(world)
