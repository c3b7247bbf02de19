"""Devices of dynamic resource allocation: what classes match, what is free, what a unit takes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.placement import Inventory, Placed, Reason, UnitId, place
from distserve.placement.devices import OWN_CLAIM, Devices, class_resource
from distserve.placement.pods import CLAIMS_ANNOTATION
from distserve.placement.selectors import NotUnderstood, device_facts, selector

Make = Callable[..., Any]
Object = dict[str, Any]
DRIVER = "gpu.nvidia.com"
GPUS = class_resource("gpu.nvidia.com")
BIG = class_resource("big")
IS_GPU = f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == 'gpu'"
IS_BIG = f"{IS_GPU} && device.capacity['{DRIVER}'].memory.compareTo(quantity('100Gi')) >= 0"


def slice_of(
    node: str, *memory: str, driver: str = DRIVER, generation: int = 1, slices: int = 1, **spec: Any
) -> Object:
    devices = [
        {
            "name": f"gpu-{index}",
            "attributes": {
                "type": {"string": "gpu"},
                "index": {"int": index},
                "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:0{index}"},
            },
            "capacity": {"memory": {"value": size}},
        }
        for index, size in enumerate(memory)
    ]
    pool = {"name": node, "generation": generation, "resourceSliceCount": slices}
    spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": devices, **spec}
    return {"metadata": {"name": f"{node}-{driver}-{generation}"}, "spec": spec}


def class_of(name: str, *expressions: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": one}} for one in expressions]},
    }


def claim(
    name: str,
    node: str,
    *indices: int,
    asked: str = "gpu.nvidia.com",
    own: bool = False,
    **more: Any,
) -> Object:
    results = [
        {"request": "accelerators", "driver": DRIVER, "pool": node, "device": f"gpu-{i}", **more}
        for i in indices
    ]
    pod_claim = f"{OWN_CLAIM}devices" if own else "mine"
    return {
        "metadata": {
            "name": name,
            "namespace": "llm",
            "uid": f"uid-{name}",
            "annotations": {"resource.kubernetes.io/pod-claim-name": pod_claim},
        },
        "spec": {
            "devices": {
                "requests": [{"name": "accelerators", "exactly": {"deviceClassName": asked}}]
            }
        },
        "status": {"allocation": {"devices": {"results": results}}} if indices else {},
    }


@pytest.fixture
def devices() -> Devices:
    """Two nodes of two devices each, one of them large; classes for all and for large ones."""
    found = Devices()
    found.put_class(class_of("gpu.nvidia.com", IS_GPU))
    found.put_class(class_of("big", IS_BIG))
    found.put_slice(slice_of("a", "80Gi", "141Gi"))
    found.put_slice(slice_of("b", "80Gi", "80Gi"))
    return found


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (IS_GPU, True),
        (IS_BIG, False),
        ("device.driver == 'other'", False),
        (f"!(device.driver in ['other', '{DRIVER}'])", False),
        (f"device.attributes['{DRIVER}'].index == 3 || false", True),
        (f"device.attributes['{DRIVER}'].index > -1", True),
        (f"device.attributes['{DRIVER}'].missing == 1", False),
        (f"device.attributes['{DRIVER}'].missing == 1 || device.driver == '{DRIVER}'", True),
        (f"has(device.attributes['{DRIVER}'].missing)", False),
        (f"has(device.attributes['{DRIVER}'].index)", True),
        ("device.attributes['resource.kubernetes.io'].pcieRoot.startsWith(\"pci0000\")", True),
        (f"device.attributes['{DRIVER}'].product.matches(r'^H\\d+')", True),
        (f"device.capacity['{DRIVER}'].memory.isGreaterThan(quantity('79Gi'))", True),
        ("device.attributes['nobody'].type == 'gpu'", False),
        (f"device.attributes['{DRIVER}'].index", False),
        (f"'a'.matches(device.attributes['{DRIVER}'].odd)", False),
    ],
)
def test_a_selector_says_what_kubernetes_would(expression: str, matches: bool) -> None:
    facts = device_facts(
        DRIVER,
        {
            "name": "gpu-3",
            "attributes": {
                "type": {"string": "gpu"},
                f"{DRIVER}/index": {"int": 3},
                "product": {"string": "H200"},
                "odd": {"string": "(?Ux"},
                "resource.kubernetes.io/pcieRoot": {"string": "pci0000:03"},
            },
            "capacity": {"memory": {"value": "80Gi"}},
        },
    )
    assert selector(expression)(facts) is matches


@pytest.mark.parametrize(
    "expression",
    ["", "device.driver ==", "cel.bind(x, 1, x)", "device.driver == 'a' 'b'", "a ? b : c",
     "device.driver.matches('^(?i)gpu')", "device.driver.matches(r'\\pL')",
     "device.driver.matches('[[:alpha:]]')", "device.driver.matches('g{99999999999}')",
     f"device.driver.matches('{'(' * 2000}{')' * 2000}')",
     "device.driver.size() == 3", "(device.driver == 'a'", "device.attributes['a'", "[1, 2"],
)  # fmt: skip
def test_what_is_not_known_of_cel_is_said(expression: str) -> None:
    with pytest.raises(NotUnderstood):
        selector(expression)


def test_devices_count_for_each_class_that_they_match(devices: Devices) -> None:
    assert devices.of_node("a").allocatable == {GPUS: 2, BIG: 1}
    assert devices.of_node("b").allocatable == {GPUS: 2}
    assert devices.of_node("c").allocatable == {}
    devices.drop_class("big")
    assert devices.of_node("a").allocatable == {GPUS: 2}


def test_a_claimed_device_is_gone_from_all_of_its_classes(devices: Devices) -> None:
    devices.put_claim(claim("x", "a", 1))
    assert devices.of_node("a").used == {GPUS: 1, BIG: 1}
    devices.put_claim(claim("x", "a", 0))
    assert devices.of_node("a").used == {GPUS: 1}
    devices.drop_claim("uid-x")
    devices.drop_claim("uid-x")
    assert devices.of_node("a").used == {}
    devices.put_claim(claim("x", "a"))
    devices.put_claim(claim("y", "a", 0, adminAccess=True))
    assert devices.of_node("a").used == {}


def test_a_units_own_claim_is_counted_with_its_pod(devices: Devices) -> None:
    devices.put_claim(claim("x", "a", 1, own=True))
    assert devices.of_node("a").used == {BIG: 1}


def test_a_class_that_is_not_understood_counts_all_and_says_so(devices: Devices) -> None:
    assert devices.notes == []
    devices.put_class(class_of("odd", "device.driver.size() == 3"))
    assert devices.of_node("a").allocatable[class_resource("odd")] == 2
    (note,) = devices.notes
    assert "DeviceClass odd counts every device" in note and "size" in note


def test_only_what_a_driver_has_published_whole_counts(devices: Devices) -> None:
    devices.put_slice(slice_of("a", "80Gi", generation=2))
    assert devices.of_node("a").allocatable == {GPUS: 1}
    devices.put_slice(slice_of("b", "80Gi", "80Gi", slices=2))
    assert devices.of_node("b").allocatable == {}
    devices.drop_slice(f"a-{DRIVER}-2")
    devices.drop_slice(f"a-{DRIVER}-2")
    assert devices.of_node("a").allocatable == {GPUS: 2, BIG: 1}


def test_what_is_no_whole_device_of_one_node_does_not_count(devices: Devices) -> None:
    devices.put_slice(slice_of("a", "80Gi", nodeName=None, allNodes=True))
    assert devices.of_node("a").allocatable == {}
    shared = slice_of("b", "80Gi", "80Gi", "80Gi")
    shared["spec"]["devices"][0]["taints"] = [{"key": "broken", "effect": "NoSchedule"}]
    shared["spec"]["devices"][1]["allowMultipleAllocations"] = True
    devices.put_slice(shared)
    assert devices.of_node("b").allocatable == {GPUS: 1}


@pytest.fixture
def cluster(node: Make) -> Inventory:
    """Two nodes with four claimed devices each and none of a device plugin."""
    found = Inventory()
    for name in ("a", "b"):
        found.put_node(node(name, 0))
        found.devices.put_slice(slice_of(name, *["80Gi"] * 4))
    found.devices.put_class(class_of("gpu.nvidia.com", IS_GPU))
    return found


@pytest.fixture
def units(unit: Make) -> Callable[[str, int], Any]:
    def make(name: str, count: int) -> Any:
        found = unit(name, 0, levels=(), pack_within=None)
        (instance,) = found.instances
        return replace(found, instances=(replace(instance, requests={GPUS: count}),))

    return make


def test_a_unit_goes_where_devices_are_free(cluster: Inventory, units: Make) -> None:
    cluster.devices.put_claim(claim("x", "a", 0, 1))
    (decision,) = place(cluster, [units("u0", 3)], now=0.0)
    assert isinstance(decision, Placed)
    assert set(decision.nodes.values()) == {"b"}
    (waits,) = place(cluster, [units("u1", 5)], now=0.0)
    assert waits.reason is Reason.UNIT_LARGER_THAN_DOMAIN and GPUS in waits.message


def test_a_units_devices_count_once_from_decision_to_end(
    cluster: Inventory, units: Make, pod: Make
) -> None:
    found = units("u0", 3)
    cluster.reserve(found, {"opt-u0-i0-0": "a"})
    assert cluster.free("a")[GPUS] == 1
    cluster.devices.put_claim(claim("x", "a", 0, 1, 2, own=True))
    assert cluster.free("a")[GPUS] == 1
    bound = pod(
        "opt-u0-i0-0",
        "a",
        unit=UnitId("llm", "opt", "u0"),
        claims=["distserve-devices"],
        annotations={CLAIMS_ANNOTATION: json.dumps({"gpu.nvidia.com": 3})},
    )
    cluster.put_pod(bound)
    assert cluster.free("a")[GPUS] == 1
    cluster.release(found.id)
    assert cluster.free("a")[GPUS] == 1
    cluster.drop_pod(bound["metadata"]["uid"])
    cluster.devices.drop_claim("uid-x")
    assert cluster.free("a")[GPUS] == 4


def test_an_emptied_cluster_has_no_claims(cluster: Inventory) -> None:
    cluster.devices.put_claim(claim("x", "a", 0, 1))
    assert cluster.free("a")[GPUS] == 2
    assert cluster.emptied().free("a")[GPUS] == 4
    assert cluster.free("a")[GPUS] == 2
