"""Units as PodGroups of the real kube-scheduler of a later Kubernetes: bound whole or not at all,
though a part of their room is taken after they were placed; healed, and gone without a trace."""

import contextlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tools.cluster import gang_scheduling
from tools.cluster.cluster import Cluster
from tools.cluster.profiles import Profile, Release

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]  # The first one builds Kubernetes.

Object = dict[str, Any]
GROUPS = f"podgroups.{gang_scheduling.GROUP}"
UNIT, DEPLOYMENT = "distserve.io/unit", "distserve.io/deployment"
GANG = "GangScheduling"
SECONDS = 3 * 60.0


@pytest.fixture
def crd(start_cluster: Callable[..., Cluster], install_crd: Callable[..., Cluster]) -> Cluster:
    """One of its own, which serves PodGroups."""
    flags = gang_scheduling.FLAGS
    return install_crd(start_cluster(Profile.CONTROL_PLANE, release=Release.NEXT, extra=flags))


@pytest.fixture
def operator(crd: Cluster, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--gang-scheduling=on")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


@contextlib.contextmanager
def halted(cluster: Cluster, name: str) -> Iterator[None]:
    """A process of the control plane."""
    pid = cluster.processes[name].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@dataclass
class Gangs:
    """Deployments whose units are gangs, and what is seen of them."""

    seen: Any

    def make(
        self, name: str, shape: Any, units: int = 1, scheduler: str | None = GANG, **topology: str
    ) -> None:
        fabric = self.seen.fabric
        found = fabric.deployment(name, shape, gangTimeout="10s", **topology)
        found["spec"] |= {"units": units, "rollout": {"whenFull": "ReplaceOne"}}
        if scheduler:
            found["spec"]["topology"]["scheduler"] = scheduler
        fabric.apply(found)

    def kubectl(self, *command: str) -> None:
        fabric = self.seen.fabric
        fabric.cluster.kubectl(*command, f"--namespace={fabric.namespace}")

    def patch(self, name: str, **spec: Any) -> None:
        said = json.dumps({"spec": spec})
        self.kubectl("patch", f"dsd/{name}", "--type=merge", f"--patch={said}")

    def pods(self, name: str) -> list[Object]:
        units = self.seen.history.units()
        return [pod for (owner, _), pods in units.items() if owner == name for pod in pods]

    def ready(self, name: str) -> int:
        return sum(map(self.seen.fabric.is_ready, self.pods(name)))

    def whole(self, name: str, pods: int) -> None:
        """With one group for each unit, of which all its pods are members."""

        def holds() -> bool:
            found = self.pods(name)
            made = {one["metadata"]["name"] for one in self.seen.groups(name)}
            named = {pod["spec"].get("schedulingGroup", {}).get("podGroupName") for pod in found}
            return len(found) == self.ready(name) == pods and named == made

        self.seen.wait(f"{pods} pods of {name} are Ready", holds)

    def lose(self, name: str, count: int) -> None:
        self.seen.lose(self.pods(name)[:count])

    def delete(self, name: str) -> None:
        self.seen.delete(name)
        seen = self.seen
        seen.wait("nothing is left", lambda: not seen.groups(name) and not self.pods(name))


def makings(history: Any, name: str) -> list[int]:
    """Each time that a unit was made: how many of its instances had a pod that was bound."""
    made: dict[str, list[str]] = defaultdict(list)
    bound: dict[str, set[str]] = defaultdict(set)
    units: dict[str, str] = {}
    for one in history.events:
        marks = one["metadata"].get("labels") or {}
        if UNIT not in marks or marks[DEPLOYMENT] != name:
            continue
        known, uid = one["metadata"]["name"], one["metadata"]["uid"]
        if one["kind"] == "StatefulSet":
            units[known] = marks[UNIT]
            if uid not in made[known]:
                made[known].append(uid)
        elif one["kind"] == "Pod" and one["spec"].get("nodeName"):
            bound[one["metadata"]["ownerReferences"][0]["uid"]].add(uid)
    found: dict[tuple[str, int], int] = defaultdict(int)
    for known, uids in made.items():
        for number, uid in enumerate(uids):
            found[units[known], number] += bool(bound[uid])
    return list(found.values())


def test_all_of_a_unit_are_bound_or_none(
    fabric: Any, see: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room goes after the units were placed and before they have pods. Without the field a part of
    a unit is bound, until gangTimeout."""
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(2, 2, "gang-") as cliques:
        seen = see(history, GROUPS)
        gangs = Gangs(seen)
        taken = min(cliques)
        for name, scheduler in (("alone", None), ("gang", GANG)):
            with halted(fabric.cluster, "kube-controller-manager"):
                gangs.make(name, shape, 2, scheduler)
                seen.wait("both units are placed", lambda name=name: placed(history, name) == 2)
                fabric.apply(fabric.foreign_pod("quicker", taken, 1))
            said = seen.until(name, "Unschedulable", "Insufficient nvidia.com/gpu", "gangTimeout")
            seen.until(name, "NoRoom")
            seen.wait(
                "one unit is taken back whole",
                lambda name=name: len(gangs.pods(name)) == shape.pods,
            )
            assert all(map(fabric.is_ready, gangs.pods(name))), "the other one is whole"
            first = sorted(makings(history, name))
            expected = shape.pods - 1 if scheduler is None else 0
            assert first == [expected, shape.pods], "three of its pods had nodes"
            gangs.kubectl("delete", "pod/quicker", "--grace-period=0", "--force")
            if scheduler is None:
                seen.wait("it is placed", lambda: len(gangs.pods("alone")) == 2 * shape.pods)
            else:
                gangs.whole(name, 2 * shape.pods)
                assert sorted(makings(history, name)) == [0, shape.pods, shape.pods]
            seen.until(name, "Placed")
            gangs.delete(name)
        assert history.check(cliques, "gang") == 2 * shape.pods
    with capsys.disabled():
        print(f"\n  {said}")


def test_a_unit_heals_and_changes_whole(fabric: Any, see: Any) -> None:
    shape, n = fabric.Shape(1, 2, 4), 3
    with fabric.watched() as history, fabric.domains(1, 2, "heal-") as cliques:
        seen = see(history, GROUPS)
        gangs = Gangs(seen)
        gangs.make("opt", shape, scheduler=None)
        seen.wait("it is there", lambda: gangs.ready("opt") == n)
        assert not seen.groups("opt")

        # The field is set while it runs.
        gangs.patch("opt", topology={"scheduler": GANG})
        gangs.whole("opt", n)
        (group,) = seen.groups("opt")
        assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": n}}
        for lost in (1, 1, n - 1, n):
            gangs.lose("opt", lost)
            gangs.whole("opt", n)
        (same,) = seen.groups("opt")
        assert same["metadata"]["uid"] == group["metadata"]["uid"]

        # Somebody deletes the group: Kubernetes keeps it for the pods that are there.
        gangs.kubectl("delete", f"{GROUPS}/{group['metadata']['name']}", "--wait=false")
        gangs.lose("opt", 1)
        gangs.whole("opt", n)
        (same,) = seen.groups("opt")
        assert same["metadata"]["uid"] == group["metadata"]["uid"]
        assert "deletionTimestamp" in same["metadata"]

        # Another number of instances is another group, and fewer heal as well.
        for instances in (1, 3, 1):
            gangs.patch("opt", decode={"instancesPerUnit": instances})
            gangs.whole("opt", 1 + instances)
            gangs.lose("opt", 1)
            gangs.whole("opt", 1 + instances)
        (now,) = seen.groups("opt")
        assert now["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}

        gangs.patch("opt", topology={"scheduler": None})
        seen.wait("no group is left", lambda: not seen.groups("opt"))
        seen.wait("it is there", lambda: gangs.ready("opt") == 2)
        assert all("schedulingGroup" not in pod["spec"] for pod in gangs.pods("opt"))
        gangs.patch("opt", topology={"scheduler": GANG})
        gangs.whole("opt", 2)
        assert history.check(cliques)
        gangs.delete("opt")


def test_nodes_that_come_are_taken_whole(fabric: Any, see: Any) -> None:
    """A domain too small for all of them gets none; the one that comes later gets all."""
    shape = fabric.whole_domain
    with fabric.watched() as history:
        seen = see(history, GROUPS)
        gangs = Gangs(seen)
        gangs.make("opt", shape, whenNoFit="Provision")
        seen.until("opt", "Provisioning")
        assert len(seen.groups("opt")) == 1
        with fabric.domains(1, 1, "few-"):
            seen.until("opt", "Provisioning", "0/1 nodes are available")
            with fabric.domains(1, 2, "come-") as cliques:
                gangs.whole("opt", shape.pods)
                seen.until("opt", "Placed")
                assert {pod["spec"]["nodeName"] for pod in gangs.pods("opt")} == set(cliques)
                assert makings(history, "opt") == [shape.pods]
                gangs.delete("opt")


def placed(history: Any, name: str) -> int:
    """Units that have StatefulSets."""
    marks = [
        one["metadata"]["labels"]
        for one in list(history.live.values())
        if one["kind"] == "StatefulSet"
    ]
    return len({one[UNIT] for one in marks if one.get(DEPLOYMENT) == name})
