"""Quota shared through the real Kueue: units admitted, preempted and placed whole."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster import kueue
from tools.cluster.conditions import conditions, is_true
from tools.cluster.fixtures import or_skip

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
"""Where Kueue is not built yet that is done first."""

Object = dict[str, Any]
GROUP = "kueue.x-k8s.io"
API = f"{GROUP}/v1beta2"
WORKLOADS = f"workloads.{GROUP}"
POOL = "pool"
PODS_READY_SECONDS = 40
STARTS_SECONDS = 120.0
"""Beside Kueue, which lists everything as well."""
CLASSES = {"batch": 1, "serving": 100}


@pytest.fixture
def kueue_runs(crd: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """With the fields of its configuration that the test asks for."""
    with or_skip("Kueue"), kueue.controller(crd, **getattr(request, "param", {})):
        yield


@pytest.fixture
def operator(kueue_runs: None, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--kueue=on")
    found.wait_until("ready", lambda: found.probe("/readyz") == 200, STARTS_SECONDS)
    found.wait_until("leads", lambda: found.leads)
    return found


def new(kind: str, name: str, spec: Object, **fields: Any) -> Object:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec, **fields}


def queues(gpus: int) -> list[Object]:
    """Quota for so many GPUs, on nodes of one pool alone."""
    quotas = [
        {"name": "nvidia.com/gpu", "nominalQuota": str(gpus)},
        {"name": "cpu", "nominalQuota": "1000"},
        {"name": "memory", "nominalQuota": "10Ti"},
    ]
    covered = [one["name"] for one in quotas]
    group = {"coveredResources": covered, "flavors": [{"name": "ours", "resources": quotas}]}
    cluster_queue = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [group],
    }
    classes = [
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}}
        | {"value": value}
        for name, value in CLASSES.items()
    ]
    return [
        *classes,
        new("ResourceFlavor", "ours", {"nodeLabels": {POOL: "ours"}}),
        new("ClusterQueue", "everybody", cluster_queue),
        new("LocalQueue", "team-a", {"clusterQueue": "everybody"}),
    ]


def queued(found: Object, priority: str = "batch") -> Object:
    marks = {"queue-name": "team-a", "priority-class": priority}
    found["metadata"]["labels"] = {f"{GROUP}/{name}": value for name, value in marks.items()}
    found["spec"]["topology"]["scheduler"] = "Kueue"
    return found


class Seen:
    """What a user sees of a deployment."""

    def __init__(self, fabric: Any, history: Any) -> None:
        self.fabric, self.history = fabric, history

    def until(self, name: str, reason: str, *words: str) -> str:
        def holds() -> bool:
            found = self.history.placed().get(name, {"reason": "", "message": ""})
            return found["reason"] == reason and all(one in found["message"] for one in words)

        self.fabric.wait_until(f"{name} is {reason}", holds, 3 * 60.0)
        return str(self.history.placed()[name]["message"])

    def whole(self, **pods: int) -> None:
        self.fabric.wait_until_whole(self.history, pods)

    def delete(self, name: str) -> None:
        self.fabric.cluster.kubectl(
            "delete", f"dsd/{name}", f"--namespace={self.fabric.namespace}", "--wait=false"
        )

    def workloads(self, name: str) -> list[Object]:
        found: list[Object] = self.fabric.cluster.get(
            WORKLOADS,
            namespace=self.fabric.namespace,
            selector=f"distserve.io/deployment={name}",
        )["items"]
        return found

    def held(self, name: str) -> set[str]:
        """Conditions of its one Workload that are True."""
        (found,) = self.workloads(name)
        return {kind for kind in conditions(found) if is_true(found, kind)}

    def activate(self, name: str, active: bool) -> None:
        (found,) = self.workloads(name)
        patch = json.dumps({"spec": {"active": active}})
        which = (f"{WORKLOADS}/{found['metadata']['name']}", f"-n{self.fabric.namespace}")
        self.fabric.cluster.kubectl("patch", *which, "--type=merge", f"--patch={patch}")

    def overlap(self, one: str, other: str) -> int:
        """Most pods that both had on nodes at a time, from all that the watches told."""
        live: dict[str, str] = {}
        most = 0
        for event in self.history.events:
            marks = event["metadata"].get("labels") or {}
            if event["kind"] != "Pod" or "distserve.io/unit" not in marks:
                continue
            uid = event["metadata"]["uid"]
            if event["spec"].get("nodeName") and "deletionTimestamp" not in event["metadata"]:
                live[uid] = marks["distserve.io/deployment"]
            else:
                live.pop(uid, None)
            counts = [list(live.values()).count(name) for name in (one, other)]
            most = max(most, min(counts))
        return most


def test_a_quota_for_one_unit(fabric: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(4, 2, "kueue-") as cliques:
        ours = {node for node, clique in cliques.items() if clique in ("kueue-2", "kueue-3")}
        for node in ours:
            fabric.cluster.kubectl("label", f"node/{node}", f"{POOL}=ours")
        seen = Seen(fabric, history)
        said = {}

        fabric.cluster.apply(queues(shape.gpus)[: len(CLASSES)])
        fabric.apply(queued(fabric.deployment("early", shape)))
        said["no queue"] = seen.until("early", "QueuedByKueue", "LocalQueue team-a doesn't exist")
        seen.delete("early")
        fabric.cluster.apply(queues(shape.gpus), fabric.namespace)

        fabric.apply(queued(fabric.deployment("first", shape)))
        seen.whole(first=shape.pods)
        fabric.apply(queued(fabric.deployment("second", shape)))
        said["waits"] = seen.until("second", "QueuedByKueue", "LocalQueue team-a", "insufficient")
        assert "second" not in history.owners(), "nothing of it exists"

        seen.delete("first")
        seen.whole(second=shape.pods)
        seen.until("second", "Placed")
        # Told that it is ready, as waitForPodsReady wants it.
        told = {"QuotaReserved", "Admitted", "PodsReady"}
        fabric.wait_until("it is told", lambda: told <= seen.held("second"))

        fabric.apply(queued(fabric.deployment("urgent", shape), "serving"))
        seen.whole(urgent=shape.pods)
        said["preempted"] = seen.until("second", "QueuedByKueue", "taken back before: Preempted")
        assert seen.overlap("second", "urgent") == 0, "it went whole before the other came"

        seen.delete("urgent")
        seen.whole(second=shape.pods)
        seen.until("second", "Placed")

        seen.activate("second", False)
        said["deactivated"] = seen.until("second", "QueuedByKueue", "is deactivated")
        assert not history.units()
        seen.activate("second", True)
        seen.whole(second=shape.pods)
        seen.until("second", "Placed")
        bound = {
            one["spec"]["nodeName"]
            for one in history.events
            if one["kind"] == "Pod"
            and one["spec"].get("nodeName")
            and "distserve.io/unit" in (one["metadata"].get("labels") or {})
        }
        assert bound <= ours, "on the flavor's nodes alone"
        history.check(cliques)
        seen.delete("second")
    with capsys.disabled():
        for what, words in said.items():
            print(f"\n  {what}: {words}", end="")
        print()


@pytest.mark.parametrize(
    "kueue_runs", [{"waitForPodsReady": {"timeout": f"{PODS_READY_SECONDS}s"}}], indirect=True
)
def test_quota_of_what_no_domain_takes_comes_back(fabric: Any) -> None:
    large, small = fabric.whole_domain, fabric.Shape(1, 1, 2)
    # Two nodes, each a domain by itself.
    with fabric.watched() as history, fabric.domains(2, 1, "narrow-") as cliques:
        for node in cliques:
            fabric.cluster.kubectl("label", f"node/{node}", f"{POOL}=ours")
        fabric.cluster.apply(queues(large.gpus + small.gpus), fabric.namespace)
        seen = Seen(fabric, history)
        fabric.apply(queued(fabric.deployment("large", large)))
        seen.until("large", "UnitLargerThanDomain", "it holds its quota of LocalQueue team-a")
        fabric.apply(queued(fabric.deployment("small", small)))
        seen.whole(small=small.pods)
        seen.until("small", "Placed")
        (served,) = seen.workloads("small")
        asked: dict[str, str] = {}

        def twice() -> bool:
            for one in seen.workloads("large"):
                notes = one["metadata"].get("annotations") or {}
                asked[one["metadata"]["uid"]] = notes.get("distserve.io/before", "")
            return len(asked) > 2

        fabric.wait_until("its quota is taken back twice", twice, 6 * PODS_READY_SECONDS)
        assert sum("PodsReadyTimeout" in why for why in asked.values()) == len(asked) - 1
        (still,) = seen.workloads("small")
        assert still["metadata"]["uid"] == served["metadata"]["uid"], "it told that it is ready"
        assert history.owners() == {"small"}
        seen.delete("large")
        seen.delete("small")
