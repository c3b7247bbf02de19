"""Accelerators that are claimed (DRA): the operator counts what the real scheduler allocates.

Drivers are played by hand: ResourceSlices and DeviceClasses, and NVIDIA's claim template of a
ComputeDomain. Claims, allocations and bindings are the control plane's own.
"""

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from tools.cluster.fake_nodes import TOLERATION

from distserve.cli.main import main

Object = dict[str, Any]
GPU_DRIVER, NIC_DRIVER, CD_DRIVER = "gpu.nvidia.com", "nic.example", "compute-domain.nvidia.com"
CHANNEL = "compute-domain-default-channel.nvidia.com"
GPUS = f"deviceclass.resource.kubernetes.io/{GPU_DRIVER}"
ROOT = "resource.kubernetes.io/pcieRoot"
PER_NODE = 4
DRA = "resource.k8s.io/v1"


def device_class(name: str, expression: str) -> Object:
    spec = {"selectors": [{"cel": {"expression": expression}}]}
    return {"apiVersion": DRA, "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec}


CLASSES = [
    device_class(
        GPU_DRIVER,
        f"device.driver == '{GPU_DRIVER}' && device.attributes['{GPU_DRIVER}'].type == 'gpu'",
    ),
    device_class(NIC_DRIVER, f"device.driver == '{NIC_DRIVER}'"),
    device_class(
        CHANNEL,
        f"device.driver == '{CD_DRIVER}' && device.attributes['{CD_DRIVER}'].type == 'channel'"
        f" && device.attributes['{CD_DRIVER}'].id == 0",
    ),
]


def resource_slice(node: str, driver: str, devices: list[Object]) -> Object:
    return {
        "apiVersion": DRA,
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{driver}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }


def slices(node: str) -> list[Object]:
    """Accelerators and network devices, one of each under a root, and the node's IMEX channel."""

    def at(name: str, kind: str, index: int) -> Object:
        attributes = {"type": {"string": kind}, ROOT: {"string": f"pci0000:{index}0"}}
        return {"name": f"{name}-{index}", "attributes": attributes}

    channel = {"type": {"string": "channel"}, "id": {"int": 0}}
    return [
        resource_slice(node, GPU_DRIVER, [at("gpu", "gpu", n) for n in range(PER_NODE)]),
        resource_slice(node, NIC_DRIVER, [at("nic", "nic", n) for n in reversed(range(PER_NODE))]),
        resource_slice(node, CD_DRIVER, [{"name": "channel-0", "attributes": channel}]),
    ]


@pytest.fixture(autouse=True)
def drivers(crd: Any, compute_domains: None) -> Iterator[None]:
    """Before the operator starts: it looks for what is served when it begins."""
    crd.apply(CLASSES)
    try:
        yield
    finally:
        crd.kubectl("delete", "deviceclass", *(one["metadata"]["name"] for one in CLASSES))


@contextlib.contextmanager
def offered(fabric: Any, nodes: Iterable[str]) -> Iterator[None]:
    """By the drivers on these nodes."""
    found = [one for node in nodes for one in slices(node)]
    fabric.cluster.apply(found)
    try:
        yield
    finally:
        names = [one["metadata"]["name"] for one in found]
        fabric.cluster.kubectl("delete", "resourceslice", *names, "--wait=false")


def claiming(tests: Any, name: str, tensor: int, **spec: Any) -> Object:
    found: Object = tests.deployment(name, tests.Shape(1, 1, tensor))
    found["spec"] |= {"accelerator": {"type": "GPU", "deviceClass": GPU_DRIVER}} | spec
    return found


def claims_of(fabric: Any) -> list[Object]:
    found: list[Object] = fabric.cluster.get("resourceclaim", namespace=fabric.namespace)["items"]
    return [one for one in found if (one.get("status") or {}).get("allocation")]


def devices_of(claim: Object) -> list[Object]:
    found: list[Object] = claim["status"]["allocation"]["devices"]["results"]
    return found


def free(fabric: Any, capsys: pytest.CaptureFixture[str], domain: str) -> int:
    capsys.readouterr()
    command = ["topology", "--kubeconfig", str(fabric.cluster.kubeconfig), "--output", "json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["domains"]
    (one,) = [one for one in found if one["name"] == domain]
    return int(one["free"][GPUS])


def placed(history: Any, name: str) -> Mapping[str, str]:
    found: Mapping[str, str] = history.placed().get(name, {"reason": "", "message": ""})
    return found


def waits(fabric: Any, history: Any, name: str, reason: str) -> str:
    fabric.wait_until(f"{name}: {reason}", lambda: placed(history, name)["reason"] == reason)
    return placed(history, name)["message"]


def test_units_are_placed_by_what_is_claimed(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nic = {"rdma": {"deviceClass": NIC_DRIVER}}
    with (
        fabric.domains(2, 2, "dra-") as cliques,
        offered(fabric, cliques),
        fabric.watched() as history,
    ):
        fabric.apply(claiming(fabric, "one", 4, fabric=nic))
        fabric.apply(claiming(fabric, "two", 2, fabric=nic))
        fabric.wait_until_whole(history, {"one": 2, "two": 2})
        history.check(cliques)
        claims = claims_of(fabric)
        asked = [device for claim in claims for device in devices_of(claim)]
        assert Counter(one["driver"] for one in asked) == {GPU_DRIVER: 12, NIC_DRIVER: 12}
        for claim in claims:
            of_rank: dict[str, set[str]] = defaultdict(set)
            for device in devices_of(claim):
                rank = device["request"].rpartition("-")[2]
                of_rank[rank].add(device["device"].rpartition("-")[2])
            assert all(len(roots) == 1 for roots in of_rank.values()), of_rank

        homes = {
            name: {cliques[pod["spec"]["nodeName"]] for pod in pods}
            for (name, _), pods in history.units().items()
        }
        (home,) = homes["two"]
        assert homes["one"] != homes["two"]
        assert free(fabric, capsys, home) == 4
        fabric.apply(claiming(fabric, "three", 4))
        message = waits(fabric, history, "three", "NoRoom")
        assert f"needs 8 {GPUS} in one nvlink domain" in message and "has 4 free" in message
        fabric.cluster.kubectl("delete", "dsd/two", f"-n{fabric.namespace}", "--wait=false")
        fabric.wait_until_whole(history, {"one": 2, "three": 2})
        history.check(cliques)

        def owners() -> set[str]:
            found = fabric.cluster.get("resourceclaimtemplate", namespace=fabric.namespace)
            return {one["metadata"]["labels"]["distserve.io/deployment"] for one in found["items"]}

        fabric.wait_until("what it claimed goes", lambda: owners() == {"one", "three"})


def test_what_others_have_claimed_is_not_free(fabric: Any) -> None:
    with (
        fabric.domains(1, 2, "claimed-") as cliques,
        offered(fabric, cliques),
        fabric.watched() as history,
    ):
        node, *_ = cliques
        request = {"deviceClassName": GPU_DRIVER, "allocationMode": "ExactCount", "count": 1}
        fabric.apply(
            {
                "apiVersion": DRA,
                "kind": "ResourceClaim",
                "metadata": {"name": "theirs"},
                "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
            },
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "theirs"},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "tolerations": [TOLERATION],
                    "resourceClaims": [{"name": "gpu", "resourceClaimName": "theirs"}],
                    "containers": [
                        {
                            "name": "busy",
                            "image": "busy",
                            "resources": {"claims": [{"name": "gpu"}]},
                        }
                    ],
                },
            },
        )
        fabric.wait_until("it is allocated", lambda: len(claims_of(fabric)) == 1)
        fabric.apply(claiming(fabric, "whole", 4))
        message = waits(fabric, history, "whole", "NoRoom")
        assert "has 7 free" in message
        assert "whole" not in history.owners()
        fabric.cluster.kubectl("delete", "pod/theirs", f"-n{fabric.namespace}", "--wait=false")
        # It has a finalizer as long as the pod is there.
        claim = ("resourceclaim/theirs", f"-n{fabric.namespace}", "--wait=false")
        fabric.cluster.kubectl("delete", *claim)
        fabric.wait_until_whole(history, {"whole": 2})
        history.check(cliques)


