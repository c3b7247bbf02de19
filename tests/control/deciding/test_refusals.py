"""Units that placement puts where the scheduler finds no nodes for their pods."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.control.deciding.said import message, placed

from distserve.operator.health import PLACE
from distserve.operator.model import NoPlace, Placement
from distserve.operator.refusals import LONGEST_PAUSE_SECONDS, MOST_DOMAINS, Refusals
from distserve.placement import Inventory, Placed, place
from distserve.placement.nodes import node_from

Make = Callable[..., Any]
ZONE = "topology.kubernetes.io/zone"
TOPOLOGY = {
    "levels": [{"name": "zone", "nodeLabel": ZONE}],
    "packWithin": "zone",
    "gangTimeout": "30s",
}


def node_of(zone: str, cores: int) -> dict[str, Any]:
    return {
        "metadata": {"name": f"node-{zone}", "labels": {ZONE: zone}},
        "status": {
            "allocatable": {"cpu": str(cores), "memory": "64Gi", "pods": "100"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class Zones:
    """A world whose units are really placed, and whose scheduler refuses some of the zones."""

    def __init__(self, world: Any, **cores: int) -> None:
        self.world = world
        self.inventory = Inventory()
        self.refusing: set[str] = set()
        self.asleep = False
        """The scheduler looks at no pod."""
        for zone, count in cores.items():
            self.add(zone, count)
        world._place = self._place
        world._schedule = self._schedule
        world.unschedulable = lambda pod: bool(pod.instance) and self.zone in self.refusing

    def add(self, zone: str, cores: int) -> None:
        node = node_of(zone, cores)
        self.inventory.put_node(node)
        self.world.nodes[node["metadata"]["name"]] = node_from(node)

    @property
    def zone(self) -> str:
        """Where the unit is; empty while it has no place."""
        for found in self.world.named("StatefulSet").values():
            return str(json.loads(found["metadata"]["annotations"][PLACE])["value"])
        return ""

    def visited(self, times: int) -> list[str]:
        """Where it is put, one after the other."""
        found = []
        for _ in range(times):
            self.wait()
            found.append(self.zone)
            self.world.now += 30
            self.world.settle()
        return found

    def wait(self) -> float:
        """Until it is made: how many seconds that took."""
        began = self.world.now
        while not self.zone:
            self.world.now += 5
            self.world.settle()
            assert self.world.now < began + 2 * LONGEST_PAUSE_SECONDS, message(self.world)
        return float(self.world.now - began)

    def _schedule(self, pod: Any) -> None:
        if self.asleep:
            return
        world = self.world
        node = f"node-{self.zone}" if pod.instance and self.zone else next(iter(world.nodes))
        world.pods[pod.name] = replace(pod, node=node, unschedulable="", starting_since=world.now)

    def _place(self, unit: Any) -> Placement | NoPlace:
        (found,) = place(self.inventory, [unit], self.world.now)
        if not isinstance(found, Placed):
            return NoPlace(str(found.reason), found.message)
        nodes = {pod.rpartition("-")[0]: (node,) for pod, node in found.nodes.items()}
        return Placement(*(found.domain or ("", "", "")), nodes)


@pytest.fixture
def zones(new_world: Make) -> Callable[..., Zones]:
    def make(refusing: Sequence[str] = (), **cores: int) -> Zones:
        found = Zones(new_world(topology=TOPOLOGY), **cores)
        found.refusing = set(refusing)
        found.world.settle()
        return found

    return make


def test_the_other_domain_is_taken(zones: Callable[..., Zones]) -> None:
    """Its volume is in zone a; zone b is fuller."""
    found = zones("b", a=64, b=16)
    world = found.world
    assert found.zone == "b" and placed(world) == ("False", "Unschedulable")
    assert "in zone b" in message(world) and "0/1 nodes are available" in message(world)
    world.now += 30
    world.settle()
    assert found.zone == "a" and placed(world) == ("True", "Placed")
    assert "refusals" not in world.status, "it is over"


def test_until_it_has_nodes_it_is_told_where_it_found_none(zones: Callable[..., Zones]) -> None:
    found = zones("ab", a=64, b=16)
    world = found.world
    world.now += 30
    said = set()
    world.settle(check=lambda now: said.add((found.zone, *placed(now), message(now))))
    assert found.zone == "a"
    words = [text for zone, status, _, text in said if zone == "a" and "tried in" in text]
    assert words and all("no nodes for its pods in zone b" in text for text in words)
    assert all("0/1 nodes are available" in text and "nodeAffinity" in text for text in words)
    assert not any(zone == "a" and status == "True" for zone, status, _, _ in said)
    (known,) = world.status["refusals"]
    assert (known["unit"], known["attempts"], known["domains"]) == ("u0", 1, ["zone b"])
    assert known["said"].startswith("0/1 nodes")


def test_it_is_known_until_the_scheduler_has_looked(zones: Callable[..., Zones]) -> None:
    found = zones("b", b=16)
    world = found.world
    found.refusing, found.asleep = set(), True
    world.now += 30
    world.settle()
    assert found.zone == "b" and placed(world) == ("False", "Unschedulable")
    assert [one["attempts"] for one in world.status["refusals"]] == [1]
    found.asleep = False
    world.settle()
    assert placed(world) == ("True", "Placed") and "refusals" not in world.status


def test_with_one_domain_pauses_grow(zones: Callable[..., Zones]) -> None:
    found = zones("b", b=16)
    world = found.world
    world.now += 30
    world.settle()
    assert found.zone == "b", "mostly somebody else had taken the room: at once, once"
    pauses = []
    for times in (2, 3, 4):
        world.now += 30
        world.settle()
        assert not world.units() and placed(world) == ("False", "Unschedulable")
        assert f"in zone b, tried {times} times (0/1 nodes are available)" in message(world)
        assert "made again at" in message(world) and "nodeSelector or nodeAff" in message(world)
        assert world.decide().again_seconds > 0
        pauses.append(found.wait())
    assert pauses[0] > 40 and pauses[1] > 1.5 * pauses[0] and pauses[2] > 1.5 * pauses[1]
    found.refusing = set()
    world.settle()
    assert placed(world) == ("True", "Placed") and "refusals" not in world.status


def test_each_domain_has_its_turn(zones: Callable[..., Zones]) -> None:
    found = zones("abc", a=64, b=32, c=16)
    assert found.visited(6) == ["c", "b", "a", "c", "b", "a"]
    found.refusing = {"a", "b"}
    assert found.visited(1) == ["c"] and placed(found.world) == ("True", "Placed")


def paused(zones: Callable[..., Zones]) -> Zones:
    found = zones("b", b=16)
    assert found.visited(2) == ["b", "b"] and not found.zone
    return found


def test_room_that_comes_in_a_pause_is_taken(zones: Callable[..., Zones]) -> None:
    found = paused(zones)
    found.add("a", 64)
    found.world.settle()
    assert found.zone == "a" and placed(found.world) == ("True", "Placed")


def test_a_changed_spec_is_tried_at_once(zones: Callable[..., Zones]) -> None:
    found = paused(zones)
    found.refusing = set()
    found.world.settle()
    assert not found.zone, "nobody tells that it would do now"
    found.world.edit(decode={"podTemplate": {"spec": {"nodeSelector": {ZONE: "b"}}}}).settle()
    assert found.zone == "b" and placed(found.world) == ("True", "Placed")


def test_an_edit_that_is_accepted_later_is_tried_at_once(zones: Callable[..., Zones]) -> None:
    found = paused(zones)
    world, found.refusing = found.world, set()
    world.refusal = "a policy says no"
    world.edit(decode={"podTemplate": {"spec": {"nodeSelector": {ZONE: "b"}}}}).settle()
    assert world.condition("Accepted")["reason"] == "RefusedByApiServer"
    world.refusal = ""
    world.settle()
    assert found.zone == "b" and placed(world) == ("True", "Placed")


def test_a_changed_topology_is_tried_at_once(zones: Callable[..., Zones]) -> None:
    found = paused(zones)
    found.refusing = set()
    found.world.edit(topology={"gangTimeout": "40s"}).settle()
    assert found.world.units() and placed(found.world) == ("True", "Placed")


def test_an_edit_that_changes_nothing_for_its_pods_ends_no_pause(
    zones: Callable[..., Zones],
) -> None:
    """As an autoscaler's, that writes to /scale again and again."""
    found = paused(zones)
    found.world.edit(disruption={"minAvailableUnits": 0}).settle()
    assert not found.zone and found.wait() > 40


