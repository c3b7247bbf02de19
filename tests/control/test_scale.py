"""Many deployments at once: all right in the end. Times and sizes are printed beside their aims."""

import asyncio
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tools.cluster.audit import Audit
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.conditions import is_true
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.profiles import Profile
from tools.cluster.waiting import wait_for

from distserve.operator.cluster import Cluster as Api
from distserve.operator.cluster import load_configuration
from distserve.operator.settings import CallSettings

Start = Callable[..., Any]
USER = "operator"
CLIQUE = "nvidia.com/gpu.clique"
NODES_PER_CLIQUE = 4
INSTANCES_PER_ROLE = 2
PODS = 2 * INSTANCES_PER_ROLE
# As many as kubectl applies within its bound, while the operator keeps the API server busy.
BATCH = 25


@dataclass(frozen=True)
class Scale:
    deployments: int
    nodes: int
    changes: int
    idle_seconds: float
    settle_seconds: float
    """Bound of the wait, not an aim."""


FEW = Scale(25, 50, changes=5, idle_seconds=5, settle_seconds=400)
HUNDRED = Scale(100, 200, changes=20, idle_seconds=10, settle_seconds=400)
FOUR_HUNDRED = Scale(400, 200, changes=100, idle_seconds=60, settle_seconds=900)
"""On as many GPUs as they need."""
THOUSAND = Scale(1000, 500, changes=100, idle_seconds=60, settle_seconds=1500)
TELL_SECONDS = 60.0


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return Audit(tmp_path, (USER,))


@pytest.fixture
def crd(start_cluster: Callable[..., Cluster], audit: Audit) -> Cluster:
    """Instead of the session's: alone on its API server, which writes down the operator's calls."""
    cluster = start_cluster(Profile.CONTROL_PLANE, extra=ExtraFlags(api_server=audit.flags))
    cluster.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
    cluster.wait_for(
        "our kind to be served", lambda: "dsd" in cluster.kubectl("api-resources").split()
    )
    return cluster


@pytest.fixture
def replicas(crd: Cluster, audit: Audit, start_distserve: Start) -> list[Any]:
    """Two that watch all namespaces; one of them leads."""
    kubeconfig = audit.kubeconfig(crd, USER)
    flags = (f"--kubeconfig={kubeconfig}", "--namespaces=", "--engine-check=off")
    found = [start_distserve(*flags) for _ in range(2)]
    for one in found:
        one.wait_until_ready()
    found[0].wait_until("one leads", lambda: any(one.leads for one in found))
    return sorted(found, key=lambda one: not one.leads)


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(FEW, id="25", marks=pytest.mark.timeout(900)),
        pytest.param(HUNDRED, id="100", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
        pytest.param(FOUR_HUNDRED, id="400", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
        pytest.param(THOUSAND, id="1000", marks=[pytest.mark.soak, pytest.mark.timeout(2400)]),
    ],
)
def test_many_deployments_at_once(
    crd: Cluster,
    namespace: str,
    replicas: list[Any],
    audit: Audit,
    scale: Scale,
    capsys: pytest.CaptureFixture[str],
) -> None:
    leader = replicas[0]
    with capsys.disabled():
        say = Say(scale, crd, replicas)
        crd.nodes(scale.nodes, labels=lambda number: {CLIQUE: f"c{number // NODES_PER_CLIQUE}"})
        say.phase("nodes ready")

        wanted = [deployment(number) for number in range(scale.deployments)]
        for at in range(0, len(wanted), BATCH):
            crd.apply(wanted[at : at + BATCH], namespace)
        say.phase("all applied")
        wait_for_ready(leader, scale)
        say.phase("all Ready", "60 s after the last apply")
        check_units(crd, namespace, scale)

        wait_for_quiet(leader)
        say.calls_per_reconcile()
        changed = [one["metadata"]["name"] for one in wanted[: scale.changes]]
        times = asyncio.run(change_gateways(crd.kubeconfig, namespace, changed))
        say.changes(times)

        wait_for_quiet(leader)
        since = time.time()
        # Nothing is waited for: the quiet itself is what is measured.
        time.sleep(scale.idle_seconds)
        say.idle(audit.calls(USER, since, time.time()), scale.idle_seconds)
        say.memory()
        assert all(0 < one < 60 for one in times) and len(times) == scale.changes
    for one in replicas:
        assert '"level": "error"' not in one.log.read_text(), one.tail()


