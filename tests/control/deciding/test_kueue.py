"""Units that a queue of Kueue admits before they are placed."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.played_kueue import A100, API, CLASS, QUEUE, SERVED, Kueue, holds, say
from tests.control.deciding.said import message, placed

from distserve.operator.model import Features, Placement, Ref

Make = Callable[..., Any]


@pytest.fixture
def queue(new_world: Make) -> Callable[..., Kueue]:
    def make(pods: int = 2, marks: dict[str, str] | None = None, **spec: Any) -> Kueue:
        world = new_world(**{"topology": {"scheduler": "Kueue"}} | spec)
        world.document["metadata"]["labels"] = {QUEUE: "team-a"} | (marks or {})
        world.features = Features(served=SERVED, flavors={"a100": A100})

        def told(action: Any) -> None:
            (condition,) = action.object["status"]["conditions"]
            name = action.object["metadata"]["name"]
            live = world.objects[Ref(API, "Workload", name)]
            if live["metadata"]["uid"] == action.uid:
                assert condition.pop("lastTransitionTime")
                conditions = [
                    c for c in live["status"]["conditions"] if c["type"] != condition["type"]
                ]
                live["status"]["conditions"] = [*conditions, condition]

        world._open_gate = told
        return Kueue(world, pods)

    return make


def test_a_unit_is_one_workload_and_has_no_pods_before_it_is_admitted(queue: Make) -> None:
    kueue = queue(pods=0)
    world = kueue.settle()
    one = kueue.workload
    assert one["spec"]["queueName"] == "team-a"
    assert {s["name"]: s["count"] for s in one["spec"]["podSets"]} == {"prefill": 1, "decode": 1}
    for found in one["spec"]["podSets"]:
        assert found["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    (owner,) = one["metadata"]["ownerReferences"]
    assert owner["kind"] == "DistServeDeployment"
    assert one["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] == owner["uid"]
    assert not world.named("StatefulSet")
    assert placed(world) == ("False", "QueuedByKueue")
    assert message(world) == (
        "unit u0: waits whole in LocalQueue team-a: insufficient quota: 0 free; see kubectl "
        f"describe workload {one['metadata']['name']}; it comes when others give back quota, or it "
        "gets more"
    )
    say(one, "QuotaReserved", False, "Inadmissible", "LocalQueue team-a doesn't exist")
    world.reconcile()
    assert message(world) == (
        "unit u0: waits whole in LocalQueue team-a: LocalQueue team-a doesn't exist; see kubectl "
        "describe localqueue team-a, or have the label name another"
    )
    kueue.pods = 2
    kueue.settle()
    assert placed(world) == ("True", "Placed")
    assert world.ready_units() == 1 and not kueue.uneven
    assert holds(kueue.workload, "PodsReady"), "waitForPodsReady counts on it"


def test_its_pods_go_where_the_flavor_says(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    for one in world.named("StatefulSet").values():
        pod = one["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"gpu": "a100"}
        assert {"key": "gpu", "operator": "Exists"} in pod["tolerations"]
    questions = [q for q in world.questions if type(q).__name__ == "PlacementQuestion"]
    world.objects = {r: o for r, o in world.objects.items() if r.kind != "StatefulSet"}
    world.pods.clear()
    world.decide()
    questions = [q for q in world.questions if type(q).__name__ == "PlacementQuestion"]
    for instance in questions[-1].units[0].instances:
        assert instance.node_selector == {"gpu": "a100"}, "placement is told before"


def test_a_check_may_say_more_of_its_pods(queue: Make) -> None:
    kueue = queue()
    kueue.world.reconcile()
    kueue(kueue.world)
    update = {"name": "prefill", "annotations": {"consume": "x"}, "nodeSelector": {"pool": "p"}}
    check = {"name": "nodes", "state": "Ready", "podSetUpdates": [update]}
    kueue.workload["status"]["admissionChecks"] = [check]
    world = kueue.settle()
    sets = {
        o["metadata"]["labels"]["distserve.io/role"]: o for o in world.named("StatefulSet").values()
    }
    template = sets["prefill"]["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "a100", "pool": "p"}
    assert template["metadata"]["annotations"]["consume"] == "x"
    assert sets["decode"]["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "a100"}


def test_a_topology_of_kueues_own_is_told_and_not_ignored(queue: Make) -> None:
    kueue = queue()
    kueue.world.reconcile()
    kueue(kueue.world)
    for one in kueue.workload["status"]["admission"]["podSetAssignments"]:
        one["topologyAssignment"] = {"levels": ["kubernetes.io/hostname"]}
    world = kueue.settle()
    assert placed(world) == ("False", "QueuedByKueue")
    assert "topologyName" in message(world) and not world.named("StatefulSet")


def test_what_kueue_takes_back_goes_whole_and_queues_again(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    first = kueue.workload["metadata"]["uid"]
    kueue.evict(kueue.workload)
    kueue.pods = 0
    world.reconcile()
    assert placed(world) == ("False", "EvictedByKueue")
    assert "Preempted: to accommodate a workload" in message(world)
    assert not world.named("StatefulSet") and world.pods
    assert first in {one["metadata"]["uid"] for one in kueue.workloads}, "while its pods are there"
    kueue.settle()
    assert kueue.workload["metadata"]["uid"] != first, "its quota is free for others"
    assert placed(world) == ("False", "QueuedByKueue")
    assert "taken back before: Preempted: to accommodate" in message(world), "it is still told"
    kueue.pods = 2
    kueue.settle()
    assert placed(world) == ("True", "Placed") and world.ready_units() == 1


def test_a_new_one_is_placed_only_when_the_old_one_is_gone(queue: Make) -> None:
    kueue = queue(pods=4)
    world = kueue.settle()
    kueue.evict(kueue.workload)
    world.reconcile()
    kueue(world)
    old, new = sorted(kueue.workloads, key=lambda one: one["metadata"]["creationTimestamp"])
    assert holds(old, "Evicted") and holds(new, "Admitted")
    world.reconcile()
    assert not world.named("StatefulSet"), "its pods still end"
    kueue.settle()
    assert placed(world) == ("True", "Placed")


def test_what_was_deactivated_stays_so(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    kueue.workload["spec"]["active"] = False
    kueue.evict(kueue.workload, "Deactivated")
    kueue.settle()
    assert not kueue.workload["spec"]["active"] and not world.named("StatefulSet")
    name = kueue.workload["metadata"]["name"]
    assert f"Workload {name} is deactivated; set its spec.active to true" in message(world)
    kueue.workload["spec"]["active"] = True
    kueue.settle()
    assert placed(world) == ("True", "Placed")


def test_pods_that_are_made_again_do_not_queue(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    before = kueue.workload["metadata"]["uid"]
    name = next(name for name, pod in world.pods.items() if pod.unit)
    del world.pods[name]
    kueue.pods = 0
    world.step()
    assert name in world.pods, "whoever runs"
    world.reconcile()
    found = {c["type"]: c for c in kueue.workload["status"]["conditions"]}
    assert found["PodsReady"]["reason"] == "WaitForRecovery"
    kueue.settle()
    assert kueue.workload["metadata"]["uid"] == before and world.ready_units() == 1
    assert holds(kueue.workload, "PodsReady")


def test_a_rollout_keeps_the_quota_of_what_asks_for_the_same(queue: Make) -> None:
    kueue = queue(pods=4, units=1)
    world = kueue.settle()
    before = kueue.workload["metadata"]["uid"]
    world.edit(decode={"podTemplate": {"metadata": {"annotations": {"new": "1"}}}})
    kueue.settle()
    assert kueue.workload["metadata"]["uid"] == before and not kueue.uneven
    assert world.condition("Progressing")["reason"] == "UpToDate"


def test_an_extra_unit_of_a_rollout_needs_quota_too(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    world.edit(decode={"podTemplate": {"metadata": {"annotations": {"new": "1"}}}})
    kueue.settle()
    progress = world.condition("Progressing")
    assert progress["reason"] == "NoRoomForSurge" and "LocalQueue team-a" in progress["message"]
    assert world.ready_units() == 1
    world.edit(rollout={"whenFull": "ReplaceOne"})
    kueue.settle()
    assert world.condition("Progressing")["reason"] == "UpToDate" and not kueue.uneven
    assert len(kueue.workloads) == 1


@pytest.mark.parametrize(("when_full", "moved"), [("Wait", False), ("ReplaceOne", True)])
def test_an_idle_unit_asks_for_no_quota_that_it_would_have_to_wait_for(
    queue: Make, when_full: str, moved: bool
) -> None:
    topology = {"scheduler": "Kueue", "repack": "WhenIdle"}
    kueue = queue(topology=topology, rollout={"whenFull": when_full})
    world = kueue.settle()
    placement, seen = Placement("rack", "", "z1", {"tiny-u0-prefill-0": ("node-a",)}), []

    def there() -> bool:
        sets = world.named("StatefulSet").values()
        return any('"z1"' in one["metadata"]["annotations"]["distserve.io/place"] for one in sets)

    world.better = lambda name: None if there() else placement
    world.idle = {"u0": 900.0}

    def look(now: Any) -> None:
        kueue(now)
        seen.append(len(kueue.workloads))

    world.settle(check=look)
    assert there() is moved
    assert moved or max(seen) == 1
    assert placed(world)[0] == "True" and world.condition("Progressing")["reason"] == "UpToDate"


def test_what_asks_for_something_else_queues_anew(queue: Make) -> None:
    kueue = queue(pods=4)
    world = kueue.settle()
    before = kueue.workload["metadata"]["uid"]
    world.edit(decode={"podTemplate": {"spec": {"nodeSelector": {"pool": "b"}}}})
    kueue.settle()
    assert kueue.workload["metadata"]["uid"] != before and not kueue.uneven
    template = kueue.workload["spec"]["podSets"][1]["template"]["spec"]
    assert template["nodeSelector"] == {"pool": "b"}
    assert world.condition("Progressing")["reason"] == "UpToDate" and world.ready_units() == 1


def test_scaling_in_gives_quota_back_when_the_pods_are_gone(queue: Make) -> None:
    kueue = queue(pods=4, units=2)
    world = kueue.settle()
    assert len(kueue.workloads) == 2
    world.edit(units=1)
    world.reconcile()
    assert len(kueue.workloads) == 2
    kueue.settle()
    assert kueue.workload["metadata"]["labels"]["distserve.io/unit"] == "u0"


def test_without_a_domain_it_says_that_it_holds_quota(queue: Make) -> None:
    kueue = queue()
    kueue.world.room = 0
    world = kueue.settle()
    assert placed(world) == ("False", "NoRoom")
    assert "it holds its quota" in message(world)


def test_it_waits_for_room_only_since_it_was_admitted(queue: Make) -> None:
    kueue = queue(pods=0)
    world = kueue.settle()
    began = world.now
    world.now += 3600.0
    kueue.pods, world.room = 2, 0
    kueue.settle()
    (question,) = [q for q in world.questions if type(q).__name__ == "PlacementQuestion"]
    assert question.units[0].waiting_since >= began + 3600.0, "no level is relaxed for it yet"


def test_a_late_operator_makes_no_second_workload(queue: Make) -> None:
    kueue = queue()
    world = kueue.settle()
    world.objects = {r: o for r, o in world.objects.items() if r.kind == "Workload"}
    world.pods.clear()
    late = world.observe()
    world.late = replace(late, children={})
    world.reconcile_or_crash()
    world.late = None
    assert len(kueue.workloads) == 1
    kueue.settle()
    assert len(kueue.workloads) == 1 and world.ready_units() == 1


def test_what_runs_when_the_queue_comes_runs_on(queue: Make) -> None:
    kueue = queue(pods=0, topology={})
    world = kueue.settle()
    pods = {pod.uid for pod in world.pods.values()}
    world.edit(topology={"scheduler": "Kueue"})
    kueue.settle()
    assert {pod.uid for pod in world.pods.values()} == pods
    assert placed(world) == ("False", "QueuedByKueue")
    assert message(world).endswith("it runs on meanwhile")
    kueue.pods = 2
    kueue.settle()
    assert {pod.uid for pod in world.pods.values()} == pods
    assert placed(world) == ("True", "Placed")
    world.edit(topology={})
    kueue.settle()
    assert not kueue.workloads and {pod.uid for pod in world.pods.values()} == pods


@pytest.mark.parametrize(
    ("marks", "features", "words"),
    [
        ({QUEUE: ""}, SERVED, f"metadata.labels[{QUEUE}]: there is no such label"),
        ({QUEUE: "Team_A"}, SERVED, "'Team_A' is no name of a LocalQueue"),
        ({}, frozenset(), "install Kueue 0.15 or newer"),
    ],
)
def test_what_is_missing_is_named(
    queue: Make, marks: dict[str, str], features: frozenset[str], words: str
) -> None:
    kueue = queue(marks=marks)
    kueue.world.features = Features(served=features)
    world = kueue.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False" and words in accepted["message"]
    assert not kueue.workloads


def test_priorities_are_the_labels_or_the_pods(queue: Make) -> None:
    kueue = queue(pods=0, marks={CLASS: "gold"})
    world = kueue.settle()
    assert "no WorkloadPriorityClass gold" in message(world) and not kueue.workloads
    world.features = replace(world.features, queue_priorities={"gold": 50})
    kueue.settle()
    reference = {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": "gold"}
    assert kueue.workload["spec"]["priority"] == 50
    assert kueue.workload["spec"]["priorityClassRef"] == reference
    world.document["metadata"]["labels"].pop(CLASS)
    world.features = replace(world.features, priorities={"": 0, "high": 7})
    pod = {"podTemplate": {"spec": {"priorityClassName": "high"}}}
    world.edit(prefill=pod, decode=pod)
    kueue.settle()
    assert kueue.workload["spec"]["priority"] == 7, "one that still waits is made anew"
    assert kueue.workload["spec"]["priorityClassRef"]["kind"] == "PriorityClass"


def test_a_class_that_goes_changes_nothing_for_what_is_in_the_queue(queue: Make) -> None:
    kueue = queue(pods=2, marks={CLASS: "gold"}, units=2)
    world = kueue.world
    world.features = replace(world.features, queue_priorities={"gold": 50})
    kueue.settle()
    before = [one["metadata"]["uid"] for one in kueue.workloads]
    assert len(before) == 2
    for known in ({"gold": 60}, {}):
        world.features = replace(world.features, queue_priorities=known)
        kueue.settle()
        assert [one["metadata"]["uid"] for one in kueue.workloads] == before
        for one in world.named("StatefulSet").values():
            assert one["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "a100"}


def test_kueues_objects_of_others_are_left_alone(queue: Make) -> None:
    kueue = queue()
    kueue.world.reconcile()
    (ref,) = [ref for ref in kueue.world.objects if ref.kind == "Workload"]
    kueue.world.objects.pop(ref)
    kueue.world.foreign.add(ref)
    world = kueue.settle()
    assert not kueue.workloads and world.condition("Accepted")["reason"] == "NameTaken"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_crashes_no_pod_runs_without_quota(queue: Make, seed: int) -> None:
    chance = random.Random(seed)
    kueue = queue(pods=6, units=2)
    world = kueue.world
    world.random = chance
    for _ in range(40):
        match chance.randrange(6):
            case 0:
                world.edit(units=chance.randrange(3))
            case 1:
                pool = {"podTemplate": {"spec": {"nodeSelector": {"pool": chance.choice("ab")}}}}
                world.edit(decode=pool)
            case 2:
                running = [one for one in kueue.workloads if holds(one, "Admitted")]
                if running:
                    kueue.evict(chance.choice(running))
            case 3:
                kueue.pods = chance.choice((2, 4, 6))
        world.fail_after = chance.choice((None, 0, 1, 2, 5))
        world.reconcile_or_crash()
        world.fail_after = None
        kueue(world)
        world.step()
        assert not kueue.uneven
    kueue.pods = 6
    world.edit(units=2, rollout={"whenFull": "ReplaceOne"})
    kueue.settle()
    assert not kueue.uneven and world.ready_units() == 2
    assert len(kueue.workloads) == 2 and all(holds(w, "Admitted") for w in kueue.workloads)
