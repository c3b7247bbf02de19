"""The operator is killed again and again amid its work: what is there in the end is right."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import conditions, is_true

KINDS = (
    "serviceaccounts,configmaps,secrets,services,statefulsets,deployments,controllerrevisions,"
    "poddisruptionbudgets,networkpolicies,rolebindings"
)
OWNER = "distserve.io/deployment"


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane: Cluster) -> Iterator[None]:
    names = control_plane.nodes(2, prefix="kill-test")
    yield
    control_plane.remove_nodes(names)


def leading(operator: Any) -> Any:
    operator.wait_until("leads", lambda: operator.leads)
    return operator


def test_five_kills_amid_creation_edits_and_rollouts(
    crd: Cluster, namespace: str, start_distserve: Callable[..., Any], deployment: Any
) -> None:
    def objects(name: str) -> set[str]:
        """By kind and name, the deployment's own name and hashes of revisions left out."""
        found = crd.get(KINDS, namespace=namespace, selector=f"{OWNER}={name}")["items"]
        return {
            one["kind"] + one["metadata"]["name"].removeprefix(name)
            for one in found
            if one["kind"] != "ControllerRevision"
        }

    def settled(name: str, units: int) -> bool:
        live = crd.get("dsd", name, namespace)
        status = live.get("status") or {}
        return (
            status.get("observedGeneration") == live["metadata"]["generation"]
            and status.get("replicas") == units
            and is_true(live, "Ready")
            and conditions(live).get("Progressing", {}).get("status") == "False"
        )

    def keys() -> dict[str, str]:
        found = crd.get("secrets", namespace=namespace, selector=OWNER)["items"]
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

    edits: list[Callable[[], Any]] = [
        lambda: crd.apply([deployment(name) for name in ("a", "b", "c")], namespace),
        lambda: crd.apply([deployment("a", units=2), deployment("b", units=3)], namespace),
        lambda: crd.apply(deployment("a", units=2, images={"engine": "x:2"}), namespace),
        lambda: crd.apply(deployment("b", units=1, images={"engine": "x:2"}), namespace),
        lambda: crd.kubectl("delete", "dsd/c", f"-n{namespace}", "--wait=false"),
    ]
    when = random.Random(4)
    seen: dict[str, str] = {}
    operator = leading(start_distserve())
    standby = start_distserve()
    for edit in edits:
        standby.wait_until_ready()
        edit()
        # Amid its work, whatever that is then.
        time.sleep(when.uniform(0.05, 0.8))
        operator.end(signal.SIGKILL)
        # As if its time had run out; that it does is another test's.
        crd.kubectl("delete", "lease/distserve-operator", f"-n{namespace}")
        operator, standby = leading(standby), start_distserve()
        now = keys()
        assert all(now.get(name, uid) == uid for name, uid in seen.items()), "a key is made once"
        seen |= now

    crd.apply(deployment("calm", units=2), namespace)
    operator.wait_until(
        "all is settled",
        lambda: settled("a", 2) and settled("b", 1) and settled("calm", 2),
        seconds=120.0,
    )
    # Kubernetes' garbage collector looks for new kinds every 30 s only.
    operator.wait_until("c is gone", lambda: objects("c") == set(), seconds=120.0)
    assert objects("a") == objects("calm")
    assert objects("b") == {one for one in objects("calm") if "-u1" not in one}
    # Whatever was cut off: not one revision more than the spec had.
    revisions = crd.get("controllerrevisions", namespace=namespace, selector=OWNER)["items"]
    owners = [one["metadata"]["ownerReferences"][0] for one in revisions]
    # A StatefulSet has revisions of its own.
    of = [one["name"] for one in owners if one["kind"] == "DistServeDeployment"]
    assert of.count("calm") == 1 and of.count("a") <= 2 and of.count("b") <= 2
    assert not operator.log.read_text().count('"level": "error"'), operator.tail()
