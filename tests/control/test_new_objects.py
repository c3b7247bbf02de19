"""What the operator relies on when it makes something new: said by a real API server."""

import json
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}, "data": {"a": "b"}}


def apply_new(cluster: Cluster, namespace: str, document: dict[str, Any]) -> None:
    metadata = {**document["metadata"], "resourceVersion": "1"}
    flags = ("apply", "--server-side", f"-n{namespace}", "--field-manager=us", "--filename=-")
    cluster.kubectl(*flags, stdin=json.dumps({**document, "metadata": metadata}))


@pytest.mark.parametrize("kind", ["built-in", "custom"])
def test_an_apply_at_version_1_makes_and_never_takes_over(
    crd: Cluster, namespace: str, sample: Any, kind: str
) -> None:
    document = MAP if kind == "built-in" else sample("new")
    apply_new(crd, namespace, document)
    with pytest.raises(CommandFailed, match="the object has been modified"):
        apply_new(crd, namespace, document)


def test_an_apply_of_what_was_seen_is_refused_where_it_changed(
    crd: Cluster, namespace: str
) -> None:
    crd.apply(MAP, namespace)
    seen = crd.get("configmap", "new", namespace)["metadata"]["resourceVersion"]
    late = {**MAP, "metadata": {"name": "new", "resourceVersion": seen}, "data": {"a": "c"}}
    flags = ("apply", "--server-side", "--force-conflicts", f"-n{namespace}", "--filename=-")
    crd.kubectl("label", "configmap", "new", f"-n{namespace}", "changed=yes")
    with pytest.raises(CommandFailed, match="the object has been modified"):
        crd.kubectl(*flags, stdin=json.dumps(late))
