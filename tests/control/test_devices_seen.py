"""Devices of DRA drivers, from the watches to what a unit asks for and a plan may count on."""

import json
from typing import Any

from distserve.api import labels
from distserve.api.loading import parse_deployment
from distserve.operator.acceptance import Refusal, accept
from distserve.operator.kinds import DEPLOYMENTS, DEVICES, NODES, OPTIONAL_CHILDREN
from distserve.operator.model import Features, Key
from distserve.operator.requests import unit_request
from distserve.operator.restoring import stated
from distserve.operator.store import Store
from distserve.placement.devices import class_resource
from distserve.placement.requests import UnitId
from distserve.resources.instances import stateful_set
from distserve.resources.naming import instances
from distserve.resources.revisions import make_revision
from distserve.resources.settings import RenderSettings, released_images

Object = dict[str, Any]
CLASSES, SLICES, CLAIMS = DEVICES
GPUS = class_resource("gpu.nvidia.com")
SPEC = {
    "model": {"id": "m", "source": {"builtin": "tiny"}},
    "accelerator": {"type": "GPU", "deviceClass": "gpu.nvidia.com"},
    "fabric": {"computeDomain": True},
    "prefill": {"parallelism": {"tensor": 4}},
    "decode": {},
}


def seen(kind: str, name: str, version: int = 1, **rest: Any) -> Object:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": kind, "metadata": metadata | rest.pop("metadata", {}), **rest}


def node(name: str) -> Object:
    status = {
        "allocatable": {"cpu": "8", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return seen("Node", name, spec={}, status=status)


def slice_of(name: str, devices: int, version: int = 1) -> Object:
    pool = {"name": name, "generation": version, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": name, "pool": pool}
    found = [{"name": f"gpu-{index}"} for index in range(devices)]
    return seen("ResourceSlice", f"s-{name}", version, spec={**spec, "devices": found})


def claim(name: str, device: str) -> Object:
    result = {"request": "x", "driver": "gpu.nvidia.com", "pool": "a", "device": device}
    allocation = {"devices": {"results": [result]}}
    metadata = {"namespace": "llm"}
    return seen(
        "ResourceClaim", name, metadata=metadata, spec={}, status={"allocation": allocation}
    )


def device_class() -> Object:
    cel = {"expression": "device.driver == 'gpu.nvidia.com'"}
    return seen("DeviceClass", "gpu.nvidia.com", spec={"selectors": [{"cel": cel}]})


def test_the_store_counts_what_drivers_offer_and_claims_take() -> None:
    store = Store()
    store.put(NODES, node("a"))
    store.put(CLASSES, device_class())
    store.put(SLICES, slice_of("a", 4))
    store.put(CLAIMS, claim("x", "gpu-1"))
    assert store.inventory.free("a")[GPUS] == 3
    store.put(SLICES, slice_of("a", 2, version=2))
    assert store.inventory.free("a")[GPUS] == 1
    store.drop(CLAIMS, ("llm", "x"), "another one of that name")
    assert store.inventory.free("a")[GPUS] == 1
    store.drop(CLAIMS, ("llm", "x"), "uid-x")
    assert store.inventory.free("a")[GPUS] == 2
    store.drop(SLICES, ("", "s-a"), "uid-s-a")
    assert GPUS not in store.inventory.free("a")


def test_what_cannot_be_read_is_left_out() -> None:
    store = Store()
    store.put(NODES, node("a"))
    store.put(CLASSES, device_class())
    store.put(SLICES, seen("ResourceSlice", "s-a", spec={"nodeName": "a"}))
    assert GPUS not in store.inventory.free("a")
    store.put(SLICES, slice_of("a", 1, version=2))
    assert store.inventory.free("a")[GPUS] == 1


def test_a_plan_counts_on_claimed_accelerators() -> None:
    store = Store()
    store.put(NODES, node("a"))
    store.put(CLASSES, device_class())
    store.put(SLICES, slice_of("a", 4))
    wanted = seen("DistServeDeployment", "d", metadata={"namespace": "llm"}, spec=SPEC)
    store.put(DEPLOYMENTS, wanted)
    observed = store.observe(Key("llm", "d"), now=0.0)
    assert observed is not None
    assert [(offer.node.name, offer.amount) for offer in observed.accelerators] == [("a", 4)]


def test_a_unit_asks_for_what_its_pods_claim() -> None:
    document = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": "d", "namespace": "llm"},
        "spec": SPEC,
    }
    deployment = parse_deployment(document, "test")
    revision = make_revision(deployment, RenderSettings(released_images()))
    channel = class_resource("compute-domain-default-channel.nvidia.com")
    request = unit_request(deployment, "u0", revision, 0.0)
    prefill, decode = request.instances
    assert prefill.amounts[GPUS] == 4 and decode.amounts[GPUS] == 1
    assert request.total[channel] == 2
    sets = [
        stateful_set(deployment, instance, revision)
        for instance in instances(deployment, "u0", revision.unit)
    ]
    again, _ = stated(UnitId("llm", "d", "u0"), json.loads(json.dumps(sets)))
    assert again.total == request.total


def test_acceptance_asks_what_the_cluster_serves() -> None:
    document = seen("DistServeDeployment", "d", metadata={"namespace": "llm"}, spec=SPEC)
    refused = accept(document, Features(), engine_check=False)
    assert isinstance(refused, Refusal) and "spec.accelerator.deviceClass" in refused.message
    served = {f"{kind.api_version}/{kind.kind}" for kind in OPTIONAL_CHILDREN}
    taken = accept(document, Features(served=frozenset(served)), engine_check=False)
    assert not isinstance(taken, Refusal)
