"""What is read over the kept connection is what kubectl reads."""

import json

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "one", "labels": {"app": "one"}},
    "spec": {"containers": [{"name": "main", "image": "none"}]},
}
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "b"}}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("po", "one"), ("Pod", "one"), ("configmap/one", ""),
     ("priorityclasses", "system-node-critical"),
     ("roles.rbac.authorization.k8s.io", ""), ("pods,cm", "")],
)  # fmt: skip
def test_kinds_are_named_as_kubectl_names_them(
    control_plane: Cluster, kind: str, name: str
) -> None:
    with control_plane.namespace() as namespace:
        control_plane.apply([POD, MAP], namespace)
        ours = control_plane.get(kind, name, namespace)
        which = [kind, name] if name else [kind]
        told = control_plane.kubectl("get", *which, f"--namespace={namespace}", "--output=json")
        theirs = json.loads(told)
        found = [objects.get("items", [objects]) for objects in (ours, theirs)]
        names = [[(one["kind"], one["metadata"]["name"]) for one in some] for some in found]
        assert names[0] == names[1] and all(one["apiVersion"] for one in found[0])


def test_what_is_not_there_is_said_as_by_kubectl(control_plane: Cluster) -> None:
    with pytest.raises(CommandFailed, match=r"\(NotFound\): pods \"none\" not found"):
        control_plane.get("pod", "none")
    with pytest.raises(CommandFailed, match="doesn't have a resource type 'novelty'"):
        control_plane.get("novelty", "none")


def test_a_selector_leaves_out_the_others(control_plane: Cluster) -> None:
    with control_plane.namespace() as namespace:
        control_plane.apply(POD, namespace)
        counts = [
            len(control_plane.get("pods", namespace=namespace, selector=f"app={name}")["items"])
            for name in ("one", "two")
        ]
        assert counts == [1, 0]
