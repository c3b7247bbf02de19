"""Quota shared through the real Volcano: units let in, bound whole, healed and given back."""

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster import volcano

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(volcano.lacking()), reason=f"NO VOLCANO: {volcano.lacking()}"),
]

Object = dict[str, Any]
API = f"{volcano.GROUP}/v1beta1"
GROUPS = f"podgroups.{volcano.GROUP}"
QUEUES = f"queues.{volcano.GROUP}"
STARTS_SECONDS = 120.0


@pytest.fixture
def scheduler(crd: Any) -> Iterator[Any]:
    """Volcano's, as a process."""
    with volcano.running(crd) as process:
        yield process


@pytest.fixture
def operator(scheduler: Any, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--volcano=on")
    found.wait_until("ready", lambda: found.probe("/readyz") == 200, STARTS_SECONDS)
    found.wait_until("leads", lambda: found.leads)
    return found


def queued(found: Object, queue: str = "team-a") -> Object:
    found["metadata"]["annotations"] = {f"{volcano.GROUP}/queue-name": queue}
    found["spec"]["topology"]["scheduler"] = "Volcano"
    return found


@contextlib.contextmanager
def halted(process: Any) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_quota_for_one_unit(fabric: Any, see: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shape, small = fabric.whole_domain, fabric.Shape(1, 1, 2)
    with fabric.watched() as history, fabric.domains(3, 2, "volcano-") as cliques:
        seen = see(history, GROUPS)
        said = {}

        fabric.apply(queued(fabric.deployment("first", shape)))
        said["no queue"] = seen.until("first", "QueuedByVolcano", "there is no Queue team-a")
        limit = {"nvidia.com/gpu": str(shape.gpus)}
        queue = {"apiVersion": API, "kind": "Queue", "metadata": {"name": "team-a"}}
        fabric.cluster.apply(queue | {"spec": {"weight": 1, "capability": limit}})
        seen.whole(first=shape.pods)
        seen.until("first", "Placed")
        assert seen.first_bound_with("first") == shape.pods, "nobody before the last one is there"
        (group,) = seen.groups("first")
        assert group["spec"]["minResources"]["nvidia.com/gpu"] == str(shape.gpus)
        seen.wait("Volcano counts it", lambda: phase(seen.groups("first")) == "Running")
        for pod in history.units()["first", "u0"]:
            assert pod["spec"]["schedulerName"] == "volcano"

        # A rollout that asks for the same stays the same group.
        (before,) = seen.groups("first")
        patch = {
            "decode": {"podTemplate": {"metadata": {"annotations": {"new": "1"}}}},
            "rollout": {"whenFull": "ReplaceOne"},
        }
        which = ("dsd/first", f"-n{fabric.namespace}", "--type=merge")
        fabric.cluster.kubectl("patch", *which, f"--patch={json.dumps({'spec': patch})}")

        def rolled() -> bool:
            pods = history.units().get(("first", "u0"), [])
            new = [p for p in pods if p["metadata"].get("annotations", {}).get("new") == "1"]
            return bool(new) and all(p["spec"].get("nodeName") for p in new)

        seen.wait("the new revision is bound", rolled)
        seen.whole(first=shape.pods)
        assert [one["metadata"]["uid"] for one in seen.groups("first")] == [
            before["metadata"]["uid"]
        ]

        fabric.apply(queued(fabric.deployment("second", shape)))
        said["waits"] = seen.until("second", "QueuedByVolcano", "waits whole in Queue team-a")
        events = fabric.cluster.kubectl(
            "describe", f"{GROUPS}/{seen.groups('second')[0]['metadata']['name']}",
            f"--namespace={fabric.namespace}",
        )  # fmt: skip
        assert "nvidia.com/gpu" in events and "insufficient" in events, "where the message leads"
        assert "second" not in history.owners(), "nothing of it exists"

        # In a full queue what is lost comes back, whoever waits for quota.
        for lost in (1, 1, shape.pods - 1):
            pods = history.units()["first", "u0"][:lost]
            seen.lose(pods)
            seen.wait(f"it is whole again without {lost}", lambda: seen.is_whole("first", shape))
            assert "second" not in history.owners()

        seen.delete("first")
        seen.whole(second=shape.pods)
        seen.until("second", "Placed")
        assert not seen.groups("first")

        patch = {"spec": {"capability": {"nvidia.com/gpu": str(small.gpus - 1)}}}
        fabric.cluster.kubectl(
            "patch", f"{QUEUES}/team-a", "--type=merge", f"--patch={json.dumps(patch)}"
        )
        fabric.apply(queued(fabric.deployment("third", small)))
        said["too large"] = seen.until("third", "QueuedByVolcano", "may never have more than")
        closed = {"apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command"}
        closed |= {"metadata": {"name": "close"}, "action": "CloseQueue"}
        owner = fabric.cluster.get(f"{QUEUES}/team-a")
        closed["target"] = {
            "apiVersion": API, "kind": "Queue", "name": "team-a", "controller": True,
            "uid": owner["metadata"]["uid"],
        }  # fmt: skip
        fabric.cluster.apply(closed, fabric.namespace)
        said["closed"] = seen.until("third", "QueuedByVolcano", "lets nothing in; open it")
        # Its annotation leads elsewhere: what waits changes over.
        marks = ("annotate", "dsd/third", f"-n{fabric.namespace}", "--overwrite")
        fabric.cluster.kubectl(*marks, f"{volcano.GROUP}/queue-name=default")
        seen.whole(second=shape.pods, third=small.pods)
        assert [one["spec"]["queue"] for one in seen.groups("third")] == ["default"]
        seen.until("second", "Placed")
        assert history.check(cliques) >= 3 * shape.pods
        counts = Counter(one["kind"] for one in history.events)
        assert counts["Pod"] and seen.most_bound() <= shape.pods + small.pods
        for name in ("second", "third"):
            seen.delete(name)
        seen.wait("nothing is left", lambda: not seen.groups("second") + seen.groups("third"))
    with capsys.disabled():
        for what, words in said.items():
            print(f"\n  {what}: {words}", end="")
        print()


def test_all_of_a_unit_are_bound_or_none(fabric: Any, see: Any, scheduler: Any) -> None:
    """Room goes after the unit was placed and before Volcano looks."""
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(2, 2, "gang-") as cliques:
        seen = see(history, GROUPS)
        ours = [min(node for node, one in cliques.items() if one == f"gang-{n}") for n in (0, 1)]
        fabric.apply(*(fabric.foreign_pod(f"busy-{n}", ours[n], 1) for n in (0, 1)))
        opt = queued(fabric.deployment("opt", shape), "default")
        opt["spec"]["topology"]["gangTimeout"] = "10s"
        fabric.apply(opt)
        seen.until("opt", "NoRoom", "Queue default of Volcano counts it meanwhile")
        assert not history.owners()

        def made() -> bool:
            return len(history.units().get(("opt", "u0"), [])) == shape.pods

        here = f"--namespace={fabric.namespace}"
        with halted(scheduler):
            fabric.cluster.kubectl("delete", "pod/busy-0", here)
            seen.wait("it is placed", made)
            fabric.apply(fabric.foreign_pod("quicker", ours[0], 1))
            fabric.wait_until("that is there", lambda: _is_there(fabric, "quicker"))
        seen.until("opt", "Unschedulable", "gangTimeout")
        seen.until("opt", "NoRoom", "Queue default of Volcano counts it meanwhile")
        seen.wait("it is taken back whole", lambda: not history.units())
        assert seen.most_bound() == 0, "three of its pods had nodes, and got none"

        fabric.cluster.kubectl("delete", "pod/quicker", here)
        seen.whole(opt=shape.pods)
        seen.until("opt", "Placed")
        assert history.check(cliques) == shape.pods
        seen.delete("opt")
        fabric.cluster.kubectl("delete", "pod/busy-1", here)


def test_an_extra_unit_has_quota_of_its_own(fabric: Any, see: Any) -> None:
    shape = fabric.Shape(1, 1, 2)
    limit = {"nvidia.com/gpu": str(2 * shape.gpus)}
    with fabric.watched() as history, fabric.domains(2, 2, "surge-") as cliques:
        seen = see(history, GROUPS)
        queue = {"apiVersion": API, "kind": "Queue", "metadata": {"name": "team-b"}}
        fabric.cluster.apply(queue | {"spec": {"weight": 1, "capability": limit}})
        fabric.apply(queued(fabric.deployment("opt", shape), "team-b"))
        seen.whole(opt=shape.pods)
        # Other resources are another group: the unit goes whole, and queues for them.
        container = {"name": "engine", "resources": {"requests": {"cpu": "3"}}}
        patch = {"decode": {"podTemplate": {"spec": {"containers": [container]}}}}
        which = ("dsd/opt", f"--namespace={fabric.namespace}", "--type=merge")
        (before,) = seen.groups("opt")
        fabric.cluster.kubectl("patch", *which, f"--patch={json.dumps({'spec': patch})}")
        served: list[int] = []

        def rolled() -> bool:
            ready = [fabric.is_ready(pod) for pods in history.units().values() for pod in pods]
            served.append(sum(ready))
            found = seen.groups("opt")
            new = [one for one in found if one["metadata"]["uid"] != before["metadata"]["uid"]]
            return len(found) == 1 == len(new) and not history.units().get(("opt", "u1"))

        seen.wait("one unit of the new revision is left", rolled)
        seen.whole(opt=shape.pods)
        assert min(served) >= shape.pods, "the extra unit serves meanwhile"
        assert seen.most_bound() == 2 * shape.pods
        assert history.check(cliques) >= 3 * shape.pods
        seen.delete("opt")
        seen.wait("nothing is left", lambda: not seen.groups("opt"))


def test_a_smaller_unit_heals_too(fabric: Any, see: Any) -> None:
    with fabric.watched() as history, fabric.domains(1, 2, "small-") as cliques:
        seen = see(history, GROUPS)
        fabric.apply(queued(fabric.deployment("opt", fabric.Shape(1, 3, 2)), "default"))
        seen.whole(opt=4)
        (before,) = seen.groups("opt")
        patch = json.dumps({"spec": {"decode": {"instancesPerUnit": 1}}})
        which = ("dsd/opt", f"--namespace={fabric.namespace}", "--type=merge")
        fabric.cluster.kubectl("patch", *which, f"--patch={patch}")
        seen.wait("two are left", lambda: len(history.units()["opt", "u0"]) == 2)
        seen.lose(history.units()["opt", "u0"][:1])
        seen.whole(opt=2)
        (group,) = seen.groups("opt")
        assert group["metadata"]["uid"] == before["metadata"]["uid"]
        assert group["spec"]["minMember"] == 2
        assert history.check(cliques) == 5
        seen.delete("opt")
        seen.wait("nothing is left", lambda: not seen.groups("opt"))


def phase(groups: list[Object]) -> str:
    (found,) = groups
    return str(found.get("status", {}).get("phase", ""))


def _is_there(fabric: Any, name: str) -> bool:
    found = fabric.cluster.get("pods", namespace=fabric.namespace)["items"]
    return any(one["metadata"]["name"] == name for one in found)
