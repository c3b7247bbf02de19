"""A unit's room in a better place stays its own while its pods end where they were."""

from typing import Any

from tests.control.placing.test_placing import GPU, World, node, unit

from distserve.operator.model import Key, NoPlace, Placement


def bound(**metadata: str) -> dict[str, Any]:
    marks = {"distserve.io/deployment": "a", "distserve.io/unit": "u0"}
    names = {"name": "a-u0-prefill-0-0", "namespace": "ns", "uid": "p", "labels": marks}
    container = {"name": "engine", "resources": {"requests": {GPU: "4"}}}
    return {
        "metadata": {**names, **metadata},
        "spec": {"nodeName": "one", "containers": [container]},
        "status": {"phase": "Running"},
    }


async def test_nobody_takes_the_better_place_while_the_unit_ends() -> None:
    world, key, moving = World(), Key("ns", "a"), unit("a", gpus=4)
    world.inventory.put_node(node("two", gpus=4))
    world.ask("a", moving)
    world.placing.settle(key, {"u0": [{}]})
    world.inventory.put_pod(bound())
    assert world.placing.better(key, moving) is not None
    world.inventory.put_pod(bound(deletionTimestamp="now"))
    world.placing.settle(key, {})
    assert isinstance(world.ask("a", moving), Placement)
    assert world.inventory.free("two").get(GPU, 0) == 0
    assert isinstance(world.ask("b", unit("b", gpus=5)), NoPlace), "it has not left the first"
    world.inventory.drop_pod("p")
    world.placing.look()
    assert isinstance(world.ask("b", unit("b", gpus=5)), Placement)
    assert world.inventory.free("two").get(GPU, 0) == 0
