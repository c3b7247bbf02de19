"""Fake nodes in fabric domains, with the real scheduler beside, and all that watches told."""

import asyncio
import contextlib
import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import is_true
from tools.cluster.fake_nodes import TOLERATION

from distserve.operator.cluster import Cluster as Api
from distserve.operator.cluster import load_configuration
from distserve.operator.settings import CallSettings

Start = Callable[..., Any]
Object = dict[str, Any]
CLIQUE = "nvidia.com/gpu.clique"
GPU = "nvidia.com/gpu"
DOMAIN, UNIT, DEPLOYMENT = (f"distserve.io/{name}" for name in ("domain", "unit", "deployment"))
NODE_GPUS = 8
SECONDS = 120.0


@dataclass(frozen=True)
class Shape:
    """Instances of one unit, and accelerators of each."""

    prefill: int
    decode: int
    tensor: int

    @property
    def pods(self) -> int:
        return self.prefill + self.decode

    @property
    def gpus(self) -> int:
        return self.pods * self.tensor


WHOLE_DOMAIN = Shape(2, 2, 4)
"""Of two nodes."""


def deployment(name: str, shape: Shape, **spec: Any) -> Object:
    pod = {"podTemplate": {"spec": {"tolerations": [TOLERATION], **spec.pop("pod", {})}}}
    gateway = {"podTemplate": {"spec": {"tolerations": [TOLERATION]}}}

    def role(instances: int) -> Object:
        return {"instancesPerUnit": instances, "parallelism": {"tensor": shape.tensor}, **pod}

    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "strategy": {"name": "Disaggregated"},
            "slo": {"ttft": "2s", "tpot": "500ms"},
            "gateway": {"replicas": 1, **gateway},
            "prefill": role(shape.prefill),
            "decode": role(shape.decode),
            "topology": {
                "levels": [{"name": "nvlink", "nodeLabel": CLIQUE}],
                "packWithin": "nvlink",
                **spec,
            },
        },
    }


@dataclass
class History:
    """All that watches of deployments, StatefulSets and pods told, from before the first one."""

    events: list[Object] = field(default_factory=list)
    live: dict[str, Object] = field(default_factory=dict)
    """By uid, as last told."""

    def tell(self, event: Object) -> None:
        kind, found = event["type"], event["object"]
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return
        self.events.append(found)
        uid = found["metadata"]["uid"]
        if kind == "DELETED":
            self.live.pop(uid, None)
        else:
            self.live[uid] = found

    def units(self) -> dict[tuple[str, str], list[Object]]:
        """(deployment, unit) -> its pods."""
        found: dict[tuple[str, str], list[Object]] = defaultdict(list)
        for pod in list(self.live.values()):
            marks = pod["metadata"].get("labels") or {}
            if pod["kind"] == "Pod" and UNIT in marks:
                found[marks[DEPLOYMENT], marks[UNIT]].append(pod)
        return found

    def placed(self) -> dict[str, Object]:
        """Deployment -> its condition Placed, empty where nothing is told: each kind has a watch
        of its own, and a deployment may be shown later than its pods."""
        none = {"status": "", "reason": "", "message": ""}
        found: dict[str, Object] = defaultdict(lambda: none)
        for one in list(self.live.values()):
            if one["kind"] == "DistServeDeployment":
                conditions = (one.get("status") or {}).get("conditions") or []
                found[one["metadata"]["name"]] = next(
                    (c for c in conditions if c["type"] == "Placed"), none
                )
        return found

    def check(self, cliques: Mapping[str, str], deployment: str = "") -> int:
        """No pod (of the deployment, if one is named) was ever bound outside of the domain that its
        unit was given; returns how many were bound."""
        bound = set()
        for pod in self.events:
            marks = pod["metadata"].get("labels") or {}
            node = pod["spec"].get("nodeName")
            mine = UNIT in marks and deployment in ("", marks[DEPLOYMENT])
            if pod["kind"] == "Pod" and mine and node:
                assert cliques[node] == marks[DOMAIN], f"{pod['metadata']['name']} on {node}"
                bound.add(pod["metadata"]["uid"])
        return len(bound)

    def owners(self) -> set[str]:
        """Deployments that ever had a StatefulSet, or a pod of a unit."""
        marks = [one["metadata"].get("labels") or {} for one in self.events]
        return {one[DEPLOYMENT] for one in marks if UNIT in one}


@contextlib.contextmanager
def watched(cluster: Cluster, namespace: str) -> Iterator[History]:
    history = History()
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[threading.Thread] = []

    def read(output: Any) -> None:
        for line in output:
            if line.endswith(b"\n"):  # or its end was cut off with the watch's
                history.tell(json.loads(line))

    kinds = (
        ("api/v1", "pods"),
        ("apis/apps/v1", "statefulsets"),
        ("apis/distserve.io/v1alpha1", "distservedeployments"),
    )
    for api, plural in kinds:
        path = f"/{api}/namespaces/{namespace}/{plural}?watch=1"
        process = subprocess.Popen(
            [str(cluster._program("kubectl")), "get", f"--raw={path}"],
            env=cluster.env,
            stdout=subprocess.PIPE,
        )
        processes.append(process)
        threads.append(threading.Thread(target=read, args=(process.stdout,), daemon=True))
        threads[-1].start()
    try:
        yield history
    finally:
        for process, thread in zip(processes, threads, strict=True):
            process.terminate()
            process.wait(10)
            thread.join(10)
            assert process.stdout is not None
            process.stdout.close()