def deployment(number: int) -> dict[str, Any]:
    """One unit of 2 prefill and 2 decode pods with a GPU each, whole within a clique."""
    pod = {"podTemplate": {"spec": {"tolerations": [TOLERATION]}}}
    role = {"instancesPerUnit": INSTANCES_PER_ROLE, "parallelism": {"tensor": 1}, **pod}
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": f"many-{number:04}"},
        "spec": {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "strategy": {"name": "Disaggregated"},
            "slo": {"ttft": "2s", "tpot": "500ms"},
            "gateway": {"replicas": 1, **pod},
            "prefill": role,
            "decode": role,
            "topology": {
                "levels": [{"name": "nvlink", "nodeLabel": CLIQUE}],
                "packWithin": "nvlink",
            },
        },
    }


def wait_for_ready(leader: Any, scale: Scale) -> None:
    # The operator's own count: a listing of them all each second would be the larger load.
    serving = '{condition="Ready",reason="Serving",status="True"}'
    sample = f"distserve_operator_deployments_by_condition{serving}"
    begun = told = time.monotonic()

    def ready() -> bool:
        nonlocal told
        try:
            found = leader.metric(sample)
        except AssertionError:
            return False  # None has it yet.
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            say_now(f"  {found:.0f} Ready after {told - begun:.0f} s")
        return bool(found >= scale.deployments)

    wait(leader, "all Ready", ready, scale.settle_seconds)


def wait_for_quiet(leader: Any, seconds: float = 3.0) -> None:
    """Until nothing was decided for so long."""
    last = (-1.0, 0.0)

    def quiet() -> bool:
        nonlocal last
        count = reconciles(leader)
        if count != last[0]:
            last = (count, time.monotonic())
        return time.monotonic() - last[1] > seconds

    wait(leader, "nothing to do", quiet, 300)


def wait(leader: Any, what: str, holds: Callable[[], bool], seconds: float) -> None:
    # Seldom: each look makes the operator write all its metrics.
    wait_for(what, holds, seconds, explain=leader.tail, poll_seconds=0.5)


def reconciles(leader: Any) -> float:
    return float(leader.metric("distserve_operator_reconcile_seconds_count"))


def check_units(cluster: Cluster, namespace: str, scale: Scale) -> None:
    """Each deployment has its pods once, and all of a unit lie in one clique."""
    domains = {
        one["metadata"]["name"]: one["metadata"]["labels"][CLIQUE]
        for one in cluster.get("nodes")["items"]
    }
    found = cluster.get("dsd", namespace=namespace)["items"]
    ready = [one["metadata"]["name"] for one in found if is_true(one, "Ready")]
    assert sorted(ready) == [f"many-{number:04}" for number in range(scale.deployments)]
    selector = "distserve.io/unit"
    pods = cluster.get("pods", namespace=namespace, selector=selector)["items"]
    units: dict[str, list[str]] = {}
    for one in pods:
        units.setdefault(one["metadata"]["labels"]["distserve.io/deployment"], []).append(
            domains[one["spec"]["nodeName"]]
        )
    assert Counter(map(len, units.values())) == {PODS: scale.deployments}
    assert all(len(set(where)) == 1 for where in units.values())
    sets = cluster.get("statefulsets", namespace=namespace)["items"]
    assert len(sets) == PODS * scale.deployments


