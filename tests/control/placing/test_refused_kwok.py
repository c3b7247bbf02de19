"""What only the scheduler knows: a unit whose volume is in another domain than the fullest."""

from typing import Any

import pytest

Object = dict[str, Any]
CLIQUE = "nvidia.com/gpu.clique"
NAME = "weights"


def volume(namespace: str, clique: str) -> list[Object]:
    """One that only this domain's nodes reach, and the claim that is bound to it."""
    here = {"key": CLIQUE, "operator": "In", "values": [clique]}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{NAME}"},
            "spec": {
                **common,
                "capacity": {"storage": "1Gi"},
                "hostPath": {"path": f"/{NAME}"},
                "claimRef": {"namespace": namespace, "name": NAME},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": NAME, "namespace": namespace},
            "spec": {
                **common,
                "volumeName": f"{namespace}-{NAME}",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    ]


def bound(fabric: Any) -> bool:
    claim = fabric.cluster.get("persistentvolumeclaim", NAME, fabric.namespace)
    return bool(claim.get("status", {}).get("phase") == "Bound")


def test_a_unit_finds_the_domain_of_its_volume(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = fabric.Shape(1, 1, 2)
    with fabric.domains(2, 1, "volume-") as cliques, fabric.watched() as history:
        fuller, other = sorted(cliques)
        fabric.apply(fabric.foreign_pod("busy", fuller, 2))
        for document in volume(fabric.namespace, cliques[other]):
            # One after the other: a claim that is seen before its volume waits for 15 s.
            fabric.apply(document)
        # Until then the scheduler refuses every node, not the other domain only.
        fabric.cluster.wait_for("the claim to be bound", lambda: bound(fabric))
        claim = {"name": NAME, "persistentVolumeClaim": {"claimName": NAME}}
        fabric.apply(fabric.deployment("opt", shape, gangTimeout="3s", pod={"volumes": [claim]}))
        fabric.wait_until_whole(history, {"opt": shape.pods})
        fabric.wait_until("Placed says so", lambda: history.placed()["opt"]["status"] == "True")
        homes = {pod["spec"]["nodeName"] for pod in history.units()["opt", "u0"]}
        assert homes == {other} and history.check(cliques) == shape.pods
        told = [
            condition["message"]
            for one in history.events
            if one["kind"] == "DistServeDeployment"
            for condition in (one.get("status") or {}).get("conditions") or ()
            if condition["reason"] == "Unschedulable"
        ]
        assert any(f"in nvlink {cliques[fuller]}" in words for words in told), told
        status = fabric.cluster.get("dsd/opt", namespace=fabric.namespace)["status"]
        assert "refusals" not in status
        fabric.cluster.kubectl("delete", "dsd/opt", f"--namespace={fabric.namespace}")
        fabric.cluster.kubectl("delete", f"pv/{fabric.namespace}-{NAME}", "--wait=false")
    with capsys.disabled():
        for words in dict.fromkeys(told):
            print(f"\n  {words}", end="")
        print()
