"""The store keeps what decisions need, and old news does not undo new."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.kinds import (
    CHILDREN,
    DEPLOYMENTS,
    NAMESPACES,
    NODES,
    PODS,
    PRIORITY_CLASSES,
    Kind,
)
from distserve.operator.model import Key, Ref
from distserve.operator.store import Store

KEY = Key("ns", "opt")
REVISIONS = next(kind for kind in CHILDREN if kind.kind == "ControllerRevision")
REVISION = Ref("apps/v1", "ControllerRevision", "opt-1")
Object = dict[str, Any]


def deployment(version: int = 1, uid: str = "d1", **spec: Any) -> Object:
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {
            "namespace": "ns",
            "name": "opt",
            "uid": uid,
            "resourceVersion": str(version),
            "managedFields": [{"manager": "somebody"}],
        },
        "spec": spec,
    }


def child(version: int = 1, uid: str = "c1", owner: str | None = "d1", value: str = "x") -> Object:
    references = [
        {"apiVersion": "distserve.io/v1alpha1", "kind": "DistServeDeployment", "name": "opt"}
        | {"uid": owner, "controller": True}
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "namespace": "ns",
            "name": "opt-1",
            "uid": uid,
            "resourceVersion": str(version),
            "ownerReferences": references if owner else [],
        },
        "data": {"key": value},
    }


def pod(version: int = 1, uid: str = "p1", ready: bool = False, **status: Any) -> Object:
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "metadata": {
            "namespace": "ns",
            "name": "opt-u0-prefill-0-0",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"distserve.io/deployment": "opt", "distserve.io/unit": "u0"},
        },
        "spec": {"nodeName": "node", "containers": []},
        "status": {"conditions": [condition], **status},
    }


def test_a_deployment_is_observed_with_what_it_controls() -> None:
    store = Store()
    assert store.observe(KEY, 0.0) is None
    assert store.put(REVISIONS, child()) == {KEY}, "children may be seen before their owner"
    assert store.put(PODS, pod()) == {KEY}
    assert store.put(DEPLOYMENTS, deployment(units=2)) == {KEY}
    store.put(NAMESPACES, {"metadata": {"name": "ns", "uid": "n", "labels": {"a": "b"}}})
    seen = store.observe(KEY, 12.0)
    assert seen is not None
    assert seen.document["spec"] == {"units": 2}
    assert "managedFields" not in seen.document["metadata"]
    assert seen.children[REVISION]["data"] == {"key": "x"}
    assert [one.unit for one in seen.pods] == ["u0"]
    assert seen.features.namespace_labels == {"a": "b"}
    assert seen.now == 12.0


def test_priorities_are_those_of_the_classes_that_are_there() -> None:
    def put(name: str, value: int, version: int = 1, **rest: bool) -> set[Key]:
        marks = {"name": name, "uid": name, "resourceVersion": str(version)}
        return store.put(PRIORITY_CLASSES, {"metadata": marks, "value": value, **rest})

    store = Store()
    store.put(DEPLOYMENTS, deployment())
    assert store.features_of("ns").priorities == {"": 0}
    assert put("urgent", 1000) == {KEY}, "a unit that waits goes elsewhere in the order now"
    assert put("urgent", 1000, version=2) == set()
    put("usual", 10, globalDefault=True)
    put("least", 5, globalDefault=True)
    found = store.observe(KEY, 0.0)
    assert found is not None
    assert found.features.priorities == {"": 5, "urgent": 1000, "usual": 10, "least": 5}
    assert store.drop(PRIORITY_CLASSES, ("", "least"), "least") == {KEY}
    assert store.features_of("ns").priorities[""] == 10


def test_an_object_of_an_earlier_deployment_of_the_name_is_not_ours() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment(uid="d2"))
    store.put(REVISIONS, child(owner="d1"))
    assert store.observe(KEY, 0.0).children == {}  # type: ignore[union-attr]


def test_old_news_does_not_undo_new() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    store.put(REVISIONS, child(version=5, value="new"))
    assert store.put(REVISIONS, child(version=4, value="old")) == set()
    assert store.drop(REVISIONS, ("ns", "opt-1"), uid="c0") == set(), "an earlier one of that name"
    seen = store.observe(KEY, 0.0)
    assert seen is not None and seen.children[REVISION]["data"]["key"] == "new"


def test_the_watch_event_of_an_own_write_is_news() -> None:
    # Somebody else's change may have been in it.
    store = Store()
    store.put(REVISIONS, child(version=5))
    assert store.put(REVISIONS, child(version=5)) == {KEY}


def test_what_was_deleted_does_not_come_back_by_what_was_before_its_end() -> None:
    """A StatefulSet's status is written until it is gone, and the watch tells it late: a unit that
    is to go would seem to be there in part."""
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    store.put(REVISIONS, child(version=5))
    store.going(REVISIONS, ("ns", "opt-1"), "c1", {"kind": "Status"}, "2026-01-02T03:04:05Z")
    store.put(REVISIONS, child(version=6, value="late"))

    def there() -> Object:
        found = store.observe(KEY, 0.0)
        assert found is not None
        return dict(found.children)

    (late,) = there().values()
    assert late["data"]["key"] == "late" and "deletionTimestamp" in late["metadata"]
    store.drop(REVISIONS, ("ns", "opt-1"), "c1")
    assert there() == {} and not store._ended
    store.put(REVISIONS, child(version=8, uid="c2"))
    (anew,) = there().values()
    assert "deletionTimestamp" not in anew["metadata"]


def test_a_child_that_is_given_away_touches_its_former_owner() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    store.put(REVISIONS, child(version=1))
    assert store.put(REVISIONS, child(version=2, owner=None)) == {KEY}
    assert store.observe(KEY, 0.0).children == {}  # type: ignore[union-attr]


def test_a_pods_heartbeat_is_no_news() -> None:
    store = Store()
    assert store.put(PODS, pod(version=1)) == {KEY}
    assert store.put(PODS, pod(version=2, hostIP="10.0.0.1")) == set()
    assert store.put(PODS, pod(version=3, ready=True)) == {KEY}
    assert store.drop(PODS, ("ns", "opt-u0-prefill-0-0"), "p1") == {KEY}


def test_why_a_container_does_not_start_is_kept() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    said = "loading\n\nlooking\n  for it\nno such model\n"
    ended = {"exitCode": 3, "message": said, "startedAt": "2026-01-02T03:04:05Z"}
    status = {
        "name": "engine",
        "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {**ended, "finishedAt": "2026-01-02T03:04:35Z"}},
    }
    store.put(PODS, pod(containerStatuses=[status]))
    (found,) = store.observe(KEY, 0.0).pods  # type: ignore[union-attr]
    assert (found.waiting, found.restarts, found.ran_seconds) == ("CrashLoopBackOff", 4, 30.0)
    assert found.message == "engine: exit code 3: looking / for it / no such model"


def test_a_container_that_is_still_being_created_is_no_trouble() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    waiting = {"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}
    store.put(PODS, pod(containerStatuses=[waiting]))
    (found,) = store.observe(KEY, 0.0).pods  # type: ignore[union-attr]
    assert (found.waiting, found.message) == ("", "")


def test_accelerators_are_those_of_all_nodes_with_the_resource() -> None:
    store = Store()
    store.put(DEPLOYMENTS, deployment(accelerator={"type": "GPU", "resourceName": "x/gpu"}))
    for name, gpus, ready in (("a", "8", "True"), ("b", "4", "True"), ("c", "8", "False")):
        node = {
            "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
            "status": {
                "allocatable": {"x/gpu": gpus},
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }
        store.put(NODES, node)

    def seen() -> dict[str, tuple[int, bool]]:
        found = store.observe(KEY, 0.0)
        assert found is not None
        return {node.name: (count, node.usable) for node, count in found.accelerators}

    assert seen() == {"a": (8, True), "b": (4, True), "c": (8, False)}
    store.drop(NODES, ("", "b"), "b")
    assert seen() == {"a": (8, True), "c": (8, False)}


def test_a_node_that_changes_is_news_for_the_deployments_there() -> None:
    def node(version: int, status: str = "True", **spec: Any) -> Object:
        condition = {"type": "Ready", "status": status, "lastHeartbeatTime": str(version)}
        return {
            "metadata": {"name": "node", "uid": "n", "resourceVersion": str(version)},
            "spec": spec,
            "status": {"conditions": [condition]},
        }

    store = Store()
    store.put(DEPLOYMENTS, deployment())
    assert store.put(NODES, node(1)) == set(), "no pod of any deployment is there"
    store.put(PODS, pod())
    assert store.put(NODES, node(2)) == set(), "a heartbeat"
    assert store.put(NODES, node(3, unschedulable=True)) == {KEY}
    assert store.put(NODES, node(4, status="Unknown")) == {KEY}
    observed = store.observe(KEY, 0.0)
    assert observed is not None
    found = observed.nodes["node"]
    assert found is not None and not found.ready
    assert store.drop(NODES, ("", "node"), "n") == {KEY}
    assert store.observe(KEY, 0.0).nodes == {"node": None}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [DEPLOYMENTS, PODS, REVISIONS], ids=lambda kind: kind.kind)
def test_what_was_dropped_leaves_nothing(kind: Kind) -> None:
    store = Store()
    document = {DEPLOYMENTS: deployment(), PODS: pod(), REVISIONS: child()}[kind]
    metadata = document["metadata"]
    store.put(kind, document)
    assert store.drop(kind, ("ns", metadata["name"]), metadata["uid"]) == {KEY}
    assert not store.seen(kind) and not store.keys and not store.conditions()
    assert store.drop(kind, ("ns", metadata["name"]), metadata["uid"]) == set()


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=12), st.integers())
def test_in_any_order_the_newest_wins(events: list[tuple[int, bool]], seed: int) -> None:
    """kopf handles the events of one uid in order, those of different uids in any."""
    store = Store()
    store.put(DEPLOYMENTS, deployment())
    newest = [child(version=version, value=str(version)) for version, _ in events]
    random.Random(seed).shuffle(newest)
    for document in newest:
        store.put(REVISIONS, document)
    found = store.observe(KEY, 0.0)
    assert found is not None
    values = [one["data"]["key"] for one in found.children.values()]
    assert values == ([str(max(version for version, _ in events))] if events else [])