def test_each_domain_has_its_turn_whatever_else_is_edited(zones: Callable[..., Zones]) -> None:
    found, visited = zones("abc", a=64, b=32, c=16), []
    for times in range(6):
        visited += found.visited(1)
        found.world.edit(disruption={"minAvailableUnits": times}).settle()
    assert visited == ["c", "b", "a", "c", "b", "a"]


def test_of_former_pods_the_new_ones_know_nothing(zones: Callable[..., Zones]) -> None:
    """The edit comes at the moment at which the unit is taken back."""
    found = zones("b", a=64, b=16)
    assert found.zone == "b"
    found.world.now += 30
    found.refusing = set()
    found.asleep = True
    found.world.edit(images={"engine": "mine:2"}).settle()
    assert found.zone == "b"


def test_without_levels_the_cluster_is_waited_for(new_world: Make) -> None:
    world = Zones(new_world(), a=64).world
    world.unschedulable = lambda pod: bool(pod.instance)
    world.settle()
    for _ in range(2):
        world.now += 30
        world.settle()
    assert not world.units() and "in the cluster, tried 2 times" in message(world)
    world.unschedulable = lambda pod: False
    world.now += 60
    world.settle()
    assert placed(world) == ("True", "Placed")


def test_room_that_was_taken_is_no_refusal_to_wait_for(zones: Callable[..., Zones]) -> None:
    """Placement knows what is short by then, and when it is not any more."""
    found = zones("b", b=16)
    found.inventory.put_node(node_of("b", 0))
    found.world.now += 30
    found.world.settle()
    assert placed(found.world)[1] == "UnitLargerThanDomain"
    found.inventory.put_node(node_of("b", 16))
    found.refusing = set()
    found.world.settle()
    assert placed(found.world) == ("True", "Placed")


def test_a_crash_anywhere_changes_nothing_in_the_end(zones: Callable[..., Zones]) -> None:
    for writes in range(0, 40, 3):
        found = zones("b", a=64, b=16)
        world = found.world
        world.fail_after = writes
        for _ in range(4):
            world.now += 30
            world.settle()
        assert found.zone == "a" and placed(world) == ("True", "Placed")


def test_pauses_and_memory_have_a_bound() -> None:
    known, now = Refusals(), 0.0
    for count in range(3000):
        again = known.once_more(f"zone {count % 20}", "no", now, 30.0)
        assert again.once_more("zone x", "no", now + 29, 30.0) == again, "still the same one"
        assert 0 <= again.retry - now <= LONGEST_PAUSE_SECONDS
        assert (again.retry > now) == (count >= MOST_DOMAINS)
        known, now = again, again.retry + 30.0
    assert len(known.domains) == MOST_DOMAINS and known.domains[-1] == "zone 19"
