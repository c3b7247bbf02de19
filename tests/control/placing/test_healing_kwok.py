"""Nodes that are deleted, silent, shut down, cordoned, relabelled: what becomes of a unit there.

One operator for all tests here; the last one ends it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from tools.cluster.conditions import conditions

Object = dict[str, Any]
CLIQUE, GPU = "nvidia.com/gpu.clique", "nvidia.com/gpu"
UNREACHABLE = "node.kubernetes.io/unreachable"
NODE_LOST_AFTER = 4
GANG_TIMEOUT = 3


@pytest.fixture
def namespace(shared_namespace: str) -> str:
    return shared_namespace


@pytest.fixture
def operator(shared_operator: Any) -> Any:
    return shared_operator


@dataclass
class Running:
    """A deployment of one unit that is whole."""

    fabric: Any
    name: str
    cliques: Mapping[str, str]
    history: Any
    size: int

    def pods(self) -> list[Object]:
        found: list[Object] = self.history.units().get((self.name, "u0"), [])
        return found

    def uids(self, role: str = "") -> set[str]:
        return {
            pod["metadata"]["uid"]
            for pod in self.pods()
            if role in ("", pod["metadata"]["labels"]["distserve.io/role"])
        }

    def nodes(self) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        for pod in self.pods():
            found.setdefault(pod["spec"].get("nodeName", ""), []).append(pod)
        return found

    def homes(self) -> set[str]:
        return {self.cliques[node] for node in self.nodes()}

    def whole_without(self, *nodes: str) -> bool:
        ready = [
            pod
            for pod in self.pods()
            if self.fabric.is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
        ]
        return len(ready) == len(self.pods()) == self.size and not set(nodes) & self.nodes().keys()

    def wait_until_whole(self, *without: str) -> float:
        """Returns the time when it was: all pods Ready, on other nodes than these."""
        what = f"{self.name} is whole, away from {without}"
        self.fabric.wait_until(what, lambda: self.whole_without(*without))
        return time.time()

    def condition(self, kind: str) -> Object:
        live = next(
            one
            for one in list(self.history.live.values())
            if one["kind"] == "DistServeDeployment" and one["metadata"]["name"] == self.name
        )
        return conditions(live).get(kind, {"status": "", "reason": "", "message": ""})

    def wait_for(self, kind: str, status: str, reason: str) -> str:
        """Returns the condition's message."""

        def holds() -> bool:
            found = self.condition(kind)
            return (found["status"], found["reason"]) == (status, reason)

        self.fabric.wait_until(f"{kind}={status}, {reason}", holds)
        return str(self.condition(kind)["message"])

    def events(self, reason: str) -> list[str]:
        """Notes of the events about it."""
        said = self.fabric.cluster.kubectl(
            "get", "events.events.k8s.io", f"-n{self.fabric.namespace}", "--output=json"
        )
        return [
            one["note"]
            for one in json.loads(said)["items"]
            if one.get("reason") == reason and one["regarding"]["name"] == self.name
        ]

    def told(self, reason: str) -> str:
        self.fabric.wait_until(f"an event {reason}", lambda: bool(self.events(reason)))
        assert len(self.events(reason)) == 1, self.events(reason)
        (note,) = self.events(reason)
        return note


Run = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture
def running(fabric: Any) -> Run:
    """A unit of four pods on two of a domain's nodes, whole; it goes at the end."""

    @contextlib.contextmanager
    def run(
        name: str, domains: int, nodes_each: int, shape: Any = None, pods_each: int = 1
    ) -> Iterator[Running]:
        shape = shape or fabric.whole_domain
        document = fabric.deployment(name, shape, gangTimeout=f"{GANG_TIMEOUT}s")
        document["spec"]["restart"] = {"nodeLostAfter": f"{NODE_LOST_AFTER}s"}
        prefix = f"{name}-"
        with fabric.domains(domains, nodes_each, prefix) as cliques, fabric.watched() as history:
            found = Running(fabric, name, cliques, history, shape.pods * pods_each)
            fabric.apply(document)
            found.wait_until_whole()
            found.wait_for("Placed", "True", "Placed")
            try:
                yield found
            finally:
                fabric.cluster.kubectl("delete", f"dsd/{name}", f"-n{fabric.namespace}")
            # A pod on a node that is silent ends with its node only.
            fabric.wait_until("its sets are gone", lambda: not any(
                one["kind"] == "StatefulSet" for one in list(history.live.values())
            ))  # fmt: skip

    return run


def let_go(cluster: Any, node: str) -> None:
    """Its kubelet does nothing any more."""
    cluster.kubectl("annotate", f"node/{node}", "kwok.x-k8s.io/node-")


