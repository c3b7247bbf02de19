"""Units on many fabric domains, with the real scheduler beside: whole in one of them, or not there.

Figures are printed beside their aims; where something is waited for, the bound is no aim.
"""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.fake_nodes import TOLERATION

Start = Callable[..., Any]
Object = dict[str, Any]
CLIQUE = "nvidia.com/gpu.clique"
GPU = "nvidia.com/gpu"
DOMAIN, UNIT, DEPLOYMENT = (f"distserve.io/{name}" for name in ("domain", "unit", "deployment"))
NODE_GPUS = 8
DOMAIN_GPUS = 4 * NODE_GPUS
SECONDS = 60.0


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
        """Deployment -> its condition Placed."""
        found = {}
        for one in list(self.live.values()):
            if one["kind"] == "DistServeDeployment":
                conditions = (one.get("status") or {}).get("conditions") or []
                none = {"status": "", "reason": "", "message": ""}
                found[one["metadata"]["name"]] = next(
                    (c for c in conditions if c["type"] == "Placed"), none
                )
        return found

    def check(self, cliques: Mapping[str, str]) -> int:
        """No pod was ever bound outside of the domain that its unit was given; returns how many
        were bound."""
        bound = set()
        for pod in self.events:
            marks = pod["metadata"].get("labels") or {}
            node = pod["spec"].get("nodeName")
            if pod["kind"] == "Pod" and UNIT in marks and node:
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
    """Node -> its NVLink domain."""

    def clique(number: int) -> str:
        return f"{prefix}{number // nodes_each}"

    names = cluster.nodes(
        count * nodes_each, NODE_GPUS, lambda number: {CLIQUE: clique(number)}, prefix=prefix
    )
    try:
        yield {name: clique(number) for number, name in enumerate(names)}
    finally:
        cluster.remove_nodes(names)


@pytest.fixture
def operator(crd: Cluster, namespace: str, start_distserve: Start) -> Any:
    found = start_distserve("--engine-check=off")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


def is_ready(pod: Object) -> bool:
    found = pod.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in found)


def wait_until_whole(operator: Any, history: History, wanted: dict[str, int]) -> None:
    """Until these deployments have so many pods, all of them Ready."""

    def whole() -> bool:
        counts: dict[str, int] = defaultdict(int)
        for (name, _), pods in history.units().items():
            counts[name] += sum(map(is_ready, pods))
        return counts == wanted

    operator.wait_until(f"{wanted} pods are Ready", whole, 3 * SECONDS)


# ---- many of them ---------------------------------------------------------------------------


def mixed(deployments: int, domains: int) -> list[Shape]:
    """Shapes that fill the domains to the last accelerator, if they are packed best; in the order
    in which they come."""
    draw = random.Random(deployments)
    sizes = []
    for at in range(domains):
        alone = at < 2 * domains - deployments
        first = 0 if alone else draw.choice([8, 12, 16])
        sizes += [size for size in (first, DOMAIN_GPUS - first) if size]
    draw.shuffle(sizes)
    return [_shape(draw, size) for size in sizes]


