"""What keeps a deployment from going on, told and overcome: `distserve operator`, a real API server
and scheduler, fake nodes. One operator for all."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import conditions
from tools.cluster.fake_nodes import TOLERATION

SECONDS = 90.0
ROOM = "room"


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane: Cluster) -> Iterator[None]:
    """Each test has a room of its own: a node for two accelerators."""
    rooms = ("surge", "gang", "auto", "disk")
    names = control_plane.nodes(
        len(rooms), gpus=2, prefix="waiting-test", labels=lambda number: {ROOM: rooms[number]}
    )
    yield
    control_plane.remove_nodes(names)


class World:
    """One deployment of one name, whose pods keep to the room of that name."""

    def __init__(self, cluster: Cluster, namespace: str, operator: Any, name: str) -> None:
        self.cluster, self.namespace, self.operator, self.name = cluster, namespace, operator, name

    def apply(self, decode: dict[str, Any] | None = None, **spec: Any) -> None:
        pods = {"tolerations": [TOLERATION], "nodeSelector": {ROOM: self.name}}
        role = {"podTemplate": {"spec": pods}}
        document = {
            "apiVersion": "distserve.io/v1alpha1",
            "kind": "DistServeDeployment",
            "metadata": {"name": self.name},
            "spec": {
                "model": {"id": "m", "source": {"persistentVolumeClaim": {"claimName": "m"}}},
                "strategy": {"name": "Disaggregated"},
                "slo": {"ttft": "2s", "tpot": "500ms"},
                "gateway": {"replicas": 1, **role},
                "prefill": role,
                "decode": {"podTemplate": {"spec": pods | (decode or {})}},
                **spec,
            },
        }
        self.cluster.apply(document, self.namespace)

    def expect(self, condition: str, status: str, reason: str) -> str:
        """Waits for it and returns the message."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            found.update(conditions(self.cluster.get("dsd", self.name, self.namespace)))
            one = found.get(condition) or {}
            return bool(one.get("status") == status and one["reason"] == reason)

        self.operator.wait_until(f"{condition}={status} {reason}", holds, SECONDS)
        return str(found[condition]["message"])

    def sets(self) -> dict[str, dict[str, Any]]:
        selector = f"distserve.io/deployment={self.name}"
        found = self.cluster.get("statefulsets", namespace=self.namespace, selector=selector)
        return {one["metadata"]["name"]: one for one in found["items"]}

    def revisions(self) -> set[str]:
        return {one["metadata"]["labels"]["distserve.io/revision"] for one in self.sets().values()}

    def end(self) -> None:
        self.cluster.kubectl("delete", f"dsd/{self.name}", f"-n{self.namespace}", "--wait=false")


@pytest.fixture
def world(
    crd: Cluster, shared_namespace: str, shared_operator: Any
) -> Iterator[Callable[[str], World]]:
    made: list[World] = []

    def make(name: str) -> World:
        made.append(World(crd, shared_namespace, shared_operator, name))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="module", autouse=True)
def claim(crd: Cluster, shared_namespace: str) -> None:
    """What holds the models; the scheduler takes a claim that says its volume."""
    capacity = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{shared_namespace}-m"},
        "spec": {
            "capacity": capacity,
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "hostPath": {"path": "/m"},
            "claimRef": {"namespace": shared_namespace, "name": "m"},
        },
    }
    bound = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "m"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": f"{shared_namespace}-m",
            "resources": {"requests": capacity},
        },
    }
    crd.apply([volume, bound], shared_namespace)


def test_a_rollout_without_room_waits_and_may_replace_one(world: Callable[[str], World]) -> None:
    surge = world("surge")
    surge.apply()
    surge.expect("Ready", "True", "Serving")
    (old,) = surge.revisions()
    surge.apply(images={"engine": "mine:2"})
    message = surge.expect("Progressing", "False", "NoRoomForSurge")
    assert "ReplaceOne" in message
    assert set(surge.sets()) == {"surge-u0-prefill-0", "surge-u0-decode-0"}
    surge.expect("Ready", "True", "Serving")
    surge.apply(images={"engine": "mine:2"}, rollout={"whenFull": "ReplaceOne"})
    surge.expect("Progressing", "False", "UpToDate")
    surge.expect("Ready", "True", "Serving")
    (new,) = surge.revisions()
    assert new != old


def test_half_a_unit_is_placed_anew(world: Callable[[str], World]) -> None:
    gang = world("gang")
    lacking = [{"name": "other", "persistentVolumeClaim": {"claimName": "lacking"}}]
    gang.apply(decode={"volumes": lacking}, topology={"gangTimeout": "5s"})
    message = gang.expect("Placed", "False", "Unschedulable")
    assert "lacking" in message and "gangTimeout" in message
    first = {name: one["metadata"]["uid"] for name, one in gang.sets().items()}

    def anew() -> bool:
        uids = {name: one["metadata"]["uid"] for name, one in gang.sets().items()}
        return uids.keys() == first.keys() and not set(uids.values()) & set(first.values())

    gang.operator.wait_until("both are made anew", anew, SECONDS)


def test_a_plan_is_made_and_followed(world: Callable[[str], World]) -> None:
    auto = world("auto")
    lengths = {
        "promptTokens": {"mean": 755, "p90": 1608},
        "outputTokens": {"mean": 200, "p90": 447},
    }
    auto.apply(
        model={"id": "facebook/opt-13b", "source": {"persistentVolumeClaim": {"claimName": "m"}}},
        slo={"ttft": "4s", "tpot": "200ms"},
        workload={"requestsPerSecond": "1", "lengths": lengths},
        planning={"mode": "Auto", "maxAccelerators": 2, "hardwareProfile": "a100-80g"},
    )
    assert "a100-80g" in auto.expect("Planned", "True", "MeetsSlo")
    auto.expect("Ready", "True", "Serving")
    plan = auto.cluster.get("dsd", "auto", auto.namespace)["status"]["plan"]
    assert plan["accelerators"] == 2 and set(auto.sets()) == {
        "auto-u0-prefill-0",
        "auto-u0-decode-0",
    }


def test_a_host_path_waits_for_a_privileged_namespace(
    crd: Cluster, shared_namespace: str, world: Callable[[str], World]
) -> None:
    disk = world("disk")

    def enforce(level: str | None) -> None:
        patch = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}}
        crd.kubectl("patch", f"namespace/{shared_namespace}", f"--patch={json.dumps(patch)}")

    enforce("restricted")
    disk.apply(model={"id": "m", "source": {"hostPath": "/models/m"}})
    message = disk.expect("Accepted", "False", "NotSupportedByCluster")
    assert "spec.model.source.hostPath" in message
    assert not disk.sets()
    enforce(None)
    disk.expect("Ready", "True", "Serving")
