"""Nodes that are lost: which pods end by force, what is told, and what becomes of the unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distserve.operator.healing import displaced, heal, healed, node_troubles, patience_seconds
from distserve.operator.health import live_units
from distserve.operator.model import (
    Answers,
    Decision,
    Delete,
    NodesQuestion,
    Placement,
    PlacementQuestion,
)
from distserve.operator.records import pod_record
from distserve.placement.nodes import Node, Taint, node_from

Make = Callable[..., Any]
A, B = "node-a", "node-b"
OUT = Taint("node.kubernetes.io/out-of-service", "nodeshutdown", "NoExecute")


def node(name: str, **facts: Any) -> Node:
    return replace(Node(name, {}, {}, (), cordoned=False, ready=True), **facts)


@pytest.fixture
def on_two(new_world: Make) -> Make:
    """A deployment that runs on node A, whose kubelet has just died; B is free."""

    def make(**spec: Any) -> Any:
        world = new_world(**spec).settle()
        world.nodes[B] = node(B)
        world.silent = {A}
        return world

    return make


def forced(world: Any) -> list[str]:
    """Pods that were ended by force, in order."""
    return [w.ref.name for w in world.writes if isinstance(w, Delete) and w.grace_seconds == 0]


def unreachable(world: Any, name: str = A) -> None:
    """As the control plane says it, some time after the kubelet's last word."""
    world.nodes[name] = replace(world.nodes[name], ready=False, unreachable_since=world.now)
    for pod in list(world.pods.values()):
        if pod.node == name:
            world.pods[pod.name] = replace(pod, ready=False)


def gone(world: Any) -> None:
    del world.nodes[A]


def out_of_service(world: Any) -> None:
    world.nodes[A] = node(A, taints=(OUT,), ready=False)


@pytest.mark.parametrize(
    ("lose", "words"), [(gone, "was deleted"), (out_of_service, "is out of service")]
)
def test_a_node_that_is_gone_for_certain_is_left_at_once(
    on_two: Make, lose: Callable[[Any], None], words: str
) -> None:
    world = on_two()
    lose(world)
    lost = set(world.pods)
    world.settle()
    assert set(forced(world)) == lost, "gateways, too"
    assert {pod.node for pod in world.pods.values()} == {B}
    (told,) = [event for event in world.events if event.reason == "NodeLost"]
    assert told.type == "Warning" and told.message.startswith(f"node {A} {words}: ")
    assert world.condition("Ready")["status"] == "True"


def test_an_unreachable_node_has_its_time(on_two: Make) -> None:
    world = on_two(restart={"nodeLostAfter": "20s"})
    unreachable(world)
    decision = world.reconcile()
    assert forced(world) == [] and 19 < decision.again_seconds <= 20
    ready = world.condition("Ready")
    assert ready["status"] == "False"
    assert f"its node {A} is unreachable since " in ready["message"]
    assert "20 s after that (restart.nodeLostAfter) its pods are made again" in ready["message"]
    world.now += decision.again_seconds
    world.settle()
    assert {pod.node for pod in world.pods.values()} == {B}
    (told,) = [event for event in world.events if event.reason == "NodeLost"]
    assert "has been unreachable for 20 s (restart.nodeLostAfter)" in told.message
    assert len(forced(world)) == len(set(forced(world)))


