"""All that the chart renders passes a real API server, in a namespace whose pods are restricted.

Strictly, by server-side dry run; and each pod template once more as a pod, since pod security
holds only pods to its standard.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

Object = dict[str, Any]

EVERYTHING: Object = {
    "imagePullSecrets": [{"name": "mine"}],
    "images": {"registry": "r.example", "engine": {"digest": "sha256:" + "0" * 64}},
    "operator": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "llm"},
        "podAnnotations": {"note": "1"},
        "resources": {"limits": {"cpu": 1.5}},
    },
    "webhook": {"enabled": True, "failurePolicy": "Fail", "timeoutSeconds": 3},
}


@pytest.fixture
def restricted(control_plane: Cluster) -> Iterator[str]:
    with control_plane.namespace("restricted") as name:
        enforce = "pod-security.kubernetes.io/enforce=restricted"
        control_plane.kubectl("label", "namespace", name, enforce)
        yield name


def with_pods(objects: list[Object]) -> list[Object]:
    """The objects, and what their controllers would create."""
    found: list[Object] = json.loads(json.dumps(objects))
    for one in list(found):
        template = one["spec"].get("template") if "spec" in one else None
        if template and one["kind"] in ("Deployment", "StatefulSet"):
            metadata = {**template["metadata"], "name": f"{one['metadata']['name']}-as-pod"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            found.append({**pod, "spec": template["spec"]})
    for one in found:
        if one["kind"] == "Pod":
            # A dry run makes no service account that the pod could name.
            one["spec"]["serviceAccountName"] = "default"
    return found


def assert_taken(cluster: Cluster, namespace: str, objects: list[Object]) -> None:
    flags = ("--dry-run=server", "--validate=strict", "--force-conflicts")
    said = cluster.apply(objects, namespace, *flags)
    assert said.count("serverside-applied (server dry run)") == len(objects)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_chart(control_plane: Cluster, restricted: str, render: Any, values: Object) -> None:
    for given in (values, {**values, "namespaces": [restricted]}):
        objects = with_pods(render(given, namespace=restricted, tests=True).objects)
        assert sum(one["kind"] == "Pod" for one in objects) == 2
        assert_taken(control_plane, restricted, objects)


def test_an_unrestricted_pod_would_be_refused(
    control_plane: Cluster, restricted: str, render: Any
) -> None:
    """The test above can fail."""
    *_, pod = with_pods(render(namespace=restricted).objects)
    pod["spec"]["containers"][0]["securityContext"].pop("capabilities")
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        assert_taken(control_plane, restricted, [pod])


def test_an_unknown_field_would_be_refused(
    control_plane: Cluster, restricted: str, render: Any
) -> None:
    *_, pod = with_pods(render(namespace=restricted).objects)
    pod["spec"]["containers"][0]["novelty"] = True
    with pytest.raises(CommandFailed, match="novelty"):
        assert_taken(control_plane, restricted, [pod])
