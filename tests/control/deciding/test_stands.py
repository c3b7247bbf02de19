"""What stands for units in queues, when somebody wrote over its labels."""

from typing import Any

import pytest
from tests.control.deciding import played_kai, played_kueue, played_volcano
from tests.control.deciding.said import message, placed

from distserve.api import labels
from distserve.operator.model import Features


def kueue(world: Any) -> played_kueue.Kueue:
    world.document["metadata"]["labels"] = {played_kueue.QUEUE: "team-a"}
    flavors = {"a100": played_kueue.A100}
    world.features = Features(served=played_kueue.SERVED, flavors=flavors)
    return played_kueue.Kueue(world, 0)


def volcano(world: Any) -> played_volcano.Volcano:
    world.document["metadata"]["annotations"] = {played_volcano.QUEUE: "team-a"}
    served, queues = played_volcano.SERVED, played_volcano.TEAM
    world.features = Features(served=served, volcano_queues=queues)
    found = played_volcano.Volcano(world, 0)
    world.unschedulable = found.unschedulable
    return found


def kai(world: Any) -> played_kai.Kai:
    world.document["metadata"]["labels"] = {played_kai.QUEUE: "team-a"}
    world.features = Features(served=played_kai.SERVED, kai_queues=played_kai.TEAM)
    found = played_kai.Kai(world, 0)
    world.unschedulable = found.unschedulable
    return found


@pytest.mark.parametrize("label", ["x", "u7", "u", ""])
@pytest.mark.parametrize(
    ("scheduler", "queue"), [("Kueue", kueue), ("Volcano", volcano), ("KAI", kai)]
)
def test_it_stands_for_the_unit_that_its_name_says(
    new_world: Any, scheduler: str, queue: Any, label: str
) -> None:
    world = new_world(topology={"scheduler": scheduler})
    played = queue(world)
    played.settle()
    before = placed(world), message(world)
    assert before[0] == ("False", f"QueuedBy{scheduler}")
    (stand,) = (world.named("Workload") | world.named("PodGroup")).values()
    stand["metadata"]["labels"][labels.UNIT] = label
    played.settle()
    assert (placed(world), message(world)) == before
    assert len(world.named("Workload") | world.named("PodGroup")) == 1