def _shape(draw: random.Random, gpus: int) -> Shape:
    tensor = draw.choice([t for t in (1, 2, 4) if 2 <= gpus // t <= 8])
    instances = gpus // tensor
    prefill = draw.randint(max(1, instances - 4), min(4, instances - 1))
    return Shape(prefill, instances - prefill, tensor)


@pytest.mark.parametrize(
    ("deployments", "number"),
    [
        pytest.param(8, 5, id="8-deployments"),
        pytest.param(
            30, 16, id="30-deployments", marks=[pytest.mark.soak, pytest.mark.timeout(900)]
        ),
    ],
)
def test_every_unit_lies_whole_in_one_domain(
    crd: Cluster,
    namespace: str,
    operator: Any,
    deployments: int,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = number * DOMAIN_GPUS
    shapes = {f"d{at}": shape for at, shape in enumerate(mixed(deployments, number))}
    assert len(shapes) == deployments
    assert sum(shape.gpus for shape in shapes.values()) == there
    with (
        domains(crd, number, 4, f"many{number}-") as cliques,
        watched(crd, namespace) as history,
    ):
        began = time.monotonic()
        crd.apply([deployment(name, shape) for name, shape in shapes.items()], namespace)

        def settled() -> bool:
            """Who is placed runs; who is not was told why."""
            found, running = history.placed(), history.units()
            return len(found) == deployments and all(
                sum(map(is_ready, running.get((name, "u0"), []))) == shapes[name].pods
                if one["status"] == "True"
                else one["reason"] in ("NoRoom", "HeldForAnother")
                for name, one in found.items()
            )

        operator.wait_until("all are decided, and run", settled, 5 * SECONDS)
        took = time.monotonic() - began
        found = history.units()
        for (name, unit), pods in found.items():
            assert len(pods) == shapes[name].pods, f"{name} {unit} is not whole"
            homes = {cliques[pod["spec"]["nodeName"]] for pod in pods}
            assert len(homes) == 1, f"{name} {unit} lies in {homes}"
        used = sum(shapes[name].gpus for name, _ in found)
        bound = history.check(cliques)
        assert bound == sum(map(len, found.values())), "none was bound and taken back"
    with capsys.disabled():
        print(
            f"\n{deployments} deployments on {number} domains of 4 x {NODE_GPUS} GPUs: "
            f"{len(found)} units, {bound} pods in {took:.1f} s, {used} of {there} GPUs used: "
            f"{used / there:.1%} of the best packing, which uses all (aim: 95 %)"
        )


# ---- one too many ---------------------------------------------------------------------------


def test_a_full_cluster_says_what_is_short_and_goes_on_when_it_is_not(
    crd: Cluster, namespace: str, operator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with domains(crd, 2, 2, "full-") as cliques, watched(crd, namespace) as history:
        whole = WHOLE_DOMAIN.pods
        crd.apply([deployment(name, WHOLE_DOMAIN) for name in ("a", "b")], namespace)
        wait_until_whole(operator, history, {"a": whole, "b": whole})
        crd.apply(deployment("late", WHOLE_DOMAIN), namespace)
        late = {"reason": ""}

        def waits() -> bool:
            late.update(history.placed().get("late", {}))
            return late["reason"] == "NoRoom"

        operator.wait_until("late is told why it waits", waits, SECONDS)
        message = late["message"]
        assert f"needs 16 {GPU} in one nvlink domain; the roomiest of " in message
        assert "(full-" in message and "has 0 free" in message and "add nodes" in message
        assert "late" not in history.owners(), "nothing of it exists while it waits"

        crd.kubectl("delete", "dsd/a", f"-n{namespace}", "--wait=false")
        # Counted from when its pods are gone: their end is not the operator's.
        operator.wait_until(
            "the domain is free", lambda: ("a", "u0") not in history.units(), SECONDS
        )
        freed = time.monotonic()
        wait_until_whole(operator, history, {"b": whole, "late": whole})
        took = time.monotonic() - freed
        history.check(cliques)
    with capsys.disabled():
        print(f"\n  it said: {message}\n  domain free -> all pods Ready: {took:.1f} s (aim: 5)")


# ---- two for one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [5, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])],
)
def test_of_two_for_one_domain_one_wins_whole(
    crd: Cluster, namespace: str, operator: Any, times: int
) -> None:
    with domains(crd, 1, 2, "two-") as cliques:
        for _ in range(times):
            with watched(crd, namespace) as history:
                crd.apply([deployment(name, WHOLE_DOMAIN) for name in ("a", "b")], namespace)

                def one_each() -> bool:
                    found = history.placed().values()
                    return sorted(one["status"] for one in found) == ["False", "True"]

                operator.wait_until("one is placed, one waits", one_each, SECONDS)
                states = history.placed()
                winner, loser = sorted(states, key=lambda name: states[name]["status"] != "True")
                assert states[loser]["reason"] == "NoRoom"
                wait_until_whole(operator, history, {winner: WHOLE_DOMAIN.pods})
                assert history.owners() == {winner}, f"nothing of {loser} ever existed"
                history.check(cliques)
                crd.kubectl("delete", "dsd", "--all", f"-n{namespace}", "--wait=false")
                operator.wait_until("both are gone", lambda: not history.live, SECONDS)


# ---- somebody else is quicker ---------------------------------------------------------------

GATE = "test.distserve.io/hold"


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


def open_gates(cluster: Cluster, namespace: str, pods: Sequence[Object]) -> None:
    for pod in pods:
        if pod["spec"].get("schedulingGates"):
            name = pod["metadata"]["name"]
            patch = json.dumps({"spec": {"schedulingGates": None}})
            cluster.kubectl("patch", f"pod/{name}", f"-n{namespace}", f"--patch={patch}")


def test_a_unit_whose_room_was_taken_is_placed_anew(
    crd: Cluster, namespace: str, operator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scheduling gates hold the moment between decision and binding open."""
    with domains(crd, 2, 2, "taken-") as cliques, watched(crd, namespace) as history:
        pod = {"schedulingGates": [{"name": GATE}]}
        crd.apply(deployment("opt", WHOLE_DOMAIN, gangTimeout="3s", pod=pod), namespace)

        def pods() -> list[Object]:
            return history.units().get(("opt", "u0"), [])

        operator.wait_until("its pods are made", lambda: len(pods()) == WHOLE_DOMAIN.pods, SECONDS)
        first = pods()
        given = {pod["metadata"]["labels"][DOMAIN] for pod in first}
        assert len(given) == 1
        taken = next(node for node, clique in cliques.items() if {clique} == given)
        crd.apply(foreign_pod("quicker", taken, NODE_GPUS), namespace)
        open_gates(crd, namespace, first)
        began = time.monotonic()

        def moved() -> bool:
            found = pods()
            again = [p for p in found if p["metadata"]["labels"][DOMAIN] not in given]
            return len(again) == len(found) == WHOLE_DOMAIN.pods

        operator.wait_until("it is placed anew", moved, SECONDS)
        took = time.monotonic() - began
        open_gates(crd, namespace, pods())
        wait_until_whole(operator, history, {"opt": WHOLE_DOMAIN.pods})
        homes = {cliques[pod["spec"]["nodeName"]] for pod in pods()}
        assert len(homes) == 1 and not homes & given
        history.check(cliques)
        operator.wait_until(
            "Placed says so", lambda: history.placed()["opt"]["status"] == "True", SECONDS
        )
    with capsys.disabled():
        print(f"\n  room taken -> placed anew: {took:.1f} s (3 s after its pods: gangTimeout)")


# ---- what was planned -----------------------------------------------------------------------


def planned(cluster: Cluster, folder: Path, document: Object) -> list[tuple[str, str, str]]:
    """(act, unit, domain) of each move that `distserve plan` tells."""
    file = folder / "deployment.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "distserve.cli.main", "plan", f"--file={file}", "--cluster",
               f"--kubeconfig={cluster.kubeconfig}", "--output=json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    moves = json.loads(done.stdout)["placement"]["moves"]
    return [(one["act"], one["unit"], one["domain"]["name"]) for one in moves]


def test_what_plan_says_is_what_is_done(
    crd: Cluster, namespace: str, operator: Any, tmp_path: Path
) -> None:
    def document(units: int, **marks: str) -> Object:
        found = deployment("opt", WHOLE_DOMAIN)
        found["metadata"]["namespace"] = namespace
        found["spec"]["units"] = units
        for role in ("prefill", "decode"):
            template = found["spec"][role]["podTemplate"]
            found["spec"][role]["podTemplate"] = template | {"metadata": {"labels": marks}}
        return found

    with domains(crd, 3, 2, "plan-") as cliques, watched(crd, namespace) as history:
        crd.apply(foreign_pod("busy", next(iter(cliques)), 1), namespace)

        def homes() -> dict[str, str]:
            """Of units that are whole and Ready."""
            found = {}
            for (_, unit), pods in history.units().items():
                at = {cliques[pod["spec"]["nodeName"]] for pod in pods if is_ready(pod)}
                if len(at) == 1 and sum(map(is_ready, pods)) == len(pods) == WHOLE_DOMAIN.pods:
                    found[unit] = at.pop()
            return found

        for units in (1, 2):
            told = planned(crd, tmp_path, document(units))
            crd.apply(document(units), namespace)
            operator.wait_until(
                "all units are whole", lambda wanted=units: len(homes()) == wanted, SECONDS
            )
            assert {unit: domain for _, unit, domain in told} == homes()
            acts = [act for act, _, _ in planned(crd, tmp_path, document(units))]
            assert acts == ["keep"] * units, "nothing is left to do"

        crd.kubectl("scale", "dsd/opt", f"-n{namespace}", "--replicas=1")
        operator.wait_until("one unit is left", lambda: set(homes()) == {"u0"}, SECONDS)
        told = planned(crd, tmp_path, document(1, colour="blue"))
        assert [move[:2] for move in told] == [
            ("keep", "u0"), ("create", "u1"), ("replace", "u0"), ("delete", "u1"),
        ]  # fmt: skip
        crd.apply(document(1, colour="blue"), namespace)

        def rolled() -> bool:
            pods = [pod for some in history.units().values() for pod in some]
            blue = all(pod["metadata"]["labels"].get("colour") == "blue" for pod in pods)
            return blue and set(homes()) == {"u0"}

        operator.wait_until("the rollout is over", rolled, 2 * SECONDS)
        assert homes()["u0"] == told[2][2]
        marks = [
            one["metadata"].get("labels") or {} for one in history.events if one["kind"] == "Pod"
        ]
        extra = {m[DOMAIN] for m in marks if m.get(UNIT) == "u1" and m.get("colour") == "blue"}
        assert extra == {told[1][2]}
        history.check(cliques)
