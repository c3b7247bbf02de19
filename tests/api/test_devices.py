"""Fabric, claimed accelerators and shared hosts: one table, asked of the types and of a real API
server."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

from distserve.api.kv_transfer import MigratorPlacement
from distserve.api.loading import ManifestError, parse_deployment

CHECKOUT = Path(__file__).parents[2]
CRD = CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml"
GPU: dict[str, Any] = {"accelerator": {"type": "GPU"}}
CLAIMED: dict[str, Any] = {"accelerator": {"type": "GPU", "deviceClass": "gpu.nvidia.com"}}
NIC = {"rdma": {"deviceClass": "rdma.example"}}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "claim and plugin": (
        {"accelerator": {"deviceClass": "a", "resourceName": "x/y"}}, "takes the place of",
    ),
    "claim of CPUs": ({"accelerator": {"type": "CPU", "deviceClass": "a"}}, "takes the place of"),
    "claim of too many": (
        {"accelerator": {"deviceClass": "a", "perPod": 32}}, "perPod is at most 16",
    ),
    "class of two words": ({"accelerator": {"deviceClass": "a b"}}, "accelerator.deviceClass"),
    "rdma of nobody": (GPU | {"fabric": {"rdma": {}}}, "exactly one of resourceName and"),
    "rdma of two": (
        CLAIMED | {"fabric": {"rdma": {"resourceName": "rdma/a", "deviceClass": "a"}}},
        "exactly one of resourceName and",
    ),
    "rdma of no domain": (GPU | {"fabric": {"rdma": {"resourceName": "hca"}}}, "resourceName"),
    "count of a class": (
        CLAIMED | {"fabric": {"rdma": {"deviceClass": "a", "count": 2}}}, "count belongs to",
    ),
    "pairs of none": (GPU | {"fabric": NIC}, "pairs each device with a claimed accelerator"),
    "rdma for CPUs": (
        {"fabric": {"rdma": {"resourceName": "rdma/a"}}}, "fabric is for accelerators",
    ),
    "IMEX for CPUs": ({"fabric": {"computeDomain": True}}, "fabric is for accelerators"),
    "interface for CPUs": ({"fabric": {"socketInterface": "eth0"}}, "fabric is for accelerators"),
    "interface": (GPU | {"fabric": {"socketInterface": "^eth0"}}, "fabric.socketInterface"),
    "sharing of GPUs": (GPU | {"kvTransfer": {"hostSharing": True}}, "hostSharing is for"),
    "sharing over TCP": (
        {"kvTransfer": {"hostSharing": True, "transport": "TCP"}}, "hostSharing is for",
    ),
}  # fmt: skip
TAKEN: dict[str, dict[str, Any]] = {
    "claimed": CLAIMED,
    "claimed and sidecar": CLAIMED | {"kvTransfer": {"migratorPlacement": "Sidecar"}},
    "claimed, images": CLAIMED | {"images": {"migrator": "m:1"}},
    "rdma": GPU | {"fabric": {"rdma": {"resourceName": "rdma/hca_a", "count": 8, "ipcLock": True}}},
    "pairs": CLAIMED | {"fabric": NIC},
    "IMEX": GPU | {"fabric": {"computeDomain": True, "socketInterface": "eth0"}},
    "nothing of it": {"fabric": {}},
    "shared": {"kvTransfer": {"hostSharing": True}},
    "shared alone": {"kvTransfer": {"hostSharing": True, "transport": "SharedMemory"}},
}


def changed(change: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        (CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text()
    )
    found["spec"] |= change
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_name_field_and_cure(name: str) -> None:
    change, said = REFUSED[name]
    with pytest.raises(ManifestError, match=said):
        parse_deployment(changed(change), "test")


@pytest.mark.parametrize("name", TAKEN)
def test_the_types_take_it(name: str) -> None:
    assert parse_deployment(changed(TAKEN[name]), "test")


def test_a_migrator_is_a_sidecar_where_it_reaches_the_accelerator() -> None:
    placed = {
        name: parse_deployment(changed(change), "test").spec.migrator_placement
        for name, change in {"cpu": {}, "plugin": GPU, "claim": CLAIMED}.items()
    }
    assert placed == {
        "cpu": MigratorPlacement.SIDECAR,
        "plugin": MigratorPlacement.IN_ENGINE_CONTAINER,
        "claim": MigratorPlacement.SIDECAR,
    }


@pytest.mark.cluster
def test_the_api_server_says_the_same(control_plane: Cluster) -> None:
    control_plane.apply(CRD)
    name = yaml.safe_load(CRD.read_text())["metadata"]["name"]
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{name}")
    for change, said in REFUSED.values():
        with pytest.raises(CommandFailed, match=said):
            control_plane.apply(changed(change), "default", "--dry-run=server")
    for change in TAKEN.values():
        said = control_plane.apply(changed(change), "default", "--dry-run=server")
        assert "serverside-applied" in said
