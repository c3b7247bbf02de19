"""A unit that a Queue of Volcano lets in, on a real API server: the test says and does what Volcano
would, down to binding."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Object = dict[str, Any]
GROUP = "scheduling.volcano.sh"
PODGROUPS = f"podgroups.{GROUP}"
QUEUES = f"queues.{GROUP}"
KINDS = {PODGROUPS: "PodGroup", QUEUES: "Queue"}
MEMBER_OF = "scheduling.k8s.io/group-name"
CRD_SECONDS = 180.0


def definition(name: str, kind: str) -> Object:
    """A PodGroup has no status of its own to write: its phase is in the one object."""
    open_ended: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version: Object = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": open_ended, "status": open_ended},
            }
        },
    }
    if kind == "Queue":
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "plural": name.partition(".")[0]},
            "scope": "Namespaced" if kind == "PodGroup" else "Cluster",
            "versions": [version],
        },
    }


@pytest.fixture
def kinds_served(crd: Any) -> Iterator[None]:
    crd.apply([definition(name, kind) for name, kind in KINDS.items()])

    def served() -> bool:
        found = crd.kubectl("api-resources", f"--api-group={GROUP}", "--output=name").split()
        return set(KINDS) <= set(found)

    crd.wait_for("Volcano's kinds to be served", served)
    yield
    crd.kubectl("delete", "crd", *KINDS, seconds=CRD_SECONDS)


@pytest.fixture
def operator(kinds_served: None, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--volcano=on")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


class Volcano:
    def __init__(self, fabric: Any, history: Any) -> None:
        self.fabric, self.history = fabric, history
        self.here = f"--namespace={fabric.namespace}"

    def groups(self) -> list[Object]:
        found: list[Object] = self.fabric.cluster.get(PODGROUPS, namespace=self.fabric.namespace)[
            "items"
        ]
        return found

    def say(self, which: str, status: Object, *options: str) -> None:
        patch = json.dumps({"status": status})
        self.fabric.cluster.kubectl(
            "patch", which, self.here, "--type=merge", f"--patch={patch}", *options
        )

    def bind(self, name: str, cliques: dict[str, str]) -> None:
        """Its members, each to a node that it may go to."""
        for pod in self.history.units()[name, "u0"]:
            if pod["spec"].get("nodeName"):
                continue
            terms = pod["spec"]["affinity"]["nodeAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]["nodeSelectorTerms"]
            (domain,) = (m["values"][0] for m in terms[0]["matchExpressions"])
            node = min(node for node, clique in cliques.items() if clique == domain)
            metadata = {"name": pod["metadata"]["name"]}
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata}
            said = json.dumps(binding | {"target": target})
            path = f"/api/v1/namespaces/{self.fabric.namespace}/pods/{metadata['name']}/binding"
            self.fabric.cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=said)


def test_it_is_placed_when_it_is_let_in(fabric: Any) -> None:
    shape = fabric.Shape(1, 1, 2)
    with fabric.watched() as history, fabric.domains(1, 2, "group-") as cliques:
        volcano = Volcano(fabric, history)
        opt = fabric.deployment("opt", shape)
        opt["metadata"]["annotations"] = {f"{GROUP}/queue-name": "team-a"}
        opt["spec"]["topology"]["scheduler"] = "Volcano"
        fabric.apply(opt)

        def told(reason: str, *words: str) -> Callable[[], bool]:
            def holds() -> bool:
                found = history.placed().get("opt", {"reason": "", "message": ""})
                return found["reason"] == reason and all(w in found["message"] for w in words)

            return holds

        fabric.wait_until("it asks", told("QueuedByVolcano", "there is no Queue team-a"))
        queue = {"apiVersion": f"{GROUP}/v1beta1", "kind": "Queue", "metadata": {"name": "team-a"}}
        fabric.cluster.apply(queue | {"spec": {"capability": {"nvidia.com/gpu": "4"}}})
        fabric.wait_until("that is closed", told("QueuedByVolcano", "not opened by Volcano's"))
        volcano.say(f"{QUEUES}/team-a", {"state": "Open"}, "--subresource=status")
        fabric.wait_until("that is silent", told("QueuedByVolcano", "see whether Volcano runs"))
        (group,) = volcano.groups()
        name = group["metadata"]["name"]
        assert group["spec"]["minMember"] == shape.pods and group["spec"]["queue"] == "team-a"
        assert group["spec"]["minResources"]["nvidia.com/gpu"] == str(shape.gpus)
        which = f"{PODGROUPS}/{name}"
        volcano.say(which, {"phase": "Pending"})
        fabric.wait_until("it waits whole", told("QueuedByVolcano", f"describe podgroup {name}"))
        assert not history.owners(), "nothing of it exists until then"

        volcano.say(which, {"phase": "Inqueue"})
        fabric.wait_until(
            "its pods are made", lambda: len(history.units().get(("opt", "u0"), [])) == shape.pods
        )
        for pod in history.units()["opt", "u0"]:
            assert pod["spec"]["schedulerName"] == "volcano" and not pod["spec"].get("nodeName")
            assert pod["metadata"]["annotations"][MEMBER_OF] == name
        volcano.bind("opt", dict(cliques))
        volcano.say(which, {"phase": "Running"})
        fabric.wait_until_whole(history, {"opt": shape.pods})
        fabric.wait_until("Placed", told("Placed"))
        (group,) = volcano.groups()
        assert "distserve.io/let-in" in group["metadata"]["annotations"]
        assert group["status"]["phase"] == "Running", "what Volcano says is left alone"

        which = ("dsd/opt", volcano.here, "--type=merge")
        fabric.cluster.kubectl("patch", *which, '--patch={"spec":{"units":0}}')
        fabric.wait_until("its group goes after its pods", lambda: not volcano.groups())
        assert not history.units()
        fabric.cluster.kubectl("delete", f"{QUEUES}/team-a")
