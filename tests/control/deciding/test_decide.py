"""A deployment's life, against a cluster in memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.api import labels
from distserve.operator.decide import decide
from distserve.operator.model import Answers, Delete, Features, Ref

Make = Callable[..., Any]


def test_all_is_made_access_first(world: Any) -> None:
    world.settle()
    kinds = [action.object["kind"] for action in world.writes]
    assert kinds[0] == "Secret"
    assert kinds.index("ControllerRevision") < kinds.index("StatefulSet")
    assert kinds.index("RoleBinding") < kinds.index("Deployment")
    assert set(world.named("StatefulSet")) == {"tiny-u0-prefill-0", "tiny-u0-decode-0"}
    assert world.condition("Ready")["status"] == "True"
    assert world.status["replicas"] == 1
    assert world.status["url"] == "http://tiny-gateway.llm.svc:8000/v1"
    assert world.status["revision"]["current"] == world.status["revision"]["target"] != ""
    assert world.status["roles"] == [
        {"name": role, "desired": 1, "ready": 1, "updated": 1} for role in ("prefill", "decode")
    ]
    assert world.status["units"][0]["nodes"] == ["node-a"]


def test_every_object_is_owned_and_controlled(world: Any) -> None:
    for found in world.settle().objects.values():
        (owner,) = found["metadata"]["ownerReferences"]
        assert owner["controller"] and owner["uid"] == world.document["metadata"]["uid"]


def test_the_api_server_is_asked_once_about_what_repeats(world: Any) -> None:
    world.create(prefill={"instancesPerUnit": 3}, decode={"instancesPerUnit": 2})
    _, question = decide(world.observe(), Answers(), world.settings).questions
    sets = [found for found in question.objects if found["kind"] == "StatefulSet"]
    names = [found["metadata"]["name"] for found in sets]
    assert names == ["tiny-u0-prefill-0", "tiny-u0-decode-0"]
    kinds = {found["kind"] for found in question.objects}
    assert kinds == {"StatefulSet", "Deployment", "Service", "RoleBinding"}


def test_nothing_is_left_to_do(world: Any) -> None:
    decision = world.settle().decide()
    assert (decision.actions, decision.status, decision.again_seconds) == ((), None, None)
    assert decision.events == ()


def test_a_binding_of_another_role_is_made_anew(world: Any) -> None:
    """Left by a release of another name; the API server never changes a binding's role."""
    render = replace(world.settle().settings.render, gateway_cluster_role="other-gateway")
    world.settings = replace(world.settings, render=render)
    before, pods = len(world.writes), dict(world.pods)
    world.settle()
    assert world.status["revision"]["current"] == world.status["revision"]["target"]
    binding = Ref("rbac.authorization.k8s.io/v1", "RoleBinding", "tiny-gateway")
    gone, made = world.writes[before:]
    assert isinstance(gone, Delete) and gone.ref == binding
    assert made.object == world.objects[binding] | {"metadata": made.object["metadata"]}
    assert world.objects[binding]["roleRef"]["name"] == "other-gateway"
    assert world.pods == pods


def test_an_edit_meanwhile_is_asked_about_all_the_same(world: Any) -> None:
    render = replace(world.settle().settings.render, gateway_cluster_role="other-gateway")
    world.settings = replace(world.settings, render=render)
    before = world.status["revision"]["current"]
    world.edit(images={"engine": "mine:2"}).settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.status["revision"]["current"] != before


