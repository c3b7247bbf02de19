"""`distserve operator` as a user meets it, on a real API server with fake nodes."""

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import conditions

Start = Callable[..., Any]
KINDS = (
    "serviceaccounts,configmaps,secrets,services,statefulsets,deployments,controllerrevisions,"
    "poddisruptionbudgets,networkpolicies,rolebindings,pods,replicasets,endpointslices"
)


@pytest.fixture(scope="module")
def nodes(control_plane: Cluster) -> Iterator[list[str]]:
    names = control_plane.nodes(2, gpus=4, prefix="operator-test")
    yield names
    control_plane.remove_nodes(names)


def wait_for_condition(
    cluster: Cluster, namespace: str, operator: Any, name: str, status: str, reason: str = ""
) -> Any:
    def holds() -> bool:
        found = conditions(cluster.get("dsd", "opt", namespace)).get(name) or {}
        return bool(found.get("status") == status and reason in found["reason"])

    operator.wait_until(f"{name}={status} {reason}", holds, seconds=60.0)
    return conditions(cluster.get("dsd", "opt", namespace))[name]


def generations(cluster: Cluster, namespace: str) -> dict[str, tuple[str, int]]:
    sets = cluster.get("statefulsets", namespace=namespace)["items"]
    return {
        one["metadata"]["name"]: (one["metadata"]["uid"], one["metadata"]["generation"])
        for one in sets
    }


def test_the_life_of_a_deployment(
    crd: Cluster, namespace: str, nodes: list[str], start_distserve: Start, deployment: Any
) -> None:
    operator = start_distserve()
    before = names(crd, namespace)
    crd.apply(deployment(), namespace)
    wait_for_condition(crd, namespace, operator, "Ready", "True")
    key = crd.get("secret", "opt-key", namespace)["data"]["key"]
    made = generations(crd, namespace)
    assert set(made) == {"opt-u0-prefill-0", "opt-u0-decode-0"}
    where = [one["spec"]["nodeName"] for one in crd.get("pods", namespace=namespace)["items"]]
    assert set(where) <= set(nodes)

    # Another replica goes on with what is there: nothing is made, moved or restarted.
    assert operator.end(signal.SIGTERM) == 0
    operator = start_distserve()
    operator.wait_until("leads", lambda: operator.leads)
    operator.wait_until(
        "decided", lambda: operator.metric('distserve_operator_reconcile_total{result="done"}') > 0
    )
    assert generations(crd, namespace) == made

    patch = json.dumps({"spec": {"replicas": 7}})
    crd.kubectl("patch", "sts/opt-u0-decode-0", f"-n{namespace}", f"--patch={patch}")
    operator.wait_until(
        "the edit is repaired",
        lambda: crd.get("sts", "opt-u0-decode-0", namespace)["spec"]["replicas"] == 1,
    )

    crd.apply(deployment(units=2), namespace)
    operator.wait_until("two units", lambda: len(generations(crd, namespace)) == 4)
    wait_for_condition(crd, namespace, operator, "Ready", "True")
    assert crd.get("secret", "opt-key", namespace)["data"]["key"] == key, "made once"
    crd.kubectl("scale", "dsd/opt", f"-n{namespace}", "--replicas=1")
    operator.wait_until("one unit", lambda: len(generations(crd, namespace)) == 2)

    crd.kubectl("delete", "dsd/opt", f"-n{namespace}", "--timeout=20s")
    crd.wait_for("nothing is left", lambda: names(crd, namespace) == before)
    said = operator.log.read_text()
    assert '"level": "error"' not in said, operator.tail()


def test_somebody_elses_service_of_our_name_is_named(
    crd: Cluster, namespace: str, nodes: list[str], start_distserve: Start, deployment: Any
) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "opt-gateway"}}
    crd.apply(service | {"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}, namespace)
    operator = start_distserve()
    crd.apply(deployment(), namespace)

    def told() -> bool:
        found = conditions(crd.get("dsd", "opt", namespace)).values()
        return any("opt-gateway" in one["message"] and "Service" in one["message"] for one in found)

    operator.wait_until("a condition names it", told)
    live = crd.get("service", "opt-gateway", namespace)
    assert live["spec"]["selector"] == {"a": "b"} and "ownerReferences" not in live["metadata"]


def names(cluster: Cluster, namespace: str) -> set[str]:
    """Everything in the namespace but events and what speaks of the leader."""
    found = cluster.get(KINDS, namespace=namespace)["items"]
    return {f"{one['kind']}/{one['metadata']['name']}" for one in found}
