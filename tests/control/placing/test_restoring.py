"""What StatefulSets say of a unit's room counts: as they are now, and for a new leader."""

import json
from typing import Any

import pytest

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import parse_deployment
from distserve.operator.health import HELD_PODS
from distserve.operator.model import Key, NoPlace, Object, Placement
from distserve.operator.placing import Placing
from distserve.operator.promises import LONGEST_SECONDS
from distserve.operator.requests import unit_request
from distserve.operator.restoring import MOST_PODS, stated
from distserve.operator.wanted import Wanted
from distserve.placement.inventory import Inventory
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest
from distserve.resources.revisions import make_revision
from distserve.resources.settings import RenderSettings, released_images

GPU = "nvidia.com/gpu"
SETTINGS = RenderSettings(released_images())
KEY, OTHER = Key("llm", "d"), Key("llm", "other")


def deployment(tensor: int = 4, decodes: int = 1, per_pod: int | None = None) -> Any:
    accelerator: Object = {"type": "GPU"}
    if per_pod is not None:
        accelerator["perPod"] = per_pod
    spec = {
        "model": {"id": "m", "source": {"builtin": "tiny"}},
        "accelerator": accelerator,
        "prefill": {"parallelism": {"tensor": tensor}},
        "decode": {"instancesPerUnit": decodes},
    }
    document = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "spec": spec,
    }
    return parse_deployment(document, "test")


ONE = Placement("", "", "", {"d-u0-prefill-0": ("one",), "d-u0-decode-0": ("one",)})
"""Where its unit was placed when it had one decode instance."""


def sets_of(asked: DistServeDeployment, held: bool = False, place: Placement = ONE) -> list[Object]:
    """Of its unit u0."""
    revision = make_revision(asked, SETTINGS)
    made = Wanted(asked, SETTINGS, revision, {}, {}).unit("u0", revision, place, held, False)
    found: list[Object] = json.loads(json.dumps(made))
    return [one for one in found if one["kind"] == "StatefulSet"]


def decode_1() -> Object:
    """The pod of an instance that was added, where the scheduler put it."""
    marks = {labels.DEPLOYMENT: KEY.name, labels.UNIT: "u0"}
    container = {"name": "engine", "resources": {"requests": {GPU: "1"}}}
    return {
        "metadata": {
            "name": "d-u0-decode-1-0", "namespace": KEY.namespace, "uid": "p", "labels": marks,
        },
        "spec": {"nodeName": "one", "containers": [container]},
        "status": {"phase": "Running"},
    }  # fmt: skip