async def change_gateways(kubeconfig: Path, namespace: str, names: Sequence[str]) -> list[float]:
    """Seconds from the edit of each deployment, one after another, to the edit of its gateway."""
    api = Api(await load_configuration(kubeconfig), CallSettings())
    api.may_write = lambda: True
    applied = {f"{name}-gateway": asyncio.Event() for name in names}

    async def watch() -> None:
        path, query = f"/apis/apps/v1/namespaces/{namespace}/deployments", {"watch": "1"}
        async for event in api.watch_lines(path, query, 600):
            found = event["object"]
            if found["metadata"]["name"] in applied and found["spec"]["replicas"] == 2:
                applied[found["metadata"]["name"]].set()

    watching = asyncio.create_task(watch())
    times = []
    try:
        for name in names:
            started = time.monotonic()
            await api.write(
                "apply",
                f"/apis/distserve.io/v1alpha1/namespaces/{namespace}/distservedeployments/{name}",
                {"spec": {"gateway": {"replicas": 2}}},
                content_type="application/merge-patch+json",
            )
            async with asyncio.timeout(60):
                await applied[f"{name}-gateway"].wait()
            times.append(time.monotonic() - started)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await api.close()
        await asyncio.sleep(0.25)  # Connections with TLS are closed a moment after their session.
    return times


say_now = functools.partial(print, flush=True)


class Say:
    """Prints figures, and the CPU that each process took for a phase: what took most bounds it."""

    def __init__(self, scale: Scale, cluster: Cluster, replicas: list[Any]) -> None:
        self._replicas = replicas
        pids = {"leader": replicas[0].process.pid, "standby": replicas[1].process.pid}
        pids |= {name: process.pid for name, process in cluster.processes.items()}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._kwok = cluster.processes
        self._cpu = self._cpu_seconds()
        self._at = time.monotonic()
        say_now(
            f"\n{scale.deployments} deployments of {PODS} pods and a gateway, {scale.nodes} nodes:"
        )

    def phase(self, name: str, aim: str = "") -> None:
        if "kwok" not in self._processes and "kwok" in self._kwok:
            self._processes["kwok"] = psutil.Process(self._kwok["kwok"].pid)
        before, self._cpu = self._cpu, self._cpu_seconds()
        took, self._at = time.monotonic() - self._at, time.monotonic()
        used = {name: now - before.get(name, 0) for name, now in self._cpu.items()}
        most = sorted(used.items(), key=lambda one: -one[1])
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in most if seconds >= 0.5)
        say_now(f"  {name}: {took:.1f} s" + (f" (aim: {aim})" if aim else "") + f"; CPU s: {words}")

    def calls_per_reconcile(self) -> None:
        leader = self._replicas[0]
        count = reconciles(leader)
        calls: Counter[str] = Counter()
        for verb in ("get", "create", "apply", "delete"):
            for outcome in ("200", "201", "404", "409"):
                name = f'distserve_operator_api_calls_total{{outcome="{outcome}",verb="{verb}"}}'
                try:
                    calls[verb] += int(leader.metric(name))
                except AssertionError:
                    continue
        seconds = leader.metric("distserve_operator_reconcile_seconds_sum")
        say_now(
            f"  {count:.0f} reconciles of {seconds / count * 1000:.0f} ms, "
            f"{sum(calls.values()) / count:.1f} API calls each: {dict(calls)}"
        )

    def changes(self, times: Sequence[float]) -> None:
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        say_now(
            f"  change -> applied, {len(times)} edits: p50 {cuts[49] * 1000:.0f} ms, "
            f"p99 {cuts[98] * 1000:.0f} ms (aim: 1000)"
        )

    def idle(self, calls: Counter[str], seconds: float) -> None:
        say_now(
            f"  idle: {calls.total() / seconds:.2f} calls/s of both replicas (aim: 1): "
            + ", ".join(f"{count} {what}" for what, count in calls.most_common())
        )

    def memory(self) -> None:
        for name in ("leader", "standby"):
            status = Path(f"/proc/{self._processes[name].pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            resident = self._processes[name].memory_info().rss / 2**20
            say_now(
                f"  {name}: {resident:.0f} MB resident, at most "
                f"{int(peak.split()[1]) / 1024:.0f} (aim: 250)"
            )

    def _cpu_seconds(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}
