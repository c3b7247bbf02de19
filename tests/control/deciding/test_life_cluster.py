"""The operator as a process on a real API server, scheduler and controllers, with fake nodes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.waiting import wait_for

SECONDS = 60.0
OURS = "app.kubernetes.io/instance=tiny"
GATEWAYS = f"{OURS},app.kubernetes.io/component=gateway"
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "distserve-gateway"},
    "rules": [],
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def operated(control_plane: Cluster, tmp_path_factory: Any) -> Iterator[Cluster]:
    """The control plane with two fake nodes and an operator."""
    control_plane.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")

    def established() -> bool:
        found = control_plane.get("crd", "distservedeployments.distserve.io", "default")
        conditions = found.get("status", {}).get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    wait_for("the resource to be served", established, SECONDS)
    control_plane.apply(ROLE)
    names = control_plane.nodes(2, gpus=8)
    log = Path(tmp_path_factory.mktemp("operator")) / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "distserve.cli.main", "operator",
                "--kubeconfig", str(control_plane.kubeconfig),
                "--health-port", str(free_port()), "--metrics-port", str(free_port()),
            ],
            stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            yield control_plane
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            control_plane.remove_nodes(names)
            print(log.read_text()[-8000:])


@pytest.fixture
def namespace(operated: Cluster) -> Iterator[str]:
    with operated.namespace() as name:
        yield name


def sample(**spec: Any) -> dict[str, Any]:
    """tiny-cpu on fake nodes."""
    found: dict[str, Any] = yaml.safe_load(
        (CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text()
    )
    pod = {"spec": {"tolerations": [TOLERATION]}}
    found["spec"] |= {
        "prefill": {"podTemplate": pod},
        "decode": {"podTemplate": pod},
        "gateway": {"podTemplate": pod},
    } | spec
    return found


@pytest.fixture
def until(operated: Cluster, namespace: str) -> Callable[..., dict[str, Any]]:
    def wait(what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def look() -> bool:
            found = operated.get("dsd", "tiny", namespace)
            state = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
            now = found["metadata"]["generation"]
            return found.get("status", {}).get("observedGeneration") == now and holds(
                {**found["status"], **state}
            )

        wait_for(what, look, SECONDS)
        return dict(operated.get("dsd", "tiny", namespace)["status"])

    return wait


def test_a_life(operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]) -> None:
    operated.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True" and s["replicas"] == 1)

    operated.apply(sample(units=2), namespace)
    first = until("two units", lambda s: s["replicas"] == 2)["revision"]["target"]

    operated.apply(sample(units=2, images={"engine": "mine:2"}), namespace)
    new = until(
        "rolled out",
        lambda s: s["revision"]["current"] != first
        and s["Progressing"]["reason"] == "UpToDate" and s["replicas"] == 2,
    )["revision"]["target"]  # fmt: skip
    selector = f"--selector=distserve.io/revision={new}"
    assert (
        len(operated.kubectl("get", "pods", "-o", "name", selector, "-n", namespace).split()) == 4
    )
    assert len(operated.kubectl("get", "statefulsets", "-o", "name", "-n", namespace).split()) == 4

    operated.kubectl("delete", "service", "tiny-gateway", "-n", namespace)
    operated.kubectl(
        "patch", "statefulset", "tiny-u0-prefill-0", "-n", namespace, "--type=merge",
        "-p", '{"spec":{"replicas":3}}',
    )  # fmt: skip

    def repaired() -> bool:
        live = operated.get("statefulset", "tiny-u0-prefill-0", namespace)
        services = operated.kubectl("get", "services", "-o", "name", "-n", namespace)
        return live["spec"]["replicas"] == 1 and "service/tiny-gateway\n" in services

    wait_for("drift to be repaired", repaired, SECONDS)

    template = {"spec": {"dnsPolicy": "Sometimes", "tolerations": [TOLERATION]}}
    operated.apply(sample(units=2, decode={"podTemplate": template}), namespace)
    said = until("a refusal", lambda s: s["Accepted"]["status"] == "False")
    (accepted,) = [c for c in said["conditions"] if c["type"] == "Accepted"]
    assert accepted["reason"] == "RefusedByApiServer" and "dnsPolicy" in accepted["message"]
    assert said["replicas"] == 2

    operated.kubectl("delete", "dsd", "tiny", "-n", namespace)

    def gone() -> bool:
        kinds = "statefulsets,deployments,secrets,controllerrevisions,pdb,services,pods"
        return not operated.kubectl("get", kinds, "-o", "name", "-n", namespace).strip()

    wait_for("everything to be gone", gone, SECONDS)


def test_idle_is_idle(
    operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]
) -> None:
    """Once ready, nothing is written any more: no object's version changes."""
    operated.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True" and not s.get("x"))
    kinds = "dsd,statefulsets,deployments,controllerrevisions,pdb,services,rolebindings"

    def versions() -> str:
        query = (
            "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}\n{end}"
        )
        return operated.kubectl("get", kinds, "-o", query, "-n", namespace)

    seen: list[str] = []

    def quiet() -> bool:
        seen.append(versions())
        return len(seen) >= 5 and len(set(seen[-5:])) == 1

    wait_for("five looks that see the same", quiet, SECONDS)


def test_more_gateways_restart_none(
    operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]
) -> None:
    def gateways() -> set[str]:
        """Uids of the pods that run and stay."""
        found = operated.get("pods", namespace=namespace, selector=GATEWAYS)["items"]
        stay = [pod["metadata"] for pod in found if pod["status"]["phase"] == "Running"]
        return {one["uid"] for one in stay if "deletionTimestamp" not in one}

    def scaled(replicas: int) -> set[str]:
        change = f'{{"spec":{{"gateway":{{"replicas":{replicas}}}}}}}'
        where = ("dsd/tiny", "-n", namespace, "--type=merge", "-p", change)
        operated.kubectl("patch", *where)
        wait_for(f"{replicas} gateways", lambda: len(gateways()) == replicas, SECONDS)
        return gateways()

    operated.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True")
    first = gateways()
    assert len(first) == 2
    more = scaled(4)
    assert first < more, "those that ran run on"
    assert scaled(1) < more
    until("calm", lambda s: s["Progressing"]["reason"] == "UpToDate")
    sets = operated.get("replicasets", namespace=namespace, selector=GATEWAYS)["items"]
    assert len(sets) == 1, "one template all the time"
    ours = operated.get("controllerrevisions", namespace=namespace, selector=OURS)["items"]
    kept = [one for one in ours if "templates" in (one.get("data") or {})]
    assert len(kept) == 1
