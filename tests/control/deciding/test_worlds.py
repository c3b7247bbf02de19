"""Instances of several pods: who begins anew together when one of them is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distserve.operator.model import Delete
from distserve.operator.records import pod_record
from distserve.operator.worlds import GRACE_SECONDS, WORLD

Make = Callable[..., Any]

DECODE = "tiny-u0-decode-0"
SEVERAL = {
    "accelerator": {"type": "GPU", "perPod": 4},
    "decode": {"parallelism": {"tensor": 4, "pipeline": 3}},
}


@pytest.fixture
def several(new_world: Make) -> Make:
    """A deployment whose decode instances have three pods each, and run."""

    def make(**spec: Any) -> Any:
        world = new_world(**SEVERAL | spec)
        world.settings = replace(world.settings, engine_check=False)
        return world.settle()

    return make


def uids(world: Any, instance: str = DECODE) -> dict[str, str]:
    return {name: pod.uid for name, pod in world.pods.items() if pod.instance == instance}


def others(world: Any, instance: str = DECODE) -> set[str]:
    return {pod.uid for pod in world.pods.values() if pod.instance != instance}


def note(world: Any, instance: str = DECODE) -> dict[str, int]:
    annotations = world.named("StatefulSet")[instance]["metadata"]["annotations"]
    found: dict[str, int] = json.loads(annotations.get(WORLD, "{}"))
    return found


def ended(world: Any) -> list[Delete]:
    return [w for w in world.writes if isinstance(w, Delete) and w.ref.kind == "Pod"]


def told(world: Any) -> list[Any]:
    return [event for event in world.events if event.reason == "InstanceRestarted"]


def test_who_began_together_is_noted_once_all_are_ready(several: Make) -> None:
    world = several()
    assert note(world) == dict.fromkeys(uids(world).values(), 0)
    assert len(note(world)) == 3
    assert note(world, "tiny-u0-prefill-0") == {}, "it has one pod"
    assert world.decide().actions == ()


@pytest.mark.parametrize("lost", [0, 2])
def test_the_others_end_when_one_is_gone(several: Make, lost: int) -> None:
    world = several(units=2)
    before, stay = uids(world), others(world)
    del world.pods[f"{DECODE}-{lost}"]
    world.settle()
    assert not set(before.values()) & set(uids(world).values())
    assert stay == others(world), "other instances are none of its business"
    left = {uid for name, uid in before.items() if name != f"{DECODE}-{lost}"}
    assert {one.uid for one in ended(world)} == left
    assert all(one.grace_seconds == GRACE_SECONDS for one in ended(world))
    (event,) = told(world)
    assert event.type == "Warning" and event.message.startswith(f"instance {DECODE} lost a pod")
    assert "all 3 begin together" in event.message
    assert note(world) == dict.fromkeys(uids(world).values(), 0)
    assert world.condition("Ready")["status"] == "True"


def test_when_several_die_at_once_only_the_rest_ends_and_once(several: Make) -> None:
    world = several()
    last = uids(world)[f"{DECODE}-2"]
    for index in (0, 1):
        del world.pods[f"{DECODE}-{index}"]
    world.settle()
    assert [one.uid for one in ended(world)] == [last]
    assert len(told(world)) == 1


def test_when_all_die_nobody_is_left_to_end(several: Make) -> None:
    world = several()
    for name in uids(world):
        del world.pods[name]
    world.settle()
    assert ended(world) == [] and told(world) == []
    assert note(world) == dict.fromkeys(uids(world).values(), 0)


def test_a_replacement_that_is_ready_before_the_loss_was_seen(several: Make) -> None:
    world = several()
    before = uids(world)
    lost = world.pods[f"{DECODE}-1"]
    world.pods[lost.name] = replace(lost, uid="another")
    world.settle()
    assert {one.uid for one in ended(world)} == set(before.values()) - {lost.uid}
    assert uids(world)[lost.name] == "another" and len(told(world)) == 1
    assert note(world) == dict.fromkeys(uids(world).values(), 0)


def test_pods_on_their_way_up_are_left_alone(several: Make) -> None:
    """They have not met: one of them that comes late, or again, meets the others."""
    world = several()
    for name in uids(world):
        del world.pods[name]
    world.broken = lambda pod: pod.name == f"{DECODE}-1"
    for _ in range(5):
        world.reconcile()
        world.step()
    del world.pods[f"{DECODE}-1"]
    world.broken = lambda pod: False
    world.settle()
    assert ended(world) == []


def test_an_engine_that_began_anew_ends_the_others_pods(several: Make) -> None:
    world = several()
    name = f"{DECODE}-1"
    before = uids(world)
    world.pods[name] = replace(world.pods[name], engine_restarts=1, restarts=1, ready=False)
    world.settle()
    after = uids(world)
    assert after[name] == before[name], "its process is a new one already"
    assert {n for n in before if before[n] != after[n]} == before.keys() - {name}
    assert note(world) == {uid: int(n == name) for n, uid in after.items()}
    assert len(ended(world)) == 2


def test_engines_that_all_ended_by_themselves_are_left_to_the_kubelet(several: Make) -> None:
    world = several()
    for name in uids(world):
        world.pods[name] = replace(world.pods[name], engine_restarts=1, ready=False)
    world.settle()
    assert ended(world) == []
    assert set(note(world).values()) == {1}


def test_another_containers_restart_is_nobodys_end(several: Make) -> None:
    world = several()
    name = f"{DECODE}-1"
    world.pods[name] = replace(world.pods[name], restarts=3)
    world.settle()
    assert ended(world) == []


def test_a_pod_that_is_ending_may_finish_with_the_others(several: Make) -> None:
    """As in an eviction: its process is still there."""
    world = several()
    name = f"{DECODE}-0"
    world.pods[name] = replace(world.pods[name], terminating=True, ready=False)
    world.reconcile()
    assert ended(world) == []
    world.settle()
    assert len(ended(world)) == 2


def test_a_lost_node_takes_the_whole_instance(several: Make) -> None:
    world = several()
    (first,) = world.nodes
    lost = world.pods[f"{DECODE}-0"]
    world.nodes["lost"] = replace(world.nodes[first], name="lost")
    world.pods[lost.name] = replace(lost, node="lost")
    del world.nodes["lost"]
    world.settle()
    assert [one.grace_seconds for one in ended(world)] == [0, GRACE_SECONDS, GRACE_SECONDS]
    reasons = [event.reason for event in world.events]
    assert reasons.count("NodeLost") == reasons.count("InstanceRestarted") == 1


def test_a_rollout_and_a_deletion_end_pods_in_their_own_way(several: Make) -> None:
    world = several(units=2)
    world.edit(images={"engine": "mine:2"}).settle()
    assert ended(world) == [] and told(world) == []
    assert note(world) == dict.fromkeys(uids(world).values(), 0)
    world.edit(units=1).settle()
    assert ended(world) == []


def test_a_unit_that_goes_is_not_hurried(several: Make) -> None:
    world = several(units=2)
    world.edit(units=1)
    del world.pods["tiny-u1-decode-0-0"]
    world.settle()
    assert ended(world) == []


def test_a_refused_edit_does_not_keep_them_apart(several: Make) -> None:
    world = several()
    world.refusal = "no"
    world.edit(images={"engine": "mine:2"})
    before = uids(world)
    del world.pods[f"{DECODE}-0"]
    world.settle()
    assert not set(before.values()) & set(uids(world).values())


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"a": "b"}', "null"])
def test_a_note_that_makes_no_sense_ends_nobody(several: Make, text: str) -> None:
    world = several()
    world.named("StatefulSet")[DECODE]["metadata"]["annotations"][WORLD] = text
    del world.pods[f"{DECODE}-0"]
    world.settle()
    assert ended(world) == []
    assert note(world) == dict.fromkeys(uids(world).values(), 0)


def test_somebody_elses_pod_with_our_labels_is_left_alone(several: Make) -> None:
    world = several()
    ours = world.pods[f"{DECODE}-1"]
    world.pods["by-hand"] = replace(ours, name="by-hand", controller="Job/x")
    del world.pods[f"{DECODE}-1"]
    world.reconcile()
    assert {one.ref.name for one in ended(world)} <= {f"{DECODE}-0", f"{DECODE}-2"}


def test_the_engines_restarts_stand_in_a_pods_record() -> None:
    def container(name: str, restarts: int) -> dict[str, Any]:
        return {"name": name, "restartCount": restarts}

    found = pod_record(
        {
            "metadata": {"name": "p", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "containerStatuses": [container("kv-migrator", 4), container("engine", 2)],
                "initContainerStatuses": [container("fetch-model", 1)],
            },
        }
    )
    assert (found.restarts, found.engine_restarts) == (4, 2)


LIVES = st.lists(
    st.tuples(
        st.sampled_from(["gone", "ends", "restarts", "replaced", "step", "edit"]), st.integers(0, 2)
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(life=LIVES)
def test_any_losses_end_in_one_world(new_world: Make, life: list[tuple[str, int]]) -> None:
    """Nobody ends twice or without a loss; in the end all began together and it serves."""
    world = new_world(**SEVERAL)
    world.settings = replace(world.settings, engine_check=False)
    world.settle()
    losses = 0
    for number, (what, index) in enumerate(life):
        name = f"{DECODE}-{index}"
        pod = world.pods.get(name)
        if what == "edit":
            world.edit(images={"engine": f"mine:{number}"})
        elif what == "step" or pod is None:
            world.step()
        else:
            losses += 1
            if what == "gone":
                del world.pods[name]
            elif what == "replaced":
                world.pods[name] = replace(pod, uid=f"another {number}", engine_restarts=0)
            elif what == "ends":
                world.pods[name] = replace(pod, terminating=True, ready=False)
            else:
                more = pod.engine_restarts + 1
                world.pods[name] = replace(pod, engine_restarts=more, ready=False)
        world.reconcile()
    world.settle()
    found = [one.uid for one in ended(world)]
    assert len(found) == len(set(found)) <= 2 * losses
    assert note(world) == {
        pod.uid: pod.engine_restarts for pod in world.pods.values() if pod.instance == DECODE
    }
    assert world.condition("Ready")["status"] == "True"
    assert world.decide().actions == ()