def test_the_pods_of_a_deleted_node_come_back_in_their_domain(
    running: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with running("deleted", 2, 3) as opt:
        home, node = opt.homes(), next(iter(opt.nodes()))
        stay = {
            p["metadata"]["uid"] for at, pods in opt.nodes().items() if at != node for p in pods
        }
        began = time.time()
        opt.fabric.cluster.remove_nodes([node])
        took = opt.wait_until_whole(node) - began
        assert opt.homes() == home and stay < opt.uids()
        opt.history.check(opt.cliques, opt.name)
        note = opt.told("NodeLost")
        # Where the gateway's pod was there too, it is the first by name.
        assert note.startswith(f"node {node} was deleted: deleted-") and "deleted-u0-" in note
        opt.wait_for("Placed", "True", "Placed")
    with capsys.disabled():
        print(f"\n  {note}\n  node deleted -> unit whole: {took:.1f} s")


def test_a_silent_node_is_left_after_its_time(
    running: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with running("silent", 2, 3) as opt:
        cluster, home, node = opt.fabric.cluster, opt.homes(), next(iter(opt.nodes()))
        let_go(cluster, node)
        unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        patch = json.dumps({"status": {"conditions": [unknown]}})
        cluster.kubectl("patch", f"node/{node}", "--subresource=status", f"--patch={patch}")

        def tainted() -> list[Object]:
            taints = cluster.get("node", node)["spec"].get("taints") or []
            return [t for t in taints if t["key"] == UNREACHABLE and t["effect"] == "NoExecute"]

        opt.fabric.wait_until("the control plane taints it", lambda: bool(tainted()))
        since = datetime.fromisoformat(tainted()[0]["timeAdded"]).timestamp()
        took = opt.wait_until_whole(node) - since
        assert took >= NODE_LOST_AFTER and opt.homes() == home
        opt.history.check(opt.cliques, opt.name)
        note = opt.told("NodeLost")
        words = f"node {node} has been unreachable for {NODE_LOST_AFTER} s (restart.nodeLostAfter)"
        assert note.startswith(words)
    with capsys.disabled():
        print(f"\n  {note}\n  unreachable taint -> unit whole: {took:.1f} s")


def test_a_node_that_is_out_of_service_is_left_at_once(
    running: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with running("out", 1, 3) as opt:
        node = next(iter(opt.nodes()))
        let_go(opt.fabric.cluster, node)
        began = time.time()
        taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        opt.fabric.cluster.kubectl("taint", "node", node, taint)
        took = opt.wait_until_whole(node) - began
        opt.history.check(opt.cliques, opt.name)
        note = opt.told("NodeLost")
        assert note.startswith(f"node {node} is out of service: ")
    with capsys.disabled():
        print(f"\n  {note}\n  tainted out-of-service -> unit whole: {took:.1f} s")


def test_on_a_cordoned_node_pods_run_on(running: Run) -> None:
    with running("cordoned", 2, 3) as opt:
        cluster, home = opt.fabric.cluster, opt.homes()
        node, (first, *others) = next(iter(opt.nodes().items()))
        cluster.kubectl("cordon", node)
        name = first["metadata"]["name"]
        cluster.kubectl("delete", f"pod/{name}", f"-n{opt.fabric.namespace}", "--wait=false")
        # That pod alone goes elsewhere, and stays in the domain.
        opt.fabric.wait_until(
            "it is made again", lambda: first["metadata"]["uid"] not in opt.uids()
        )
        opt.wait_until_whole()
        stay = {pod["metadata"]["uid"] for pod in others}
        assert stay == {pod["metadata"]["uid"] for pod in opt.nodes().get(node, [])}
        assert opt.homes() == home
        assert opt.condition("Placed")["status"] == "True" and opt.events("NodeLost") == []
        opt.history.check(opt.cliques, opt.name)


def test_a_node_that_leaves_the_domain_is_told(
    running: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with running("relabelled", 1, 2) as opt:
        cluster, (home,), before = opt.fabric.cluster, opt.homes(), opt.uids()
        node = next(iter(opt.nodes()))
        cluster.kubectl("label", f"node/{node}", "--overwrite", f"{CLIQUE}=elsewhere")
        message = opt.wait_for("Placed", "False", "DomainSplit")
        assert f"node {node}, which left nvlink domain {home} " in message
        assert f"(its label {CLIQUE} is now elsewhere)" in message
        assert opt.told("DomainSplit") == message
        cluster.kubectl("label", f"node/{node}", "--overwrite", f"{CLIQUE}={home}")
        opt.wait_for("Placed", "True", "Placed")
        assert opt.uids() == before, "nothing was moved"
    with capsys.disabled():
        print(f"\n  {message}")


def test_ranks_of_several_pods_begin_anew_together(
    running: Run, fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two nodes for each instance: one pod that is lost ends the other, and nobody else."""
    with running("several", 1, 5, fabric.Shape(1, 1, 2 * 8), pods_each=2) as opt:
        cluster, where = opt.fabric.cluster, f"-n{opt.fabric.namespace}"
        name = f"{opt.name}-u0-decode-0"

        def met() -> bool:
            """Those who are there now are written down as having begun together."""
            note = "{.metadata.annotations.distserve\\.io/world}"
            said = cluster.kubectl("get", f"statefulset/{name}", where, f"--output=jsonpath={note}")
            return set(json.loads(said or "{}")) == opt.uids("decode")

        def begun_anew(before: set[str]) -> bool:
            return not before & opt.uids("decode") and opt.whole_without() and met()

        opt.fabric.wait_until("they are written down", met)
        prefill, decode = opt.uids("prefill"), opt.uids("decode")
        began = time.time()
        cluster.kubectl("delete", f"pod/{name}-1", where, "--wait=false")
        opt.fabric.wait_until("both began anew", lambda: begun_anew(decode))
        took = time.time() - began
        note = opt.told("InstanceRestarted")
        assert note.startswith(f"instance {name} lost a pod") and f"{name}-0 ends as well" in note

        decode = opt.uids("decode")
        lost = next(
            node
            for node, pods in opt.nodes().items()
            if {pod["metadata"]["name"] for pod in pods} & {f"{name}-0"}
        )
        cluster.remove_nodes([lost])
        opt.fabric.wait_until("both began anew", lambda: begun_anew(decode))

        decode = opt.uids("decode")
        # In one call: one by one, and by name, the second might be the one that was made for it.
        both = f"distserve.io/deployment={opt.name},distserve.io/role=decode"
        pods = f"/api/v1/namespaces/{opt.fabric.namespace}/pods?labelSelector={both}"
        cluster.kubectl("delete", "--raw", pods)
        opt.fabric.wait_until("both began anew", lambda: begun_anew(decode))
        assert opt.uids("prefill") == prefill, "another instance is none of its business"
        opt.history.check(opt.cliques, opt.name)
        made = {
            one["metadata"]["uid"]: (
                one["metadata"]["creationTimestamp"],
                one["metadata"]["name"],
                one["spec"].get("nodeName"),
            )
            for one in opt.history.events
            if one["kind"] == "Pod" and one["metadata"]["name"].startswith(name)
        }
        # The one call ends them one after the other: who was made in between ends once more.
        told = f"not made anew once for each loss: {sorted(made.values())}"
        assert 2 * 4 <= len(made) <= 2 * 4 + 1, told
    with capsys.disabled():
        print(f"\n  {note}\n  pod deleted -> all pods of its instance Ready anew: {took:.1f} s")


def test_a_unit_whose_domain_shrank_is_placed_anew_whole(
    running: Run, fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefill on one node, decode on the other: without one of them nothing serves."""
    with running("shrunk", 1, 2, fabric.Shape(1, 1, 8)) as opt:
        before, (home,) = opt.uids(), opt.homes()
        node = next(iter(opt.nodes()))
        began = time.time()
        opt.fabric.cluster.remove_nodes([node])
        waits = opt.wait_for("Placed", "False", "Unschedulable")
        lacks = opt.wait_for("Placed", "False", "UnitLargerThanDomain")
        told = time.time() - began
        assert "after topology.gangTimeout the unit is placed anew" in waits
        assert f"needs 16 {GPU} in nvlink domain {home}, which has 8 when empty" in lacks
        assert opt.events("NoRoom") == [], "its own pods, that end, are not in its way"
        opt.fabric.wait_until("it went whole", lambda: opt.pods() == [])
        with fabric.domains(1, 2, "grown-") as more:
            opt.cliques = {**opt.cliques, **more}
            added = time.time()
            took = opt.wait_until_whole() - added
            assert opt.homes() == {"grown-0"} and not before & opt.uids()
            opt.wait_for("Placed", "True", "Placed")
            opt.history.check(opt.cliques, opt.name)
    with capsys.disabled():
        print(
            f"\n  {waits}\n  {lacks}\n  domain shrunk -> told that there is no room: {told:.1f} s "
            f"(gangTimeout {GANG_TIMEOUT} s); room elsewhere -> unit whole: {took:.1f} s"
        )


def test_with_the_operator_gone_pods_return_to_their_domain(running: Run, operator: Any) -> None:
    """The last test here. A larger and emptier domain is at hand."""
    with running("alone", 2, 3) as opt:
        operator.end()
        cluster, home = opt.fabric.cluster, opt.homes()
        node, pods = next(iter(opt.nodes().items()))
        cluster.kubectl("cordon", node)
        names = [f"pod/{pod['metadata']['name']}" for pod in pods]
        cluster.kubectl(
            "delete", *names, f"-n{opt.fabric.namespace}", "--grace-period=0", "--force"
        )
        opt.wait_until_whole(node)
        assert opt.homes() == home
        opt.history.check(opt.cliques, opt.name)