@contextlib.contextmanager
def domains(
    cluster: Cluster, count: int, nodes_each: int, prefix: str
) -> Iterator[Mapping[str, str]]:
    def clique(number: int) -> str:
        return f"{prefix}{number // nodes_each}"

    names = cluster.nodes(
        count * nodes_each, NODE_GPUS, lambda number: {CLIQUE: clique(number)}, prefix=prefix
    )
    try:
        yield {name: clique(number) for number, name in enumerate(names)}
    finally:
        cluster.remove_nodes(names)


def foreign_pod(name: str, node: str, gpus: int) -> Object:
    resources = {"limits": {GPU: str(gpus)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "tolerations": [TOLERATION],
            "containers": [{"name": "busy", "image": "busy", "resources": resources}],
        },
    }


def is_ready(pod: Object) -> bool:
    return is_true(pod, "Ready")


@pytest.fixture
def operator(crd: Cluster, namespace: str, start_distserve: Start) -> Any:
    found = start_distserve("--engine-check=off")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


@dataclass
class Fabric:
    """What the tests here build and look at; `operator` watches this test's namespace."""

    cluster: Cluster
    namespace: str
    operator: Any
    Shape = Shape
    whole_domain = WHOLE_DOMAIN
    deployment = staticmethod(deployment)
    foreign_pod = staticmethod(foreign_pod)
    is_ready = staticmethod(is_ready)

    def apply(self, *documents: Object) -> None:
        self.cluster.apply(list(documents), self.namespace)

    def burst(self, *documents: Object) -> None:
        """All at once, as an installer's many workers make them."""

        async def create() -> None:
            api = Api(await load_configuration(self.cluster.kubeconfig), CallSettings())
            api.may_write = lambda: True
            metadata = {"namespace": self.namespace}
            named = [one | {"metadata": one["metadata"] | metadata} for one in documents]
            try:
                await asyncio.gather(*map(api.create, named))
            finally:
                await api.close()
                # Connections with TLS are closed a moment after their session.
                await asyncio.sleep(0.25)

        asyncio.run(create())

    def domains(
        self, count: int, nodes_each: int, prefix: str
    ) -> contextlib.AbstractContextManager[Mapping[str, str]]:
        """Node -> its NVLink domain."""
        return domains(self.cluster, count, nodes_each, prefix)

    def watched(self) -> contextlib.AbstractContextManager[History]:
        return watched(self.cluster, self.namespace)

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
        self.operator.wait_until(what, holds, seconds)

    def wait_until_whole(self, history: History, wanted: dict[str, int]) -> None:
        """Until these deployments have so many pods, all of them Ready."""

        def whole() -> bool:
            counts: dict[str, int] = defaultdict(int)
            for (name, _), pods in history.units().items():
                counts[name] += sum(map(is_ready, pods))
            return counts == wanted

        self.wait_until(f"{wanted} pods are Ready", whole, 3 * SECONDS)


@pytest.fixture
def fabric(crd: Cluster, namespace: str, operator: Any) -> Fabric:
    return Fabric(crd, namespace, operator)


@dataclass(frozen=True)
class Seen:
    """What a user sees of deployments whose units are groups of another scheduler."""

    fabric: Fabric
    history: History
    kind: str
    """Of the groups, as podgroups.scheduling.volcano.sh."""

    def until(self, name: str, reason: str, *words: str) -> str:
        def holds() -> bool:
            found = self.history.placed().get(name, {"reason": "", "message": ""})
            return found["reason"] == reason and all(one in found["message"] for one in words)

        self.wait(f"{name} is {reason}", holds)
        return str(self.history.placed()[name]["message"])

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        self.fabric.wait_until(what, holds, 3 * 60.0)

    def whole(self, **pods: int) -> None:
        self.fabric.wait_until_whole(self.history, pods)

    def is_whole(self, name: str, shape: Shape) -> bool:
        pods = self.history.units().get((name, "u0"), [])
        return sum(bool(one["spec"].get("nodeName")) for one in pods) == shape.pods

    def delete(self, name: str) -> None:
        where = f"--namespace={self.fabric.namespace}"
        self.fabric.cluster.kubectl("delete", f"dsd/{name}", where, "--wait=false")

    def groups(self, name: str) -> list[Object]:
        selector = f"{DEPLOYMENT}={name}"
        found: list[Object] = self.fabric.cluster.get(
            self.kind, namespace=self.fabric.namespace, selector=selector
        )["items"]
        return found

    def lose(self, pods: list[Object]) -> None:
        names = [f"pod/{one['metadata']['name']}" for one in pods]
        where = f"--namespace={self.fabric.namespace}"
        self.fabric.cluster.kubectl("delete", *names, where, "--wait=false")
        gone = {one["metadata"]["uid"] for one in pods}
        self.wait("they are gone", lambda: not gone & self.history.live.keys())

    def first_bound_with(self, name: str) -> int:
        """How many pods of it were there when its first one got a node."""
        known: set[str] = set()
        for one in self.history.events:
            marks = one["metadata"].get("labels") or {}
            if one["kind"] == "Pod" and UNIT in marks and marks[DEPLOYMENT] == name:
                known.add(one["metadata"]["uid"])
                if one["spec"].get("nodeName"):
                    return len(known)
        return 0

    def most_bound(self) -> int:
        """At a time, of all deployments."""
        bound: set[str] = set()
        most = 0
        for one in self.history.events:
            if one["kind"] == "Pod" and UNIT in (one["metadata"].get("labels") or {}):
                uid = one["metadata"]["uid"]
                there = one["spec"].get("nodeName") and "deletionTimestamp" not in one["metadata"]
                (bound.add if there else bound.discard)(uid)
                most = max(most, len(bound))
        return most


@pytest.fixture
def see(fabric: Fabric) -> Callable[[History, str], Seen]:
    return lambda history, kind: Seen(fabric, history, kind)
