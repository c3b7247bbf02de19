"""A model from a hub, by the init container of real pods: one download for both nodes."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

HUB = Path(__file__).with_name("hub.py")
MODEL = CHECKOUT / "runtime" / "distserve" / "models" / "tiny"
PORT = 8080
TOKEN = "hf_secret"
WEIGHTS = "model.safetensors"
ROLES = ("prefill", "decode")
WORDS = f"the digest of {WEIGHTS} is not the one that the hub names"
WHOLE = f"org--model@{'a' * 40}"


@pytest.fixture(scope="module")
def hub(place: Any) -> str:
    """Its address in the cluster."""
    cluster: Cluster = place.cluster
    pod = cluster.python_pod("hub", [str(HUB), str(PORT), str(MODEL), TOKEN])
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub"}}
    ports = [{"port": 80, "targetPort": PORT}]
    service["spec"] = {"selector": {"app": "hub"}, "ports": ports}
    cluster.apply([pod, secret | {"stringData": {"token": TOKEN}}, service], place.namespace)
    cluster.wait_until_ready("pod hub", place.namespace)
    return f"http://hub.{place.namespace}.svc"


@pytest.fixture(scope="module")
def cache(place: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is in the claim `cache`: a folder of this machine, so that all nodes can write it."""
    cluster, namespace = place.cluster, place.namespace
    folder = tmp_path_factory.mktemp("cache")
    # Volumes of this kind know no fsGroup.
    folder.chmod(0o777)
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            **common,
            "capacity": size,
            "claimRef": {"namespace": namespace, "name": "cache"},
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"{cluster.node_paths}{folder}"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "cache"},
        "spec": {**common, "volumeName": namespace, "resources": {"requests": size}},
    }
    cluster.apply([volume, claim], namespace)
    yield folder
    cluster.kubectl("delete", "persistentvolume", namespace, "--wait=false")


@pytest.fixture(scope="module")
def downloading(new_deployment: Any, hub: str, cache: Path) -> Any:
    found = new_deployment(fetch={"HF_ENDPOINT": hub})
    source = {"repository": "org/model", "tokenSecretName": "hf"}
    model = {"id": "tiny", "source": {"huggingFace": source}, "cache": {"claimName": "cache"}}
    found.document["metadata"]["name"] = "hubbed"
    found.document["spec"] |= {"model": model, "gateway": {"replicas": 1}}
    found.apply()
    return found


def downloads(deployment: Any, hub: str) -> list[int]:
    """Of the weights: the first byte of each."""
    said = json.loads(deployment.place.read(f"{hub}/asked"))
    return [first for name, first in said if name == WEIGHTS]


def messages(deployment: Any) -> list[str]:
    return [one["message"] for one in deployment.live()["status"]["conditions"]]


def one_waits(deployment: Any, pods: list[str]) -> bool:
    """For the other's download. A process that has not come so far may not hear that it is to end:
    the kernel sends a container's first process no signal before it asks for it."""

    def said(pod: str) -> str:
        try:
            where = f"--namespace={deployment.namespace}"
            return str(deployment.cluster.kubectl("logs", pod, where, "--container=fetch-model"))
        except CommandFailed:  # it has not begun
            return ""

    return any("waiting for it" in said(pod) for pod in pods)


def test_an_interrupted_download_is_resumed_checked_and_served(
    downloading: Any, hub: str, cache: Path
) -> None:
    """Pods are deleted while they download; then the hub serves a wrong byte."""
    cluster: Cluster = downloading.cluster
    growing = cache / f"{WHOLE}.partial" / f"{WEIGHTS}.incomplete"

    def half_way() -> bool:
        return growing.is_file() and growing.stat().st_size >= 10_000_000

    cluster.wait_for("half of the weights", half_way)
    kept = growing.stat().st_size
    instances = [pod["metadata"]["name"] for role in ROLES for pod in downloading.pods(role=role)]
    cluster.wait_for("the other to wait", lambda: one_waits(downloading, instances))
    where = f"--namespace={downloading.namespace}"
    # Less than the grace period: a download ends at once.
    cluster.kubectl("delete", "pods", where, "--timeout=30s", *instances)
    cluster.wait_for(
        "conditions to say why", lambda: any(WORDS in m for m in messages(downloading))
    )
    downloading.place.read(f"{hub}/repaired")
    downloading.wait_for("Ready")
    first, resumed, *anew = downloads(downloading, hub)
    assert (first, resumed) == (0, kept)
    assert set(anew) == {0}, "what was wrong is not kept"
    served = runpy.run_path(str(HUB))["padded"]((MODEL / WEIGHTS).read_bytes())
    assert (cache / WHOLE / WEIGHTS).read_bytes() == served
    (answer,) = downloading.ask("Return the")
    assert answer["text"]
