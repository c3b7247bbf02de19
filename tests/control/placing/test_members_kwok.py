"""A unit that KAI binds, on a real API server: the test says and does what KAI would, down to
binding."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Object = dict[str, Any]
GROUP = "scheduling.run.ai"
PODGROUPS = f"podgroups.{GROUP}"
QUEUES = f"queues.{GROUP}"
KINDS = {PODGROUPS: ("PodGroup", "v2alpha2", "Namespaced"), QUEUES: ("Queue", "v2", "Cluster")}
CRD_SECONDS = 180.0
WORDS = "Non-preemptible workload is over quota."


def definition(name: str, kind: str, version: str, scope: str) -> Object:
    """As KAI's: the status is not a part of what is written with the rest."""
    open_ended: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": open_ended, "status": open_ended}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "plural": name.partition(".")[0]},
            "scope": scope,
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


@pytest.fixture
def kinds_served(crd: Any) -> Iterator[None]:
    crd.apply([definition(name, *rest) for name, rest in KINDS.items()])

    def served() -> bool:
        found = crd.kubectl("api-resources", f"--api-group={GROUP}", "--output=name").split()
        return set(KINDS) <= set(found)

    crd.wait_for("KAI's kinds to be served", served)
    yield
    crd.kubectl("delete", "crd", *KINDS, seconds=CRD_SECONDS)


@pytest.fixture
def operator(kinds_served: None, start_distserve: Callable[..., Any]) -> Any:
    found = start_distserve("--engine-check=off", "--kai=on")
    found.wait_until_ready()
    found.wait_until("leads", lambda: found.leads)
    return found


@pytest.mark.parametrize(
    "again", [False, pytest.param(True, marks=pytest.mark.soak, id="tried again after a minute")]
)
def test_it_asks_with_its_pods_and_is_taken_back(fabric: Any, see: Any, again: bool) -> None:
    shape = fabric.Shape(1, 1, 2)
    here = f"--namespace={fabric.namespace}"
    with fabric.watched() as history, fabric.domains(1, 2, "members-"):
        seen = see(history, PODGROUPS)

        def say(conditions: list[Object]) -> None:
            (group,) = seen.groups("opt")
            patch = json.dumps({"status": {"schedulingConditions": conditions}})
            which = f"{PODGROUPS}/{group['metadata']['name']}"
            how = ("--subresource=status", "--type=merge", f"--patch={patch}")
            fabric.cluster.kubectl("patch", which, here, *how)

        opt = fabric.deployment("opt", shape)
        opt["metadata"]["labels"] = {"kai.scheduler/queue": "team-a"}
        opt["spec"]["topology"] |= {"scheduler": "KAI", "gangTimeout": "1s"}
        fabric.apply(opt)
        seen.until("opt", "QueuedByKAI", "there is no Queue team-a of KAI")
        gpu = {"quota": shape.gpus, "limit": -1}
        resources = {"gpu": gpu, "cpu": {"quota": -1, "limit": -1}}
        queue = {"apiVersion": f"{GROUP}/v2", "kind": "Queue", "metadata": {"name": "team-a"}}
        fabric.cluster.apply(queue | {"spec": {"resources": resources}})
        seen.until("opt", "QueuedByKAI", "see whether KAI runs")
        (group,) = seen.groups("opt")
        assert group["spec"] == {
            "minMember": shape.pods, "queue": "team-a", "stalenessGracePeriod": "-1s",
        }  # fmt: skip
        seen.wait(
            "its pods are there", lambda: len(history.units().get(("opt", "u0"), [])) == shape.pods
        )
        for pod in history.units()["opt", "u0"]:
            notes = pod["metadata"]["annotations"]
            assert pod["spec"]["schedulerName"] == "kai-scheduler"
            assert notes["pod-group-name"] == group["metadata"]["name"]
            assert notes["kai.scheduler/skip-podgrouper"] == "true"

        say([{"reasons": [{"reason": "NonPreemptibleOverQuota", "message": WORDS}]}])
        seen.until("opt", "QueuedByKAI", "wait whole for quota of Queue team-a", WORDS[:-1])
        # Of one pod: the unit may be taken back before it is said of another.
        (pod, *_) = history.units()["opt", "u0"]
        unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        patch = json.dumps({"status": {"conditions": [unschedulable | {"message": WORDS}]}})
        how = ("--subresource=status", "--type=strategic", f"--patch={patch}")
        fabric.cluster.kubectl("patch", f"pod/{pod['metadata']['name']}", here, *how)
        seen.until("opt", "QueuedByKAI", "taken back once", WORDS[:-1])
        seen.wait("its pods are gone", lambda: not history.units())
        if not again:
            return

        # Somebody who knows that there is quota now deletes the group: the next one is tried.
        fabric.cluster.kubectl("delete", PODGROUPS, group["metadata"]["name"], here)
        seen.wait("they are made again", lambda: bool(history.units()))
        fabric.cluster.kubectl("delete", "dsd/opt", here, "--wait=false")
        # Kubernetes looks for new kinds, of which it collects garbage, every half minute.
        seen.wait("nothing is left", lambda: not seen.groups("opt") and not history.units())
        fabric.cluster.kubectl("delete", QUEUES, "team-a")
