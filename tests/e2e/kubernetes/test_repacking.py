"""An idle unit that lies badly, on two real nodes: it is moved, and clients notice nothing."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from tools.cluster.conditions import conditions, is_true

from distserve.api.quantities import parse_quantity

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(900)]

ZONE = "topology.kubernetes.io/zone"
IDLE_SECONDS = 20.0
LEFT_MILLICPUS, LEFT_BYTES = 600, 3 << 30
"""For the operator's replicas, and for a unit of this test: of two cores the gateways, beside the
unit now, have one."""
MOVED_SECONDS = 600.0
"""Two units load in it, one after the other."""
TOPOLOGY = {
    "levels": [{"name": "zone", "nodeLabel": ZONE}],
    "packWithin": "zone",
    "repack": "WhenIdle",
    "repackIdleAfter": f"{IDLE_SECONDS:.0f}s",
}


def occupant(cluster: Any) -> Any:
    """What makes the other zone the fuller one, with room for a unit yet."""
    sleep = ["-c", "import time; time.sleep(3600)"]
    pod = cluster.python_pod("occupant", sleep, nodeName="node1")
    (container,) = pod["spec"]["containers"]
    there = cluster.get("node", "node1")["status"]["allocatable"]
    cpus = int(parse_quantity(there["cpu"]) * 1000) - LEFT_MILLICPUS
    memory = int(parse_quantity(there["memory"])) - LEFT_BYTES
    container["resources"] = {"requests": {"cpu": f"{cpus}m", "memory": str(memory)}}
    return pod


@pytest.fixture(scope="module")
def deployment(new_deployment: Any) -> Iterator[Any]:
    """Its unit lies on node2 alone, since there was no room on node1."""
    found = new_deployment()
    cluster = found.cluster
    for role in ("prefill", "decode"):
        del found.document["spec"][role]["podTemplate"]["spec"]["nodeSelector"]
    for node, zone in (("node1", "a"), ("node2", "b")):
        cluster.kubectl("label", "node", node, f"{ZONE}={zone}")
    cluster.kubectl("cordon", "node1")
    try:
        found.apply(topology=TOPOLOGY)
        found.wait_for("Placed")
    finally:
        cluster.kubectl("uncordon", "node1")
    found.wait_for("Ready", seconds=MOVED_SECONDS)
    yield found
    where = f"--namespace={found.namespace}"
    cluster.kubectl(
        "delete", "dsd", found.name, where, "--wait=true", "--timeout=120s", seconds=150
    )
    cluster.kubectl("delete", "pod", "occupant", where, "--ignore-not-found", "--wait=false")
    for node in ("node1", "node2"):
        cluster.kubectl("label", "node", node, f"{ZONE}-")


def homes(deployment: Any) -> dict[str, str]:
    """Pod of the unit -> its node."""
    return {
        pod["metadata"]["name"]: pod["spec"].get("nodeName", "")
        for pod in deployment.pods(unit="u0")
    }


def test_an_idle_unit_goes_to_the_fuller_zone_and_requests_are_answered_meanwhile(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = deployment.cluster
    assert set(homes(deployment).values()) == {"node2"}
    answers = deployment.ask("The river", tokens=48)
    began = last = time.monotonic()
    longest = 0.0
    cluster.apply(occupant(cluster), deployment.namespace)
    cluster.wait_for("the other zone to be fuller", lambda: running(deployment, "occupant"), 60)
    while last < began + 2 * IDLE_SECONDS:
        answers.extend(deployment.ask("The river", tokens=48, times=10))
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    if longest < IDLE_SECONDS:  # Else the machine was too slow to keep it busy.
        assert not deployment.told("Repacking")

    # Whoever comes now neither stops the move nor notices it.
    (event,) = deployment.wait_until_told("Repacking", 120)
    assert "is moved from zone b to zone a, to node1" in event["note"]
    assert event["type"] == "Normal"
    rounds = 0

    def moved() -> bool:
        nonlocal rounds
        answers.extend(deployment.ask("The river", tokens=48, times=3))
        rounds += 1
        found = homes(deployment)
        return len(found) == 2 and set(found.values()) == {"node1"} and not leaves(deployment)

    cluster.wait_for("the unit to be in the other zone", moved, MOVED_SECONDS)
    deployment.wait_for("Progressing", "False", MOVED_SECONDS)
    assert {one["text"] for one in answers} == {answers[0]["text"]}
    (left,) = deployment.live()["status"]["repacking"]
    assert left == {"unit": "u0", "leaving": False, "left": ["zone b"]}
    assert deployment.condition("Ready")["status"] == "True"
    assert len(deployment.told("Repacking")) == 1
    begun = datetime.fromisoformat(event["eventTime"]).timestamp()
    ready = max(ready_at(pod) for pod in deployment.pods(unit="u0"))
    with capsys.disabled():
        print(
            f"\n  {event['note']}\n  told -> ready in the other zone: {ready - begun:.0f} s, "
            f"{3 * rounds} requests meanwhile"
        )


def running(deployment: Any, name: str) -> bool:
    pod = deployment.cluster.get("pod", name, deployment.namespace)
    return bool(pod["status"].get("phase") == "Running")


def leaves(deployment: Any) -> bool:
    """Whether an extra unit is still there."""
    return bool(deployment.pods(unit="u1"))


def ready_at(pod: Any) -> float:
    assert is_true(pod, "Ready")
    return datetime.fromisoformat(conditions(pod)["Ready"]["lastTransitionTime"]).timestamp()
