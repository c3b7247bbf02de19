"""Units without room whose pods are made all the same, so that nodes are added for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.said import placed

from distserve.operator.health import read_place, write_place
from distserve.operator.model import Features, Placement
from distserve.operator.provisioning import Attempts

Make = Callable[..., Any]
CLIQUE = "nvidia.com/gpu.clique"
TOPOLOGY = {"preset": "NVIDIA", "packWithin": "nvlink", "whenNoFit": "Provision"}
PLACE = "distserve.io/place"


@pytest.fixture
def full(new_world: Make) -> Callable[..., Any]:
    """Nothing fits, and the scheduler says so."""

    def make(**spec: Any) -> Any:
        world = new_world(**{"topology": {**TOPOLOGY, "provisionTimeout": "10m"}} | spec)
        world.room = 0
        world.unschedulable = lambda pod: "gateway" not in pod.name
        return world

    return make


def affinities(world: Any) -> list[Any]:
    sets = world.named("StatefulSet").values()
    return [one["spec"]["template"]["spec"].get("affinity") for one in sets]


def label(world: Any, value: str) -> None:
    """The node that comes, of this domain."""
    ((name, node),) = world.nodes.items()
    world.nodes[name] = replace(node, labels={CLIQUE: value})


def test_its_pods_are_made_tied_to_each_other(full: Make) -> None:
    world = full().settle()
    assert placed(world) == ("False", "Provisioning")
    assert "2 of its 2 pods wait" in world.condition("Placed")["message"]
    first, second = affinities(world)
    assert first == second
    (term,) = first["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == CLIQUE
    assert term["labelSelector"]["matchLabels"] == {
        "distserve.io/deployment": "tiny",
        "distserve.io/unit": "u0",
    }
    assert "nodeAffinity" not in first


def test_without_a_level_they_are_not_tied(full: Make) -> None:
    world = full(topology={"whenNoFit": "Provision"}).settle()
    assert affinities(world) == [None, None]
    world.unschedulable = lambda pod: False
    world.settle()
    assert placed(world) == ("True", "Placed")


def test_the_domain_that_came_is_its_place(full: Make) -> None:
    world = full().settle()
    pods = {name: pod.uid for name, pod in world.pods.items()}
    label(world, "c7")
    world.unschedulable = lambda pod: False
    world.settle()
    assert placed(world) == ("True", "Placed")
    assert {name: pod.uid for name, pod in world.pods.items()} == pods, "nothing was restarted"
    for found in affinities(world):
        ((term,),) = (
            one["matchExpressions"]
            for one in found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
                "nodeSelectorTerms"
            ]
        )
        assert term == {"key": CLIQUE, "operator": "In", "values": ["c7"]}
        assert "podAffinity" not in found
    assert world.status["units"][0]["domain"] == {"level": "nvlink", "value": "c7"}
    assert "provisioning" not in world.status


def test_it_is_taken_back_whole_when_no_nodes_come(full: Make) -> None:
    """And tried again after pauses that double."""
    world = full().settle()
    assert 0 < world.decide().again_seconds <= 600
    pauses = []
    for attempt in (1, 2, 3):
        world.now += 600
        world.settle()
        assert world.units() == {}
        assert placed(world) == ("False", "ProvisioningTimedOut")
        message = world.condition("Placed")["message"]
        assert "10m" in message and "the fullest has 1 free" in message
        (entry,) = world.status["provisioning"]
        assert (entry["unit"], entry["attempts"]) == ("u0", attempt)
        pauses.append(world.decide().again_seconds)
        world.now += pauses[-1]
        world.settle()
        assert placed(world) == ("False", "Provisioning")
    assert pauses == sorted(pauses) and pauses[2] > 3 * pauses[0]
    world.unschedulable = lambda pod: False
    label(world, "c7")
    world.settle()
    assert placed(world) == ("True", "Placed")
    assert not world.status.get("provisioning")


def test_room_that_comes_in_a_pause_is_taken(full: Make) -> None:
    world = full().settle()
    world.now += 600
    world.settle()
    world.room, world.unschedulable = 1, lambda pod: False
    world.settle()
    assert placed(world) == ("True", "Placed")
    assert not world.status.get("provisioning")


def test_a_domain_that_did_not_grow_is_avoided_next_time(full: Make) -> None:
    """It had room for a part of the unit, which drew the rest of it there."""
    world = full()
    label(world, "c1")
    world.unschedulable = lambda pod: "decode" in pod.name
    world.settle()
    assert placed(world) == ("False", "Provisioning")
    world.now += 600
    world.settle()
    assert world.status["provisioning"][0]["avoid"] == ["c1"]
    world.now += 60
    world.settle()
    for found in affinities(world):
        ((term,),) = (
            one["matchExpressions"]
            for one in found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
                "nodeSelectorTerms"
            ]
        )
        assert term == {"key": CLIQUE, "operator": "NotIn", "values": ["c1"]}


SERVED = Features(served=frozenset({"autoscaling.x-k8s.io/v1/ProvisioningRequest"}))


def test_nodes_are_asked_for_where_that_kind_is_served(full: Make) -> None:
    """All or none of them, and no longer than the unit is there."""
    world = full(decode={"instancesPerUnit": 2})
    world.features = SERVED
    world.settle()
    ((name, request),) = world.named("ProvisioningRequest").items()
    sets = {one["podTemplateRef"]["name"]: one["count"] for one in request["spec"]["podSets"]}
    assert sets == {f"{name}-prefill": 1, f"{name}-decode": 2}
    assert request["spec"]["parameters"] == {"ValidUntilSeconds": "600"}
    templates = world.named("PodTemplate")
    assert templates.keys() == sets.keys()
    for found in world.named("StatefulSet").values():
        template = found["spec"]["template"]
        annotations = template["metadata"]["annotations"]
        assert annotations["autoscaling.x-k8s.io/consume-provisioning-request"] == name
        role = found["metadata"]["labels"]["distserve.io/role"]
        assert templates[f"{name}-{role}"]["template"]["spec"] == template["spec"]

    time = "2026-01-02T03:04:05Z"
    said = {"type": "Provisioned", "status": "False", "message": "no quota"}
    request["status"] = {"conditions": [{**said, "lastTransitionTime": time}]}
    world.settle()
    assert "Provisioned=False, no quota" in world.condition("Placed")["message"]
    world.now += 600
    world.settle()
    assert not world.named("ProvisioningRequest") and not world.named("PodTemplate")
    world.now += 60
    world.settle()
    assert world.named("ProvisioningRequest").keys() == {name}
    label(world, "c7")
    world.unschedulable = lambda pod: False
    world.settle()
    assert not world.named("ProvisioningRequest") and not world.named("PodTemplate")
    assert placed(world) == ("True", "Placed")


def test_a_unit_that_waits_by_default_has_no_pods(full: Make) -> None:
    world = full(topology={"preset": "NVIDIA", "packWithin": "nvlink"}).settle()
    assert world.units() == {}
    assert placed(world) == ("False", "NoRoom")


def test_a_surge_unit_gets_nodes_too(new_world: Make) -> None:
    """A rollout is not stuck, nor does it take a unit away, while nodes come."""
    world = new_world(topology=TOPOLOGY, rollout={"whenFull": "ReplaceOne"})
    world.room = 1
    world.settle()
    world.unschedulable = lambda pod: "-u1-" in pod.name
    world.edit(decode={"podTemplate": {"metadata": {"labels": {"a": "b"}}}})
    world.settle()
    assert set(world.units()) == {"u0", "u1"}
    assert world.ready_units() == 1, "the old one serves"
    world.unschedulable = lambda pod: False
    label(world, "c7")
    world.settle()
    assert set(world.units()) == {"u0"}
    assert world.condition("Ready")["status"] == "True"


def test_a_crash_anywhere_changes_nothing_in_the_end(full: Make) -> None:
    for writes in range(40):
        world = full()
        world.fail_after = writes
        world.settle()
        assert placed(world) == ("False", "Provisioning")
        world.now += 600
        world.fail_after = writes
        world.settle()
        world.now += 60
        label(world, "c7")
        world.unschedulable = lambda pod: False
        world.settle()
        assert placed(world) == ("True", "Placed")


def test_places_are_written_as_before_unless_something_is_avoided() -> None:
    usual = Placement("nvlink", CLIQUE, "c1", {"a": ("n",)})
    assert "avoid" not in write_place(usual)
    open_one = Placement("nvlink", CLIQUE, "", {}, ("c1",))
    assert open_one.open and not usual.open
    for place in (usual, open_one):
        assert read_place(write_place(place)) == place


def test_pauses_have_a_bound_however_often_it_was_tried() -> None:
    for lacked in ("", "quota"):
        last = Attempts(5000, 1e9, lacked=lacked)
        assert 0 < last.retry - last.failed_at <= 1800