def channel_template(domain: Object) -> Object:
    """What NVIDIA's controller makes of a ComputeDomain."""
    name = domain["spec"]["channel"]["resourceClaimTemplate"]["name"]
    exactly = {"deviceClassName": CHANNEL, "allocationMode": "ExactCount", "count": 1}
    request = {"name": "channel", "exactly": exactly}
    return {
        "apiVersion": DRA,
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def test_a_unit_has_a_compute_domain_and_its_pods_a_node_each(fabric: Any) -> None:
    with (
        fabric.domains(1, 2, "imex-") as cliques,
        offered(fabric, cliques),
        fabric.watched() as history,
    ):
        fabric.apply(claiming(fabric, "near", 1, fabric={"computeDomain": True}))

        def compute_domains() -> list[Object]:
            found: list[Object] = fabric.cluster.get("computedomain", namespace=fabric.namespace)[
                "items"
            ]
            return found

        fabric.wait_until("the unit has one", lambda: len(compute_domains()) == 1)
        (domain,) = compute_domains()
        fabric.apply(channel_template(domain))
        fabric.wait_until_whole(history, {"near": 2})
        (pods,) = history.units().values()
        assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
        fabric.apply(claiming(fabric, "next", 1, fabric={"computeDomain": True}))
        assert CHANNEL in waits(fabric, history, "next", "NoRoom")
        patch = json.dumps({"spec": {"units": 0}})
        fabric.cluster.kubectl(
            "patch", "dsd/near", f"-n{fabric.namespace}", "--type=merge", f"--patch={patch}"
        )

        def names() -> set[str]:
            return {one["metadata"]["name"] for one in compute_domains()}

        fabric.wait_until("it goes with its unit", lambda: names() == {"next-u0"})
