"""Our operator beside LeaderWorkerSet's controller, in one control plane with fake nodes.

    python -m benchmarks.control_plane [--groups 50] [--rounds 3]

Groups of 4 pods with a GPU each: here an instance of 4 pods, or a unit of 2 prefill and 2 decode
instances of one, there a leader and 3 workers; made as one object, and as one object per group.
Rounds alternate; in each only the
controller that is measured runs, with one replica. Settled: the objects' status counts all groups
as ready. CPU, calls and memory are the controller's until then; the control plane's CPU is that of
etcd, API server, controller manager, scheduler and fake kubelet. `exclusive`: each group in a
clique of its own, which is the peer's way to keep one together; ours packs each unit in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from tools.cluster import lws, providers
from tools.cluster.audit import Audit
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.processes import Process
from tools.cluster.profiles import Profile
from tools.cluster.waiting import wait_for

from distserve.operator.cluster import Cluster as Api
from distserve.operator.cluster import load_configuration
from distserve.operator.errors import NotFound
from distserve.operator.kinds import PODS, Kind
from distserve.operator.settings import CallSettings

CLIQUE = "nvidia.com/gpu.clique"
NODES_PER_CLIQUE = PODS_PER_GROUP = 4
NAMESPACE = "bench"
LWS_KIND = Kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
OUR_KIND = Kind("distserve.io/v1alpha1", "DistServeDeployment", "distservedeployments")
SETTLE_SECONDS = 600.0
POLL_SECONDS = 0.25

Object = dict[str, Any]
Run = Callable[[Cluster, Path], AbstractContextManager[Process]]


@dataclass(frozen=True)
class Contender:
    name: str
    user: str
    kind: Kind
    run: Run
    make: Callable[[str, int], Object]
    """(name, groups) -> the object."""
    ready_field: str
    """Of its status: groups that are ready."""
    objects: int

    def documents(self, groups: int) -> list[Object]:
        each = groups // self.objects
        return [self.make(f"g{number}", each) for number in range(self.objects)]


@dataclass(frozen=True)
class Round:
    settle_seconds: float
    cpu_seconds: float
    control_plane_cpu_seconds: float
    resident_mb: float
    calls: int


@contextmanager
def our_operator(cluster: Cluster, kubeconfig: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "distserve.cli.main", "operator", "--engine-check=off"]
    flags = (f"--kubeconfig={kubeconfig}", f"--lease-namespace={NAMESPACE}", "--workers=4")
    ports = ("--health-port=18081", "--metrics-port=18080")
    process = cluster.processes.start("operator", [*command, *flags, *ports])

    def leads() -> bool:
        leases = cluster.get("leases", namespace=NAMESPACE)["items"]
        return any(one["spec"].get("holderIdentity") for one in leases)

    try:
        process.wait_for("the lease", leads, 60.0)
        yield process
    finally:
        process.stop()


POD = {"podTemplate": {"spec": {"tolerations": [TOLERATION]}}}


def instances_of_4(name: str, groups: int) -> Object:
    """What is most like a group: an instance whose 4 ranks have a pod each."""
    hybrid = {"parallelism": {"pipeline": PODS_PER_GROUP}, **POD}
    return deployment(name, groups, "Colocated", {"hybrid": hybrid})


def units_of_4(name: str, groups: int) -> Object:
    role = {"instancesPerUnit": PODS_PER_GROUP // 2, **POD}
    return deployment(name, groups, "Disaggregated", {"prefill": role, "decode": role})


def deployment(name: str, groups: int, strategy: str, roles: Mapping[str, Object]) -> Object:
    return {
        "apiVersion": OUR_KIND.api_version,
        "kind": OUR_KIND.kind,
        "metadata": {"name": name},
        "spec": {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "accelerator": {"type": "GPU", "perPod": 1},
            "strategy": {"name": strategy},
            "slo": {"ttft": "2s", "tpot": "500ms"},
            "units": groups,
            "gateway": {"replicas": 1, **POD},
            **roles,
            "topology": {
                "levels": [{"name": "nvlink", "nodeLabel": CLIQUE}],
                "packWithin": "nvlink",
            },
        },
    }


def leader_worker_set(name: str, groups: int) -> Object:
    container = {
        "name": "engine",
        "image": "engine",
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    pod = {"spec": {"tolerations": [TOLERATION], "containers": [container]}}
    return {
        "apiVersion": LWS_KIND.api_version,
        "kind": LWS_KIND.kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": groups,
            "leaderWorkerTemplate": {"size": PODS_PER_GROUP, "workerTemplate": pod},
        },
    }


def exclusive(name: str, groups: int) -> Object:
    found = leader_worker_set(name, groups)
    found["metadata"]["annotations"] = {"leaderworkerset.sigs.k8s.io/exclusive-topology": CLIQUE}
    return found


def contenders(groups: int) -> list[Contender]:
    ours = ("operator", OUR_KIND, our_operator, instances_of_4, "replicas")
    units = ("operator", OUR_KIND, our_operator, units_of_4, "replicas")
    theirs = ("lws", LWS_KIND, lws.controller, leader_worker_set, "readyReplicas")
    apart = ("lws", LWS_KIND, lws.controller, exclusive, "readyReplicas")
    return [
        Contender("operator, one deployment", *ours, 1),
        Contender("operator, one deployment, 1-pod instances", *units, 1),
        Contender("LWS, one set", *theirs, 1),
        Contender("LWS, one set, exclusive", *apart, 1),
        Contender(f"operator, {groups} deployments", *ours, groups),
        Contender(f"operator, {groups} deployments, 1-pod instances", *units, groups),
        Contender(f"LWS, {groups} sets", *theirs, groups),
    ]


def measure(cluster: Cluster, audit: Audit, contender: Contender, groups: int) -> Round:
    kubeconfig = audit.kubeconfig(cluster, contender.user)
    with contender.run(cluster, kubeconfig) as process:
        mine = psutil.Process(process.pid)
        others = [
            psutil.Process(one.pid)
            for name, one in cluster.processes.items()
            if name not in ("operator", "lws")
        ]
        before, before_others = _cpu([mine]), _cpu(others)
        since, started = time.time(), time.monotonic()
        cluster.apply(contender.documents(groups), NAMESPACE)
        asyncio.run(_wait(cluster, contender, groups))
        settled, until = time.monotonic() - started, time.time()
        found = Round(
            settled,
            _cpu([mine]) - before,
            _cpu(others) - before_others,
            mine.memory_info().rss / 2**20,
            audit.calls(contender.user, since, until).total(),
        )
        kind = f"{contender.kind.plural}.{contender.kind.group}"
        cluster.kubectl("delete", kind, "--all", f"--namespace={NAMESPACE}", seconds=SETTLE_SECONDS)
        wait_for("its pods to go", lambda: not _pods(cluster), SETTLE_SECONDS, poll_seconds=1.0)
    return found


async def _wait(cluster: Cluster, contender: Contender, groups: int) -> None:
    """Until all groups are ready. Not with kubectl, whose start would be a load of its own."""
    api = Api(await load_configuration(cluster.kubeconfig), CallSettings())
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            while await _ready(api, contender) < groups:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await api.close()
        await asyncio.sleep(POLL_SECONDS)  # Connections with TLS are closed a moment later.


async def _ready(api: Api, contender: Contender) -> int:
    try:
        found = await api.call("list", contender.kind.path(NAMESPACE))
    except NotFound:
        return 0
    return sum((one.get("status") or {}).get(contender.ready_field) or 0 for one in found["items"])


def _pods(cluster: Cluster) -> bool:
    said = cluster.kubectl("get", PODS.plural, f"--namespace={NAMESPACE}", "--output=name")
    return bool(said.strip())


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def table(rounds: Mapping[str, list[Round]]) -> None:
    print("| | settled s | CPU s | control plane's CPU s | resident MB | API calls |")
    print("|---|---|---|---|---|---|")
    for name, found in rounds.items():
        cells = (
            spread([one.settle_seconds for one in found], 1),
            spread([one.cpu_seconds for one in found], 1),
            spread([one.control_plane_cpu_seconds for one in found], 1),
            spread([one.resident_mb for one in found], 0),
            spread([float(one.calls) for one in found], 0),
        )
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratio(rounds: Mapping[str, list[Round]], ours: Contender, theirs: Contender) -> None:
    a, b = (median(one.settle_seconds for one in rounds[who.name]) for who in (ours, theirs))
    print(f"{ours.name} / {theirs.name}: settled in {a / b:.2f} times as long (aim: 1.5)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder), ("operator", "lws"))
        extra = ExtraFlags(api_server=audit.flags)
        cluster = providers.start(Profile.CONTROL_PLANE, extra=extra)
        try:
            rounds = run_all(cluster, audit, args.groups, args.rounds)
        finally:
            cluster.down()
    table(rounds)
    ours, units, theirs, apart, each, units_each, theirs_each = contenders(args.groups)
    for one in (ours, units):
        ratio(rounds, one, theirs)
        ratio(rounds, one, apart)
    for one in (each, units_each):
        ratio(rounds, one, theirs_each)


def run_all(cluster: Cluster, audit: Audit, groups: int, rounds: int) -> dict[str, list[Round]]:
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
    lws.prepare(cluster)
    cluster.nodes(
        groups * NODES_PER_CLIQUE, labels=lambda number: {CLIQUE: f"c{number // NODES_PER_CLIQUE}"}
    )
    found: dict[str, list[Round]] = {}
    for number in range(rounds):
        for contender in contenders(groups):
            one = measure(cluster, audit, contender, groups)
            found.setdefault(contender.name, []).append(one)
            print(f"round {number + 1}, {contender.name}: {one}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