class World:
    """One node, and a replica that leads."""

    def __init__(self, gpus: int) -> None:
        self.now = 1000.0
        self.inventory = Inventory()
        self.add_node("one", gpus)
        self.placing = Placing(self.inventory, lambda key: None, lambda: self.now, stated)

    def add_node(self, name: str, gpus: int) -> None:
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
        status = {
            "allocatable": {GPU: str(gpus), "pods": "110", "cpu": "99", "memory": "999Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self.inventory.put_node({"metadata": metadata, "status": status})

    def settle(self, sets: list[Object]) -> None:
        self.placing.settle(KEY, {"u0": sets})

    def ask_for_one(self) -> object:
        """Somebody else, for one GPU."""
        self.now += 1.0
        instance = InstanceRequest("other-u0-decode-0", 1, {GPU: 1})
        unit = UnitRequest(UnitId(*OTHER, "u0"), (instance,), waiting_since=0.0)
        self.placing.look()
        return self.placing.ask(OTHER, [unit])["u0"]


@pytest.mark.parametrize("written", [True, False], ids=["written-down", "of-a-former-version"])
async def test_a_unit_that_is_being_replaced_keeps_its_room_under_a_new_leader(
    written: bool,
) -> None:
    """Its StatefulSets are held at no pods, and some of the former ones have gone already."""
    world, sets = World(gpus=5), sets_of(deployment(), held=True)
    assert [one["spec"]["replicas"] for one in sets] == [0, 0]
    if not written:
        for one in sets:
            del one["metadata"]["annotations"][HELD_PODS]
    world.placing.begin([KEY, OTHER])
    world.settle(sets)
    world.placing.settle(OTHER, {})
    assert isinstance(world.ask_for_one(), NoPlace)


@pytest.mark.parametrize("pods", ["9999999999", "9" * 5000])
async def test_a_number_of_pods_that_cannot_be_is_not_counted_to(pods: str) -> None:
    """Whoever may edit StatefulSets writes it; the operator works on for the others."""
    world, sets = World(gpus=5), sets_of(deployment(), held=True)
    sets[0]["metadata"]["annotations"][HELD_PODS] = pods
    world.placing.begin([KEY, OTHER])
    world.settle(sets)
    world.placing.settle(OTHER, {})
    reserved = [record.reserved for record in world.inventory.units.values()]
    assert 1 < sum(map(len, reserved)) <= MOST_PODS + 1
    sets[0]["spec"]["replicas"] = 2**31 - 1
    world.settle(sets)


async def test_so_does_one_whose_instances_have_several_pods_on_a_node() -> None:
    world, asked = World(gpus=5), deployment(per_pod=2)
    world.placing.begin([KEY])
    world.settle(sets_of(asked, held=True))
    assert world.inventory.free("one").get(GPU, 0) == 0
    world.settle(sets_of(asked))
    assert world.inventory.free("one").get(GPU, 0) == 0
    assert all(HELD_PODS not in one["metadata"]["annotations"] for one in sets_of(asked))


async def test_an_instance_that_was_added_in_place_keeps_its_room_when_it_loses_its_pod() -> None:
    world = World(gpus=6)
    world.settle(sets_of(deployment()))
    world.inventory.put_pod(decode_1())
    world.settle(sets_of(deployment(decodes=2)))
    world.inventory.drop_pod("p")
    world.settle(sets_of(deployment(decodes=2)))
    assert isinstance(world.ask_for_one(), NoPlace)
    world.settle(sets_of(deployment()))
    assert isinstance(world.ask_for_one(), Placement), "it was taken away again"


async def test_another_revision_in_place_asks_for_other_room() -> None:
    world = World(gpus=8)
    world.settle(sets_of(deployment(tensor=4)))
    assert world.inventory.free("one")[GPU] == 3
    world.settle(sets_of(deployment(tensor=2), held=True))
    assert world.inventory.free("one")[GPU] == 5
    world.settle(sets_of(deployment(tensor=8)))
    assert world.inventory.free("one")[GPU] == -1


async def test_what_is_not_made_yet_keeps_the_room_that_was_found_for_it() -> None:
    """The API server did not take all of its StatefulSets."""
    world, asked = World(gpus=5), deployment()
    request = unit_request(asked, "u0", make_revision(asked, SETTINGS), 0.0)
    assert isinstance(world.placing.ask(KEY, [request])["u0"], Placement)
    prefill, decode = sets_of(asked)
    world.settle([prefill])
    assert isinstance(world.ask_for_one(), NoPlace)
    world.settle([prefill, decode])
    assert isinstance(world.ask_for_one(), NoPlace)
    world.settle([prefill])
    assert isinstance(world.ask_for_one(), Placement), "it was taken away"


async def test_pods_that_share_nodes_unevenly_keep_theirs() -> None:
    """Three of an instance on one node and one on the other: the place names only the nodes."""
    world, asked = World(gpus=6), deployment(tensor=8, per_pod=2)
    world.add_node("two", 3)
    request = unit_request(asked, "u0", make_revision(asked, SETTINGS), 0.0)
    found = world.placing.ask(KEY, [request])["u0"]
    assert isinstance(found, Placement)
    for _ in range(2):
        world.settle(sets_of(asked, place=found))
        assert [world.inventory.free(name).get(GPU, 0) for name in ("one", "two")] == [0, 0]


# ---- pods that do not come ----------------------------------------------------------------------


def came(world: World, asked: DistServeDeployment, *pods: str) -> None:
    """Pods with a GPU each got their node, and the deployment is looked at."""
    for name in pods:
        found = decode_1()
        world.inventory.put_pod(
            found | {"metadata": found["metadata"] | {"name": name, "uid": name}}
        )
    world.settle(sets_of(asked))


async def test_room_for_pods_that_do_not_come_is_free_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The API server takes none of them, or they have scheduling gates of their own."""
    world, asked = World(gpus=5), deployment()
    world.settle(sets_of(asked))
    world.now += LONGEST_SECONDS - 10
    assert isinstance(world.ask_for_one(), NoPlace)
    world.settle(sets_of(asked))
    world.now += 20
    assert isinstance(world.ask_for_one(), Placement)
    (told,) = (one for one in caplog.records if one.levelname == "WARNING")
    assert (told.__dict__["unit"], told.__dict__["pods"]) == ("llm/d/u0", 2)
    world.settle(sets_of(asked))
    assert world.inventory.free("one")[GPU] == 4, "it is not taken again"
    came(world, asked, "d-u0-decode-0-0")
    assert world.inventory.free("one")[GPU] == 3
    world.inventory.drop_pod("d-u0-decode-0-0")
    world.settle(sets_of(asked))
    assert world.inventory.free("one")[GPU] == 3, "a pod that came is waited for again"


async def test_a_pod_that_ran_long_is_waited_for_from_its_end() -> None:
    world, asked = World(gpus=3), deployment(tensor=1)
    came(world, asked, "d-u0-prefill-0-0", "d-u0-decode-0-0")
    for _ in range(3):
        world.now += LONGEST_SECONDS
        assert isinstance(world.ask_for_one(), Placement)
    world.placing.release(OTHER)
    world.inventory.drop_pod("d-u0-prefill-0-0")
    came(world, asked)
    world.now += LONGEST_SECONDS - 10
    world.ask_for_one()
    assert world.inventory.free("one").get(GPU, 0) == 0
    world.now += 20
    world.ask_for_one()
    assert world.inventory.free("one")[GPU] == 1


async def test_pods_that_wait_for_former_ones_to_end_are_waited_for_as_long_as_that_takes() -> None:
    world, asked = World(gpus=5), deployment()
    world.settle(sets_of(asked, held=True))
    world.now += 3 * LONGEST_SECONDS
    assert isinstance(world.ask_for_one(), NoPlace)
    world.settle(sets_of(asked))
    assert isinstance(world.ask_for_one(), NoPlace)
    world.now += LONGEST_SECONDS
    assert isinstance(world.ask_for_one(), Placement)


async def test_room_for_what_is_never_made_is_kept_anew_for_a_unit_that_comes_anew() -> None:
    """A quota for StatefulSets, say, leaves nothing of a unit that was placed."""
    world, asked = World(gpus=5), deployment()
    request = unit_request(asked, "u0", make_revision(asked, SETTINGS), 0.0)
    assert isinstance(world.placing.ask(KEY, [request])["u0"], Placement)
    world.now += LONGEST_SECONDS - 10
    assert isinstance(world.ask_for_one(), NoPlace)
    world.now += 20
    assert isinstance(world.ask_for_one(), Placement)
    world.placing.release(OTHER)
    world.placing.keep(KEY, ())
    world.now += 1.0
    assert isinstance(world.placing.ask(KEY, [request])["u0"], Placement)
    assert world.inventory.free("one").get(GPU, 0) == 0
    assert isinstance(world.ask_for_one(), NoPlace)