def test_pods_there_end_also_while_the_deployment_goes(on_two: Make) -> None:
    """Deleted in the foreground, it stays until they ended."""
    world = on_two()
    world.document["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z"
    unreachable(world)
    writes, before = len(world.writes), list(world.events)
    decision = world.reconcile()
    assert forced(world) == [] and 29 < decision.again_seconds <= 30
    world.now += decision.again_seconds
    lost = set(world.pods)
    world.reconcile()
    assert set(forced(world)) == lost and len(world.writes) == writes + len(lost)
    assert world.events == before, "nothing is made again, and nobody is told so"


def test_one_that_comes_back_in_time_keeps_its_pods(on_two: Make) -> None:
    world = on_two()
    before = {pod.uid for pod in world.pods.values()}
    unreachable(world)
    world.reconcile()
    world.now += 29
    world.nodes[A], world.silent = node(A), set()
    world.now += 60
    world.settle()
    assert {pod.uid for pod in world.pods.values()} == before


def test_news_that_are_late_end_no_pod(on_two: Make) -> None:
    """The watch still shows the taint; the API server does not."""
    world = on_two()
    unreachable(world)
    world.late = world.observe()
    world.nodes[A] = node(A)
    world.now += 100
    world.reconcile()
    assert any(isinstance(asked, NodesQuestion) for asked in world.questions)
    assert forced(world) == []


def test_a_pod_that_is_ending_anyway_ends_at_once(on_two: Make) -> None:
    """Its StatefulSet went with a unit that is not wanted any more."""
    world = on_two(units=2)
    world.edit(units=1)
    for _ in range(3):
        world.reconcile()
        world.step()
    assert any(pod.terminating for pod in world.pods.values())
    gone(world)
    world.settle()
    assert {pod.unit for pod in world.pods.values()} == {"", "u0"}


def test_somebody_elses_pods_are_left_alone(on_two: Make) -> None:
    """Labels like ours, made by nobody or by somebody else."""
    world = on_two()
    ours = world.pods["tiny-u0-decode-0-0"]
    for name, controller in [
        ("by-hand", ""),
        ("a-job", "Job/tiny-u0-decode-0"),
        ("a-set", "StatefulSet/other"),
        ("a-gateway", "ReplicaSet/other-5d4f8"),
    ]:
        uid = f"uid of {name}"
        world.pods[name] = replace(ours, name=name, uid=uid, controller=controller)
    gone(world)
    world.reconcile()
    assert "tiny-u0-decode-0-0" in forced(world)
    assert not {"by-hand", "a-job", "a-set", "a-gateway"} & set(forced(world))


def test_a_refused_edit_does_not_keep_it_from_healing(on_two: Make) -> None:
    world = on_two()
    world.refusal = "no"
    world.edit(images={"engine": "mine:2"})
    gone(world)
    world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert {pod.node for pod in world.pods.values()} == {B}


@pytest.mark.parametrize(
    "spec", [{}, None, {"restart": None}, {"restart": {"nodeLostAfter": "soon"}}, {"restart": 1}]
)
def test_a_spec_that_makes_no_sense_has_the_usual_patience(spec: Any) -> None:
    assert patience_seconds({"spec": spec}) == 30


def test_nothing_is_decided_of_nodes_that_nobody_looked_at(on_two: Make) -> None:
    world = on_two()
    observed = world.observe()
    assert heal(replace(observed, nodes={}), Answers()) == heal(observed, Answers())
    gone(world)
    found = heal(world.observe(), Answers())
    assert found.question == NodesQuestion((A,)) and found.deletions == ()


def test_two_reasons_for_a_pods_end_are_one_deletion(on_two: Make) -> None:
    world = on_two()
    gone(world)
    healing = heal(world.observe(), Answers(nodes={A: None}))
    twice = Decision(actions=tuple(replace(one, grace_seconds=None) for one in healing.deletions))
    assert healed(twice, healing).actions == healing.deletions


# ---- units ----------------------------------------------------------------------------------


def placed(world: Any, label: str = "clique", value: str = "c0") -> Any:
    """The deployment's one unit, as if it had been given this domain."""
    (unit,) = live_units(world.observe()).values()
    unit.__dict__["place"] = Placement("nvlink", label, value, {})
    return unit


def test_a_node_that_left_the_domain_is_told(on_two: Make) -> None:
    world = on_two()
    unit = placed(world)
    assert displaced(unit, {A: node(A, labels={"clique": "c0"})}) is None
    for labels, words in [({"clique": "c9"}, "is now c9"), ({}, "is gone")]:
        why = displaced(unit, {A: node(A, labels=labels)})
        assert why is not None and why.reason == "DomainSplit"
        assert f"node {A}, which left nvlink domain c0 (its label clique {words})" in why.message
    assert displaced(unit, {A: None}) is None, "a node that is gone is another matter"


def test_a_unit_without_a_domain_cannot_leave_it(on_two: Make) -> None:
    unit = placed(on_two(), "", "")
    assert displaced(unit, {A: node(A)}) is None


def test_what_ails_a_node_is_said(on_two: Make) -> None:
    world = on_two()
    assert node_troubles(world.observe()) == {}
    world.nodes[A] = node(A, cordoned=True)
    assert node_troubles(world.observe()) == {}, "its pods run on"
    world.nodes[A] = node(A, ready=False)
    assert "is not ready; if it is off for good delete it" in node_troubles(world.observe())[A]


# ---- records --------------------------------------------------------------------------------


def tainted(when: str | None, status: str = "Unknown", effect: str = "NoExecute") -> Node:
    taint = {"key": "node.kubernetes.io/unreachable", "effect": effect}
    condition = {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:10Z"}
    return node_from(
        {
            "metadata": {"name": A},
            "spec": {"taints": [taint | ({"timeAdded": when} if when else {})]},
            "status": {"conditions": [condition]},
        }
    )


def test_since_when_a_node_is_unreachable() -> None:
    added = "2026-01-01T00:00:00Z"
    since = tainted(added).unreachable_since
    assert since is not None
    assert tainted(None).unreachable_since == since + 10, "the condition tells"
    assert tainted(None, status="True").unreachable_since is None, "somebody plays with taints"
    assert tainted(added, effect="NoSchedule").unreachable_since is None


def test_a_pods_maker_and_whether_it_was_forced_stand_in_its_record() -> None:
    metadata: dict[str, Any] = {
        "name": "p", "namespace": "n", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [
            {"kind": "Other", "name": "x"},
            {"kind": "StatefulSet", "name": "s", "controller": True},
        ],
    }  # fmt: skip
    found = pod_record({"metadata": metadata})
    assert (found.controller, found.forced) == ("StatefulSet/s", False)
    ending = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}
    assert pod_record({"metadata": metadata | ending}).forced


# ---- any life -------------------------------------------------------------------------------

NODES = ("n0", "n1", "n2")
LIVES = st.lists(
    st.tuples(
        st.sampled_from(NODES),
        st.sampled_from(
            ["silent", "unreachable", "out", "gone", "back", "label", "look", "late", "step"]
        ),
        st.integers(0, 40),
    ),
    max_size=14,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(life=LIVES)
def test_any_losses(new_world: Make, life: list[tuple[str, str, int]]) -> None:
    """Nothing of others ends, nothing ends by force that need not, nothing twice, and where nodes
    are left all is whole in the end."""
    world = new_world(units=2)
    world.nodes = {name: node(name) for name in NODES}
    world.settle()
    foreign = replace(world.pods["tiny-u0-decode-0-0"], name="foreign", uid="f", controller="Job/x")
    world.pods["foreign"] = foreign
    ended: list[str] = []
    seen = world.observe()

    def reconcile() -> None:
        before, start = dict(world.pods), len(world.writes)
        world.reconcile()
        for write in world.writes[start:]:
            if not (isinstance(write, Delete) and write.ref.kind == "Pod"):
                continue
            pod = before.get(write.ref.name)
            if pod is None or pod.uid != write.uid:
                assert world.late is not None
                continue
            assert write.grace_seconds == 0 and pod.name != "foreign"
            assert write.uid not in ended, "twice"
            ended.append(write.uid)
            at = world.nodes.get(pod.node)
            silent = at is not None and at.unreachable_since is not None
            assert at is None or at.out_of_service or silent
            assert not silent or at is None or world.now - at.unreachable_since >= 30

    for name, what, seconds in life:
        world.now += seconds
        match what:
            case "silent":
                world.silent.add(name)
            case "unreachable" if name in world.nodes:
                world.silent.add(name)
                unreachable(world, name)
            case "out" if name in world.nodes:
                world.nodes[name] = node(name, taints=(OUT,), ready=False)
            case "gone":
                world.nodes.pop(name, None)
            case "back":
                world.silent.discard(name)
                world.nodes[name] = node(name)
            case "label" if name in world.nodes:
                world.nodes[name] = replace(world.nodes[name], labels={"a": str(seconds)})
            case "look":
                seen = world.observe()
            case "late":
                world.late = seen
            case "step":
                world.step()
        reconcile()
        world.late = None

    world.silent = set()
    world.nodes = {name: node(name) for name in NODES}
    del world.pods["foreign"]
    world.now += 100
    world.settle()
    assert world.condition("Ready")["status"] == "True" and world.ready_units() == 2
    assert heal(world.observe(), Answers()).question is None
    assert world.decide().actions == ()


def test_an_event_is_told_once_for_a_loss(on_two: Make) -> None:
    world = on_two(units=3)
    gone(world)
    world.settle()
    told = [event for event in world.events if event.reason == "NodeLost"]
    assert len(told) == 1 and "and " in told[0].message


def test_no_place_is_looked_for_while_former_pods_are_to_end(on_two: Make) -> None:
    """They would seem to hold the unit where it was."""
    world = on_two(topology={"gangTimeout": "5s"})
    world.silent = set()
    world.now += 100
    del world.pods["tiny-u0-decode-0-0"]
    world.unschedulable = lambda pod: "decode" in pod.name
    world.reconcile()
    world.step()
    world.reconcile()
    world.now += 5
    world.reconcile()
    assert world.named("StatefulSet") == {} and not world.pods["tiny-u0-prefill-0-0"].terminating
    decision = world.decide()
    (asked,) = [one for one in decision.questions if isinstance(one, PlacementQuestion)]
    assert asked.units == () and decision.actions == ()
    world.unschedulable = lambda pod: False
    assert world.settle().condition("Ready")["status"] == "True"