def test_what_goes_is_left_to_the_garbage_collector(world: Any) -> None:
    world.settle().document["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z"
    world.objects.pop(next(iter(world.objects)))
    decision = world.decide()
    assert (decision.actions, decision.status, decision.questions) == ((), None, ())


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown field": ({"unit": 2}, "Invalid", "did you mean units?"),
    "two sections": ({"hybrid": {}}, "Invalid", "remove hybrid"),
    "what the engine cannot": (
        {"prefill": {"parallelism": {"tensor": 2}}},
        "NotSupportedByEngine",
        "spec.prefill.parallelism",
    ),
    "what nobody may merge": (
        {"prefill": {"podTemplate": {"spec": {"containers": [{"name": "engine", "args": []}]}}}},
        "InvalidPodTemplate",
        "spec.prefill.podTemplate",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_edit_touches_nothing(world: Any, case: str) -> None:
    edit, reason, words = REFUSED[case]
    before = set(world.settle().objects)
    world.objects.pop(Ref("v1", "Service", "tiny-gateway"))
    writes = len(world.writes)
    world.edit(**edit).settle()
    assert len(world.writes) == writes
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason)
    assert words in accepted["message"]
    assert world.condition("Ready")["status"] == "True", "what runs goes on"
    assert world.events[-1].type == "Warning" and world.events[-1].reason == reason
    world.document["spec"] = {k: v for k, v in world.document["spec"].items() if k not in edit}
    world.edit(prefill={}).settle()
    assert world.condition("Accepted")["status"] == "True"
    assert set(world.objects) == before


def test_refused_from_the_start(new_world: Make) -> None:
    world = new_world(prefill=None).settle()
    assert not world.objects
    assert world.condition("Ready")["reason"] == "NotAccepted"
    assert world.decide().again_seconds is None, "only an edit cures it"


def test_the_api_servers_words(world: Any) -> None:
    world.refusal = 'StatefulSet "tiny-u0-prefill-0" is invalid: spec.template.spec: no'
    world.settle()
    assert not world.objects
    assert world.condition("Accepted")["reason"] == "RefusedByApiServer"
    assert world.refusal in world.condition("Accepted")["message"]
    assert world.decide().again_seconds == 60, "it may be cured from outside"
    world.refusal = ""
    world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.decide().again_seconds is None


def test_host_paths_where_pod_security_forbids_them(new_world: Make) -> None:
    world = new_world(model={"id": "m", "source": {"hostPath": "/models/m"}})
    world.features = Features(namespace_labels={"pod-security.kubernetes.io/enforce": "restricted"})
    world.settle()
    assert world.condition("Accepted")["reason"] == "NotSupportedByCluster"
    assert "spec.model.source.hostPath" in world.condition("Accepted")["message"]
    world.features = Features()
    assert world.settle().condition("Ready")["status"] == "True"


def test_what_is_not_ours_is_not_touched(world: Any) -> None:
    service = Ref("v1", "Service", "tiny-gateway")
    world.foreign = {service}
    world.settle()
    assert service not in world.objects
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "NameTaken" and "Service tiny-gateway" in accepted["message"]
    assert world.decide().again_seconds == 60, "its end wakes nobody"
    assert "tiny-u0-prefill-0" in world.named("StatefulSet")


def test_an_edit_of_a_child_is_repaired(world: Any) -> None:
    deployment = world.settle().objects[Ref("apps/v1", "Deployment", "tiny-gateway")]
    deployment["spec"]["replicas"] = 7
    deployment["metadata"]["annotations"]["theirs"] = "1"
    world.settle()
    assert world.objects[Ref("apps/v1", "Deployment", "tiny-gateway")]["spec"]["replicas"] == 2


def test_what_is_not_wanted_any_more_goes(world: Any) -> None:
    world.settle().edit(networkPolicy={"enabled": False}).settle()
    assert not world.named("NetworkPolicy")


def test_an_operator_with_other_builders_restarts_nothing(world: Any) -> None:
    uids = {pod.uid for pod in world.settle().pods.values()}
    images = replace(world.settings.render.images, engine="distserve/engine:9", gateway="g:9")
    world.settings = replace(world.settings, render=replace(world.settings.render, images=images))
    assert world.decide().actions == ()
    world.document["metadata"]["annotations"][labels.REFRESH] = "now"
    world.settle()
    assert not uids & {pod.uid for pod in world.pods.values() if pod.unit}


def test_an_operator_that_is_told_other_labels_changes_monitors_and_rules_alone(world: Any) -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    world.features = Features(served=frozenset(f"monitoring.coreos.com/v1/{k}" for k in kinds))
    uids = {pod.uid for pod in world.settle().pods.values()}
    for told in ({"release": "kps"}, {"team": "llm"}, {}):
        written = len(world.writes)
        render = replace(world.settings.render, monitoring_labels=told)
        world.settings = replace(world.settings, render=render)
        world.settle()
        assert {Ref.of(one.object).kind for one in world.writes[written:]} == kinds
        for found in (one for kind in kinds for one in world.named(kind).values()):
            carried = found["metadata"]["labels"].items()
            assert {n: v for n, v in carried if n in ("release", "team")} == told
    assert uids == {pod.uid for pod in world.pods.values()}


def test_a_unit_that_lost_its_templates_is_left_as_it_is(world: Any) -> None:
    """Somebody deleted the ControllerRevision of what runs, while an edit waits for room."""
    world.room = 1
    old = world.settle().units()
    world.edit(images={"engine": "mine:2"}).settle()
    for name in [n for n in world.named("ControllerRevision")]:
        del world.objects[Ref("apps/v1", "ControllerRevision", name)]
    assert world.settle().units() == old
    assert world.condition("Ready")["status"] == "True"


def test_no_room(new_world: Make) -> None:
    world = new_world(units=2)
    world.room = 1
    world.settle()
    assert set(world.units()) == {"u0"}
    placed = world.condition("Placed")
    assert (placed["status"], placed["reason"]) == ("False", "NoRoom")
    assert "the fullest has 1 free" in placed["message"]
    assert world.condition("Degraded")["status"] == "True"
    world.room = 2
    assert world.settle().condition("Placed")["status"] == "True"


def test_a_lost_status_is_observed_again(new_world: Make) -> None:
    world = new_world(units=2).settle()
    before = world.status
    world.document["status"] = {}
    world.settle()
    for condition in [*before["conditions"], *world.status["conditions"]]:
        condition.pop("lastTransitionTime")
    assert world.status == before


def test_a_transitions_time_moves_only_with_it(world: Any) -> None:
    world.settle()
    before = {c["type"]: c["lastTransitionTime"] for c in world.status["conditions"]}
    world.now += 60
    world.edit(gateway={"replicas": 1}).settle()
    after = {c["type"]: c["lastTransitionTime"] for c in world.status["conditions"]}
    assert before == after
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {2}


def test_it_changes_nothing_that_it_is_given(world: Any) -> None:
    observed = world.settle().edit(units=2, images={"engine": "a"}).observe()
    copy = repr(observed)
    decide(observed, Answers(), world.settings)
    assert repr(observed) == copy


def test_scaled_to_zero(world: Any) -> None:
    world.settle().edit(units=0).settle()
    assert not world.units()
    assert world.condition("Ready")["reason"] == "ScaledToZero"
    assert world.condition("Placed")["reason"] == "NothingToPlace"


def test_while_an_edit_is_refused_ready_says_what_is(world: Any) -> None:
    world.settle().edit(unit=2).settle()
    world.broken = lambda pod: pod.unit != ""
    world.pods = {n: replace(p, ready=not p.unit) for n, p in world.pods.items()}
    world.settle()
    assert world.condition("Ready")["reason"] == "NotAccepted"
    assert world.status["replicas"] == 0
    world.broken = lambda pod: False
    world.settle()
    ready = world.condition("Ready")
    assert ready["status"] == "True" and "did you mean units?" in ready["message"]
    assert world.status["replicas"] == 1


@pytest.mark.parametrize("why", ["refused", "no plan"])
def test_without_a_spec_to_follow_the_parts_are_told_as_they_are(new_world: Make, why: str) -> None:
    world = new_world(units=2, decode={"instancesPerUnit": 2}).settle()
    if why == "refused":
        world.refusal = "no"
        world.edit(images={"engine": "mine:2"}, units=5)
    else:
        world.edit(planning={"mode": "Auto"}, workload={"requestRate": "1"})
    world.reconcile()
    assert world.condition("DecodeReady")["status"] == "True"
    assert world.condition("Degraded")["reason"] == "AsAsked"
    world.broken = lambda pod: pod.name == "tiny-u1-decode-1-0"
    del world.pods["tiny-u1-decode-1-0"]
    for _ in range(2):
        world.step()
        world.reconcile()
    decode = world.condition("DecodeReady")
    assert (decode["status"], decode["message"]) == ("False", "3 of 4 decode instances are ready")
    assert world.condition("PrefillReady")["status"] == "True"
    assert world.condition("Degraded")["message"].startswith("1 of 2 units are ready")
    assert [(r["name"], r["ready"], r["desired"]) for r in world.status["roles"]] == [
        ("prefill", 2, 2), ("decode", 3, 4),
    ]  # fmt: skip
    assert [unit["ready"] for unit in world.status["units"]] == [True, False]
    assert world.condition("Ready")["status"] == "True"
    assert [e.reason for e in world.events].count("UnitsNotReady") == 1
