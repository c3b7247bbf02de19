"""A key that somebody deleted: found by pods that do not start, and made anew for all of them."""

from collections.abc import Callable
from typing import Any

from distserve.operator.keys import GENERATION, LOOK_SECONDS
from distserve.operator.model import Apply, Delete, KeyQuestion, Ref
from distserve.operator.records import pod_record

SECRET = Ref("v1", "Secret", "tiny-key")
NEXT = Ref("v1", "Secret", "tiny-key-2")
POD = "tiny-u0-prefill-0-0"


def lose_key_and_a_pod(world: Any) -> set[str]:
    """Returns the uids of all pods that there were."""
    uids = {pod.uid for pod in world.settle().pods.values()}
    del world.objects[SECRET], world.pods[POD]
    return uids


def asked(world: Any) -> list[Any]:
    world.decide()
    return [one for one in world.questions if isinstance(one, KeyQuestion)]


def test_nobody_asks_while_pods_run_or_have_just_begun(world: Any) -> None:
    lose_key_and_a_pod(world)
    assert asked(world) == []
    world.step()
    decision = world.decide()
    assert asked(world) == [] and decision.again_seconds == LOOK_SECONDS


def test_all_pods_start_anew_with_a_new_key(world: Any) -> None:
    before = lose_key_and_a_pod(world)
    world.step()
    world.now += LOOK_SECONDS
    assert asked(world) == [KeyQuestion("tiny-key")]
    world.settle()
    assert world.keys == 2 and NEXT in world.objects
    assert not before & {pod.uid for pod in world.pods.values()}
    assert world.condition("Ready")["status"] == "True"
    (event,) = [one for one in world.events if one.reason == "KeyLost"]
    assert "tiny-key-2" in event.message


def test_a_key_that_cannot_be_made_is_not_told_as_made(world: Any) -> None:
    """Somebody else's Secret has the next one's name."""
    lose_key_and_a_pod(world)
    world.step()
    world.now += LOOK_SECONDS
    assert "KeyLost" in [one.reason for one in world.decide().events]
    world.foreign = {NEXT}
    assert "KeyLost" not in [one.reason for one in world.decide().events]


def test_wherever_that_is_cut_off_no_two_keys_meet(new_world: Callable[..., Any]) -> None:
    for k in range(7):
        world = new_world(units=1)
        before = lose_key_and_a_pod(world)
        world.step()
        world.now += LOOK_SECONDS
        world.fail_after = k
        world.reconcile_or_crash()
        world.fail_after = None
        for _ in range(3):
            world.step()
            world.now += LOOK_SECONDS
            world.reconcile()
        world.settle()
        assert world.keys == 2, f"cut off before write {k}"
        assert not before & {pod.uid for pod in world.pods.values()}, f"before write {k}"


def test_slow_images_are_no_lost_key(world: Any) -> None:
    world.settle()
    del world.pods[POD]
    world.broken = lambda pod: True
    world.step()
    world.step()
    world.now += LOOK_SECONDS
    decision = world.decide()
    assert asked(world) and decision.actions == () and decision.again_seconds == LOOK_SECONDS


def pod(*containers: dict[str, Any], phase: str = "Pending", bound: str = "True") -> Any:
    scheduled = {
        "type": "PodScheduled", "status": bound, "lastTransitionTime": "2027-01-01T00:00:00Z",
    }  # fmt: skip
    statuses = [{"name": f"c{at}", "state": state} for at, state in enumerate(containers)]
    metadata = {"name": "p", "uid": "u", "creationTimestamp": "2027-01-01T00:00:00Z"}
    status = {"phase": phase, "conditions": [scheduled], "containerStatuses": statuses}
    return pod_record({"metadata": metadata, "status": status})


def test_which_pods_wait_for_their_volumes() -> None:
    creating = {"waiting": {"reason": "ContainerCreating"}}
    assert pod(creating, creating).starting_since == 1798761600.0
    assert pod().starting_since is not None, "the kubelet said nothing yet"
    assert pod(creating, {"running": {}}).starting_since is None
    assert pod({"waiting": {"reason": "ImagePullBackOff"}}).starting_since is None
    assert pod(bound="False").starting_since is None
    assert pod({"running": {}}, phase="Running").starting_since is None


def test_the_next_key_has_a_name_of_its_own(world: Any) -> None:
    """Kubelets keep what cannot change as long as a pod of their node names it."""
    lose_key_and_a_pod(world)
    world.step()
    world.now += LOOK_SECONDS
    world.settle()
    assert set(world.named("Secret")) == {"tiny-key-2"}
    assert {pod.key for pod in world.pods.values()} == {"tiny-key-2"}
    del world.objects[Ref("v1", "Secret", "tiny-key-2")], world.pods[POD]
    world.step()
    world.now += LOOK_SECONDS
    world.settle()
    assert {pod.key for pod in world.pods.values()} == {"tiny-key-3"}
    assert world.condition("Ready")["status"] == "True"


def test_pods_keep_their_key_in_a_rollout_after_it_was_lost(world: Any) -> None:
    lose_key_and_a_pod(world)
    world.step()
    world.now += LOOK_SECONDS
    world.settle()
    world.edit(images={"engine": "registry/engine:next"}).settle()
    assert {pod.key for pod in world.pods.values()} == {"tiny-key-2"}
    assert world.keys == 2


def test_engines_end_only_once_their_next_pods_have_the_key(world: Any) -> None:
    """A pod that is made anew before that would wait for, or have, the former one."""
    lose_key_and_a_pod(world)
    world.step()
    world.now += LOOK_SECONDS
    writes = world.writes
    writes.clear()
    world.reconcile()
    kinds = [one.object["kind"] if isinstance(one, Apply) else "end" for one in writes]
    assert "end" not in kinds and {"Secret", "StatefulSet", "Deployment"} <= set(kinds)
    world.reconcile()
    ended = {one.ref.name for one in writes if isinstance(one, Delete)}
    assert ended == {"tiny-u0-decode-0-0", POD}


def test_another_key_can_be_asked_for(world: Any) -> None:
    before = {pod.uid for pod in world.settle().pods.values()}
    world.document["metadata"]["annotations"][GENERATION] = "2"
    world.settle()
    assert set(world.named("Secret")) == {"tiny-key", "tiny-key-2"}
    assert {pod.key for pod in world.pods.values()} == {"tiny-key-2"}
    assert not before & {pod.uid for pod in world.pods.values()}
    del world.document["metadata"]["annotations"][GENERATION]
    world.settle()
    assert {pod.key for pod in world.pods.values()} == {"tiny-key-2"}


def test_what_is_no_number_asks_for_nothing(world: Any) -> None:
    world.settle().document["metadata"]["annotations"][GENERATION] = "two"
    world.settle()
    assert set(world.named("Secret")) == {"tiny-key"}
