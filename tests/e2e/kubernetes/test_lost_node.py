"""A kubelet that is killed for good, on real nodes: how long until the unit is whole again."""

import signal
import time
from datetime import datetime
from typing import Any

import pytest
from tools.cluster.conditions import conditions, is_true

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(2400)]

NODES = {"node1", "node2"}
UNIT = "distserve.io/unit"
UNREACHABLE = "node.kubernetes.io/unreachable"
NODE_LOST_AFTER = 10
DETECTED_SECONDS = 240.0
WHOLE_SECONDS = 600.0
"""Two engines load at once on what is one small machine, beside those of the lost node, which
nobody ends: up to 190 s when others use it, too."""


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def ready_at(pod: Any) -> float | None:
    there = is_true(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]
    return seconds(conditions(pod)["Ready"]["lastTransitionTime"]) if there else None


def keep_names(cluster: Any, survivor: str) -> None:
    """The cluster has one DNS server: it is not what is lost here."""
    where = ("--namespace=kube-system", "--selector=k8s-app=kube-dns")
    (pod,) = cluster.get("pods", namespace="kube-system", selector="k8s-app=kube-dns")["items"]
    if (other := pod["spec"]["nodeName"]) != survivor:
        cluster.kubectl("cordon", other)
        cluster.kubectl("delete", "pods", *where)
        cluster.wait_until_ready("pods --selector=k8s-app=kube-dns", "kube-system")
        cluster.kubectl("uncordon", other)


def test_a_unit_is_whole_again_after_a_kubelets_death(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its processes live on: what comes of them is part of it. The other node has room for all."""
    cluster = deployment.cluster
    survivor = cluster.get("pod", "client", deployment.namespace)["spec"]["nodeName"]
    (lost,) = NODES - {survivor}
    keep_names(cluster, survivor)
    for role in ("prefill", "decode"):
        del deployment.document["spec"][role]["podTemplate"]["spec"]["nodeSelector"]
    cluster.kubectl("cordon", survivor)
    try:
        deployment.apply(restart={"nodeLostAfter": f"{NODE_LOST_AFTER}s"})
        cluster.wait_for("all pods to be made", lambda: len(deployment.pods()) == 4)
        deployment.wait_for("Ready", seconds=WHOLE_SECONDS)
    finally:
        cluster.kubectl("uncordon", survivor)
    before = {pod["metadata"]["uid"] for pod in deployment.pods()}
    assert {pod["spec"]["nodeName"] for pod in deployment.pods()} == {lost}
    (answer,) = deployment.ask("The river")

    def taint() -> str:
        taints = cluster.get("node", lost)["spec"].get("taints") or []
        times = [t["timeAdded"] for t in taints if t["key"] == UNREACHABLE and "timeAdded" in t]
        return min(times, default="")

    def whole() -> bool:
        """Nothing of what was, and all of it Ready on the other node."""
        pods = deployment.pods()
        old = {pod["metadata"]["uid"] for pod in pods} & before
        return not old and len(pods) == len(before) and all(map(ready_at, pods))

    kubelet = cluster.processes[f"{lost}-kubelet"]
    killed = time.time()
    kubelet.stop(signal.SIGKILL)
    try:
        cluster.wait_for("the control plane to miss it", lambda: bool(taint()), DETECTED_SECONDS)
        tainted = seconds(taint())
        cluster.wait_for("the unit to be whole again", whole, WHOLE_SECONDS)
        pods = [pod for pod in deployment.pods() if pod["metadata"]["labels"].get(UNIT)]
        made = max(seconds(pod["metadata"]["creationTimestamp"]) for pod in pods)
        ready = max(ready_at(pod) or 0.0 for pod in pods)
        assert {pod["spec"]["nodeName"] for pod in pods} == {survivor}
        deployment.wait_for("Ready", seconds=WHOLE_SECONDS)
        assert deployment.ask("The river") == [answer]
        notes = [event["note"] for event in deployment.wait_until_told("NodeLost")]
        assert any(f"node {lost} has been unreachable for {NODE_LOST_AFTER} s" in n for n in notes)
    finally:
        kubelet.start()
        cluster.wait_until_ready(f"node {lost}")
    with capsys.disabled():
        print(
            f"\n  kubelet killed -> taint, by the control plane: {tainted - killed:.0f} s"
            f"\n  taint -> new pods: {made - tainted:.0f} s (nodeLostAfter {NODE_LOST_AFTER} s; "
            f"aim: {NODE_LOST_AFTER + 15} s)"
            f"\n  new pods -> Ready: {ready - made:.0f} s (loading)"
        )
