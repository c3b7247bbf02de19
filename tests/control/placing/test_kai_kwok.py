"""Quota shared through the real KAI: units bound whole, told what they lack, taken back, healed."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster import kai

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(kai.lacking()), reason=f"NO KAI: {kai.lacking()}"),
]

Object = dict[str, Any]
GROUPS = f"podgroups.{kai.GROUP}"
BINDINGS = f"bindrequests.{kai.GROUP}"
QUEUES = f"queues.{kai.GROUP}"
STARTS_SECONDS = 120.0
NO_LIMIT = {"quota": -1, "limit": -1, "overQuotaWeight": 1}


@pytest.fixture
def scheduler(crd: Any) -> Iterator[Any]:
    """KAI's, as a process."""
    with kai.running(crd) as process:
        yield process


@pytest.fixture
def operator(scheduler: Any, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--kai=on")
    found.wait_until("ready", lambda: found.probe("/readyz") == 200, STARTS_SECONDS)
    found.wait_until("leads", lambda: found.leads)
    return found


def queued(found: Object, queue: str, preemptibility: str = "non-preemptible") -> Object:
    found["metadata"]["labels"] = {
        "kai.scheduler/queue": queue,
        "kai.scheduler/preemptibility": preemptibility,
    }
    found["spec"]["topology"] |= {"scheduler": "KAI", "gangTimeout": "15s"}
    return found


def queue(name: str, parent: str = "", **gpu: int) -> Object:
    resources = {"cpu": NO_LIMIT, "memory": NO_LIMIT, "gpu": NO_LIMIT | gpu}
    spec = {"resources": resources} | ({"parentQueue": parent} if parent else {})
    metadata = {"name": name}
    return {"apiVersion": f"{kai.GROUP}/v2", "kind": "Queue", "metadata": metadata, "spec": spec}


@contextlib.contextmanager
def halted(process: Any) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_quota_for_one_unit(fabric: Any, see: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(3, 2, "kai-") as cliques:
        seen = see(history, GROUPS)
        said = {}

        fabric.apply(queued(fabric.deployment("first", shape), "team-a"))
        said["no queue"] = seen.until("first", "QueuedByKAI", "there is no Queue team-a of KAI")
        fabric.cluster.apply(queue("team-a", "top", quota=shape.gpus))
        said["no parent"] = seen.until("first", "QueuedByKAI", "there is no Queue top of KAI")
        assert not history.owners(), "it is known without KAI that it would wait in vain"
        fabric.cluster.apply(queue("top"))
        seen.whole(first=shape.pods)
        seen.until("first", "Placed")
        assert seen.first_bound_with("first") == shape.pods, "nobody before the last one is there"
        (group,) = seen.groups("first")
        for pod in history.units()["first", "u0"]:
            assert pod["spec"]["schedulerName"] == "kai-scheduler"
            assert pod["metadata"]["annotations"]["pod-group-name"] == group["metadata"]["name"]

        fabric.apply(queued(fabric.deployment("second", shape), "team-a"))
        said["lacks"] = seen.until("second", "QueuedByKAI", "wait whole for quota", "GPUs")
        assert ("second", "u0") in history.units()
        said["taken back"] = seen.until("second", "QueuedByKAI", "taken back once", "GPUs")
        seen.wait("its pods are gone", lambda: ("second", "u0") not in history.units())
        seen.until("second", "QueuedByKAI", "wait whole for quota")
        said["again"] = seen.until("second", "QueuedByKAI", "taken back 2 times")

        # In a full queue what is lost comes back, whoever waits for quota.
        for lost in (1, shape.pods - 1):
            seen.lose(history.units()["first", "u0"][:lost])
            seen.wait(f"it is whole again without {lost}", lambda: seen.is_whole("first", shape))
        assert seen.most_bound() == shape.pods, "never a part of the second one"

        seen.delete("first")
        seen.whole(second=shape.pods)
        seen.until("second", "Placed")
        assert not seen.groups("first")
        status = fabric.cluster.get("dsd/second", namespace=fabric.namespace)["status"]
        assert not status.get("provisioning")

        # What may be taken back needs no quota of its own, up to a limit.
        fabric.apply(queued(fabric.deployment("third", shape), "team-a", "preemptible"))
        seen.whole(second=shape.pods, third=shape.pods)
        fabric.cluster.apply(queue("team-b", "top", quota=0, limit=shape.gpus - 1))
        fabric.apply(queued(fabric.deployment("fourth", shape), "team-b", "preemptible"))
        said["limit"] = seen.until("fourth", "QueuedByKAI", "may never have more than")
        assert "fourth" not in history.owners()
        assert history.check(cliques) >= 3 * shape.pods
        every = fabric.cluster.get(GROUPS, namespace=fabric.namespace)["items"]
        assert len(every) == 3, "KAI's pod-grouper made none of its own"
        for name in ("second", "third", "fourth"):
            seen.delete(name)
        for kind in (GROUPS, BINDINGS, "pods"):
            seen.wait(
                f"no {kind} are left",
                lambda kind=kind: not fabric.cluster.get(kind, namespace=fabric.namespace)["items"],
            )
        fabric.cluster.kubectl("delete", QUEUES, "team-a", "team-b", "top")
    with capsys.disabled():
        for what, words in said.items():
            print(f"\n  {what}: {words}", end="")
        print()


def test_all_of_a_unit_are_bound_or_none(fabric: Any, see: Any, scheduler: Any) -> None:
    """Room goes after the unit was placed and before KAI looks: not its quota, so no pause."""
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(2, 2, "gang-") as cliques:
        seen = see(history, GROUPS)
        fabric.cluster.apply([queue("top"), queue("team-a", "top")])
        ours = [min(node for node, one in cliques.items() if one == f"gang-{n}") for n in (0, 1)]
        fabric.apply(*(fabric.foreign_pod(f"busy-{n}", ours[n], 1) for n in (0, 1)))
        fabric.apply(queued(fabric.deployment("opt", shape), "team-a"))
        seen.until("opt", "NoRoom")
        assert not history.owners()
        here = f"--namespace={fabric.namespace}"
        with halted(scheduler):
            fabric.cluster.kubectl("delete", "pod/busy-0", here)
            seen.wait(
                "it is placed", lambda: len(history.units().get(("opt", "u0"), [])) == shape.pods
            )
            fabric.apply(fabric.foreign_pod("quicker", ours[0], 1))
            seen.wait("that is there", lambda: _is_there(fabric, "quicker"))
        seen.until("opt", "Unschedulable", "gangTimeout")
        seen.until("opt", "NoRoom")
        seen.wait("it is taken back whole", lambda: not history.units())
        assert seen.most_bound() == 0, "three of its pods had nodes, and got none"
        status = fabric.cluster.get("dsd/opt", namespace=fabric.namespace)["status"]
        assert not status.get("provisioning"), "no pause: its quota was free"

        fabric.cluster.kubectl("delete", "pod/quicker", here)
        seen.whole(opt=shape.pods)
        seen.until("opt", "Placed")
        assert history.check(cliques) == shape.pods
        seen.delete("opt")
        fabric.cluster.kubectl("delete", "pod/busy-1", here)
        seen.wait("nothing is left", lambda: not seen.groups("opt") and not history.units())
        fabric.cluster.kubectl("delete", QUEUES, "team-a", "top")


def test_it_is_resized_and_rolled_out_as_one_group(fabric: Any, see: Any) -> None:
    shape, smaller = fabric.whole_domain, 3
    with fabric.watched() as history, fabric.domains(1, 2, "sized-") as cliques:
        seen = see(history, GROUPS)
        fabric.cluster.apply([queue("top"), queue("team-a", "top", quota=shape.gpus)])
        fabric.apply(queued(fabric.deployment("opt", shape), "team-a"))
        seen.whole(opt=shape.pods)
        (before,) = seen.groups("opt")

        def edit(**spec: Any) -> None:
            which = ("dsd/opt", f"--namespace={fabric.namespace}", "--type=merge")
            patch = json.dumps({"spec": spec})
            fabric.cluster.kubectl("patch", *which, f"--patch={patch}")

        edit(decode={"instancesPerUnit": 1})
        seen.whole(opt=smaller)
        seen.wait("its group is smaller", lambda: sizes(seen.groups("opt")) == [smaller])
        seen.lose(history.units()["opt", "u0"][:1])
        seen.whole(opt=smaller)  # Of four pods that there are not KAI would wait for the fourth.

        new = {"podTemplate": {"metadata": {"annotations": {"new": "1"}}}}
        edit(decode=new, rollout={"whenFull": "ReplaceOne"})

        def rolled() -> bool:
            pods = history.units().get(("opt", "u0"), [])
            notes = [pod["metadata"].get("annotations", {}) for pod in pods]
            return len(pods) == smaller and any(one.get("new") for one in notes)

        seen.wait("the new revision is there", rolled)
        seen.whole(opt=smaller)
        seen.until("opt", "Placed")
        (after,) = seen.groups("opt")
        assert after["metadata"]["uid"] == before["metadata"]["uid"], "it asks for the same"
        assert after["spec"] == before["spec"] | {"minMember": smaller}
        assert history.check(cliques) >= shape.pods + smaller
        seen.delete("opt")
        seen.wait("nothing is left", lambda: not seen.groups("opt") and not history.units())
        fabric.cluster.kubectl("delete", QUEUES, "team-a", "top")


def test_what_kai_takes_back_goes_whole_and_comes_again(fabric: Any, see: Any) -> None:
    """A unit over its quota, and a pod of another queue that has one: KAI's reclaim."""
    shape = fabric.whole_domain
    with fabric.watched() as history, fabric.domains(1, 2, "over-"):
        seen = see(history, GROUPS)
        ours, theirs = queue("team-a", "top", quota=0), queue("team-b", "top", quota=8)
        fabric.cluster.apply([queue("top"), ours, theirs])
        fabric.apply(queued(fabric.deployment("opt", shape), "team-a", "preemptible"))
        seen.whole(opt=shape.pods)
        other = fabric.foreign_pod("other", "", 8)
        other["metadata"]["labels"] = {"kai.scheduler/queue": "team-b"}
        other["spec"]["schedulerName"] = "kai-scheduler"
        del other["spec"]["nodeName"]
        fabric.apply(other)
        seen.wait("the other pod is bound", lambda: _is_bound(fabric, "other"))
        seen.until("opt", "NoRoom")
        seen.wait("none of its pods is left", lambda: not history.units())
        here = f"--namespace={fabric.namespace}"
        fabric.cluster.kubectl("delete", "pod/other", here)
        seen.whole(opt=shape.pods)
        seen.until("opt", "Placed")
        seen.delete("opt")
        seen.wait("nothing is left", lambda: not seen.groups("opt") and not history.units())
        fabric.cluster.kubectl("delete", QUEUES, "team-a", "team-b", "top")


def sizes(groups: list[Object]) -> list[int]:
    return [one["spec"]["minMember"] for one in groups]


def _is_there(fabric: Any, name: str) -> bool:
    found = fabric.cluster.get("pods", namespace=fabric.namespace)["items"]
    return any(one["metadata"]["name"] == name for one in found)


def _is_bound(fabric: Any, name: str) -> bool:
    found = fabric.cluster.get(f"pod/{name}", namespace=fabric.namespace)
    return bool(found["spec"].get("nodeName"))
