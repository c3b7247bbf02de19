"""Gateways: who says their number, and what is said of those that are not made."""

from typing import Any

from distserve.operator.model import Apply, Ref

GATEWAY = Ref("apps/v1", "Deployment", "tiny-gateway")


def scaled(world: Any, replicas: int) -> Any:
    """By an autoscaler, or by hand."""
    world.objects[GATEWAY]["spec"]["replicas"] = replicas
    return world


def test_the_number_of_an_autoscaler_is_left_alone(new_world: Any) -> None:
    world = new_world(gateway={"replicas": 3, "autoscaled": True}).settle()
    assert world.objects[GATEWAY]["spec"]["replicas"] == 3, "as it was made"
    for replicas in (1, 5):
        scaled(world, replicas)
        assert world.decide().actions == ()
        world.settle()
        assert world.objects[GATEWAY]["spec"]["replicas"] == replicas
    assert world.condition("GatewayReady")["message"] == "5 of 5 gateway pods are ready"


def test_another_template_comes_with_the_autoscalers_number(new_world: Any) -> None:
    world = scaled(new_world(gateway={"autoscaled": True}).settle(), 5)
    world.edit(images={"gateway": "mine:2"}).reconcile()
    written = [one.object for one in world.writes if isinstance(one, Apply)]
    spec = [one["spec"] for one in written if Ref.of(one) == GATEWAY][-1]
    assert spec["replicas"] == 5
    assert spec["template"]["spec"]["containers"][0]["image"] == "mine:2"


def test_a_number_that_came_meanwhile_is_not_set_back(new_world: Any) -> None:
    for autoscaled in (True, False):
        world = scaled(new_world(gateway={"autoscaled": autoscaled}).settle(), 3)
        world.objects[GATEWAY]["metadata"]["resourceVersion"] = "7"
        actions = world.edit(images={"gateway": "mine:2"}).decide().actions
        (sent,) = [one.object for one in actions if isinstance(one, Apply)
                   and Ref.of(one.object) == GATEWAY]  # fmt: skip
        seen = "7" if autoscaled else None
        assert sent["metadata"].get("resourceVersion") == seen, "another one is refused"


def test_without_an_autoscaler_the_specs_number_counts_again(new_world: Any) -> None:
    world = scaled(new_world(gateway={"autoscaled": True}).settle(), 5).settle()
    world.edit(gateway={"replicas": 2}).settle()
    assert world.objects[GATEWAY]["spec"]["replicas"] == 2


def test_gateways_that_may_not_be_made_are_told_in_the_api_servers_words(world: Any) -> None:
    world.settle()
    said = 'pods "tiny-gateway-abc" is forbidden: exceeded quota: small'
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    gateway = world.named("Deployment")["tiny-gateway"]
    gateway["status"] = {"conditions": [condition | {"message": said}]}
    del world.pods["tiny-gateway-1"]
    world.reconcile()
    assert said in world.condition("Degraded")["message"]
    del world.pods["tiny-gateway-0"]
    world.reconcile()
    assert said in world.condition("GatewayReady")["message"]
    ready = world.condition("Ready")
    assert ready["reason"] == "NoReadyGateway" and said in ready["message"]
    gateway["status"]["conditions"][0]["status"] = "False"
    world.reconcile()
    assert said not in world.condition("Ready")["message"]
