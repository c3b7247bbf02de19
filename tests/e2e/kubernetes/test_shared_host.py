"""Instances on one node with kvTransfer.hostSharing: KV moves through the node's memory."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT
from tools.cluster.conditions import is_true

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SAMPLE = CHECKOUT / "manifests" / "samples" / "tiny-shared-host.yaml"
CAPABILITIES = """
import time
line = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))
print(int(line.split()[1], 16), flush=True)
time.sleep(3600)
"""
IPC_LOCK = 1 << 14
"""Its bit: linux/capability.h."""


@pytest.fixture(scope="module")
def sharing(new_deployment: Any) -> Iterator[Any]:
    """The sample, both of its instances on one node."""
    found = new_deployment()
    sample = yaml.safe_load(SAMPLE.read_text())
    found.document["metadata"] = sample["metadata"]
    found.document["spec"]["kvTransfer"] = sample["spec"]["kvTransfer"]
    found.document["spec"]["gateway"] = {"replicas": 1}
    for role in ("prefill", "decode"):
        pod = found.document["spec"][role]["podTemplate"]["spec"]
        pod["nodeSelector"] = {"kubernetes.io/hostname": "node1"}
        # The image has no shell of its own, either.
        (engine,) = pod["containers"]
        pod["initContainers"] = [copy.deepcopy(engine) | {"name": "host-folder"}]
    found.apply()
    found.cluster.wait_for("all pods to be made", lambda: len(found.pods()) == 3)
    found.wait_for("Ready")
    yield found


def moved(sharing: Any) -> dict[str, float]:
    """Bytes of KV by transport, as the decode instance's migrator counts them."""
    found = sharing.place.metrics(sharing.pod(role="decode"), 8102)
    return {
        transport: sum(
            value
            for name, value in found.items()
            if name.startswith("distserve_kv_transfer_bytes_total")
            and f'transport="{transport}"' in name
        )
        for transport in ("SharedMemory", "TCP")
    }


def test_kv_moves_through_shared_memory_between_pods(sharing: Any) -> None:
    sharing.ask("The sea", times=2)
    found = moved(sharing)
    assert found["SharedMemory"] > 0 and found["TCP"] == 0, found


def test_a_pod_that_is_made_again_takes_its_socket_over(sharing: Any) -> None:
    before = moved(sharing)["SharedMemory"]
    old = sharing.pod(role="prefill")["metadata"]
    sharing.cluster.kubectl(
        "delete", f"pod/{old['name']}", f"--namespace={sharing.namespace}", "--grace-period=0",
        "--force",
    )  # fmt: skip

    def made_again() -> bool:
        pods = sharing.pods(role="prefill")
        return bool(pods) and all(
            pod["metadata"]["uid"] != old["uid"] and is_true(pod, "Ready") for pod in pods
        )

    sharing.cluster.wait_for("another prefill pod", made_again, 120)
    sharing.wait_for("Ready")
    sharing.ask("The moon", times=2)
    found = moved(sharing)
    assert found["SharedMemory"] > before and found["TCP"] == 0, found


@pytest.mark.parametrize(("user", "has"), [(65532, False), (0, True)])
def test_an_added_capability_reaches_user_0_alone(place: Any, user: int, has: bool) -> None:
    """Why fabric.rdma.ipcLock changes the user."""
    pod = place.cluster.python_pod(f"locks-{user}", ["-c", CAPABILITIES])
    (container,) = pod["spec"]["containers"]
    container["securityContext"] = {
        "runAsUser": user,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    place.cluster.apply(pod, place.namespace)
    place.cluster.wait_until_ready(f"pod locks-{user}", place.namespace)
    said = place.cluster.kubectl("logs", f"locks-{user}", f"--namespace={place.namespace}")
    assert int(said) == (IPC_LOCK if has else 0)
