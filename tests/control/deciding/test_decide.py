"""A deployment's life, against a cluster in memory."""

from typing import Any


def test_all_is_made_access_first(world: Any) -> None:
    world.settle()
    kinds = [action.object["kind"] for action in world.writes]
    assert kinds[0] == "Secret"
    assert kinds.index("ControllerRevision") < kinds.index("StatefulSet")
    assert kinds.index("RoleBinding") < kinds.index("Deployment")
    assert set(world.named("StatefulSet")) == {"tiny-u0-prefill-0", "tiny-u0-decode-0"}
    assert world.condition("Ready")["status"] == "True"
    assert world.status["replicas"] == 1
    assert world.status["revision"]["current"] == world.status["revision"]["target"] != ""


def test_nothing_is_left_to_do(world: Any) -> None:
    decision = world.settle().decide()
    assert (decision.actions, decision.status, decision.again_seconds) == ((), None, None)
