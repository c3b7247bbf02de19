"""A unit that a LocalQueue admits, on a real API server: the test says what Kueue would say."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster.conditions import conditions, is_true

Object = dict[str, Any]
GROUP = "kueue.x-k8s.io"
WORKLOADS = f"workloads.{GROUP}"
FLAVORS = f"resourceflavors.{GROUP}"
CLASSES = f"workloadpriorityclasses.{GROUP}"
KINDS = {WORKLOADS: "Workload", FLAVORS: "ResourceFlavor", CLASSES: "WorkloadPriorityClass"}


def definition(name: str, kind: str) -> Object:
    """With what of Kueue's schema decides how writes are merged."""
    conditions = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                **{word: {"type": "string"} for word in ("type", "status", "reason", "message")},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
            },
        },
    }
    open_ended: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {
        "type": "object",
        "properties": {
            "spec": open_ended,
            "value": {"type": "integer"},
            "status": {**open_ended, "properties": {"conditions": conditions}},
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "plural": name.partition(".")[0]},
            "scope": "Namespaced" if kind == "Workload" else "Cluster",
            "versions": [
                {
                    "name": "v1beta2",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


@pytest.fixture
def kinds_served(crd: Any) -> Iterator[None]:
    crd.apply([definition(name, kind) for name, kind in KINDS.items()])

    def served() -> bool:
        found = crd.kubectl("api-resources", f"--api-group={GROUP}", "--output=name").split()
        return set(KINDS) <= set(found)

    crd.wait_for("Kueue's kinds to be served", served)
    yield
    # Awaited, so that the next test finds none of them; their objects go first.
    crd.kubectl("delete", "crd", *KINDS, seconds=180)


@pytest.fixture
def operator(kinds_served: None, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--kueue=on")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


def queued(found: Object) -> Object:
    found["metadata"]["labels"] = {f"{GROUP}/queue-name": "team-a"}
    found["spec"]["topology"]["scheduler"] = "Kueue"
    return found


def workloads(fabric: Any) -> list[Object]:
    found: list[Object] = fabric.cluster.get(WORKLOADS, namespace=fabric.namespace)["items"]
    return found


def say(fabric: Any, name: str, status: Object, **conditions: str) -> None:
    """Kueue writes by a manager of its own."""
    said = [
        {
            "type": kind,
            "status": value.partition(":")[0],
            "reason": "Said",
            "message": value.partition(":")[2],
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, value in conditions.items()
    ]
    document = {
        "apiVersion": f"{GROUP}/v1beta2",
        "kind": "Workload",
        "metadata": {"name": name},
        "status": {**status, "conditions": said},
    }
    options = ("--subresource=status", "--force-conflicts")
    fabric.cluster.apply(document, fabric.namespace, *options)


def test_it_is_placed_when_it_is_admitted_and_goes_whole_when_it_is_evicted(fabric: Any) -> None:
    shape = fabric.whole_domain
    # Two domains, and a flavor that means one of them.
    with fabric.watched() as history, fabric.domains(2, 2, "queue-") as cliques:
        flavored = {node for node, clique in cliques.items() if clique == "queue-1"}
        for node in flavored:
            fabric.cluster.kubectl("label", f"node/{node}", "pool=ours")
        flavor = {"apiVersion": f"{GROUP}/v1beta2", "kind": "ResourceFlavor"}
        flavor |= {"metadata": {"name": "ours"}, "spec": {"nodeLabels": {"pool": "ours"}}}
        fabric.cluster.apply(flavor)
        fabric.apply(queued(fabric.deployment("opt", shape)))

        def told(reason: str, *words: str) -> Callable[[], bool]:
            def holds() -> bool:
                found = history.placed().get("opt", {"reason": "", "message": ""})
                return found["reason"] == reason and all(w in found["message"] for w in words)

            return holds

        fabric.wait_until("it is asked for", told("QueuedByKueue", "LocalQueue team-a is asked"))
        (asked,) = workloads(fabric)
        name = asked["metadata"]["name"]
        assert asked["spec"]["queueName"] == "team-a"
        counts = {one["name"]: one["count"] for one in asked["spec"]["podSets"]}
        assert counts == {"prefill": shape.prefill, "decode": shape.decode}
        say(fabric, name, {}, QuotaReserved="False:insufficient unused quota, 16 more needed")
        fabric.wait_until("it says why it waits", told("QueuedByKueue", "16 more needed", name))
        assert not history.owners(), "nothing of it exists until then"

        flavors = {"nvidia.com/gpu": "ours"}
        assignments = [{"name": role, "flavors": flavors, "count": counts[role]} for role in counts]
        admission = {"clusterQueue": "all", "podSetAssignments": assignments}
        say(fabric, name, {"admission": admission}, QuotaReserved="True:", Admitted="True:")
        fabric.wait_until_whole(history, {"opt": shape.pods})
        pods = history.units()["opt", "u0"]
        assert {pod["spec"]["nodeName"] for pod in pods} <= flavored, "where its flavor is"
        fabric.wait_until("Placed", told("Placed"))

        def ready() -> bool:
            return is_true(workloads(fabric)[0], "PodsReady")

        fabric.wait_until("Kueue is told that it is ready", ready)
        assert "Admitted" in conditions(workloads(fabric)[0])

        first = asked["metadata"]["uid"]
        words = {"QuotaReserved": "True:", "Admitted": "True:", "Evicted": "True:for a better one"}
        say(fabric, name, {"admission": admission}, **words)
        fabric.wait_until("it says so", told("EvictedByKueue", "for a better one"))
        fabric.wait_until("it is gone whole", lambda: not history.units())

        def follows() -> bool:
            found = workloads(fabric)
            return len(found) == 1 and found[0]["metadata"]["uid"] != first

        fabric.wait_until("it gives its quota back and queues again", follows)
        (again,) = workloads(fabric)
        assert "for a better one" in json.dumps(again["metadata"]["annotations"])
        fabric.cluster.kubectl("delete", "dsd/opt", f"-n{fabric.namespace}", "--wait=false")
        fabric.wait_until("what it asked for goes with it", lambda: not workloads(fabric))
        fabric.cluster.kubectl("delete", f"{FLAVORS}/ours")
