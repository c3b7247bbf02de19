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
