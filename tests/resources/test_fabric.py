"""What pods get of the fabric when it is asked for, and that they get nothing of it otherwise."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.strategies import Role
from distserve.resources import processes
from distserve.resources.errors import RenderError
from distserve.resources.fabric.environment import variables
from distserve.resources.render import unit_objects
from distserve.resources.revisions import from_object, make_revision, to_object
from distserve.resources.settings import RenderSettings, released_images
from distserve.resources.support import unsupported_by_cluster

Object = dict[str, Any]
Deploy = Callable[..., DistServeDeployment]
Make = Callable[..., list[Object]]
SETTINGS = RenderSettings(released_images())
GPU = {"type": "GPU"}
CLAIMED = {"type": "GPU", "deviceClass": "gpu.nvidia.com"}
FOUR = {"parallelism": {"tensor": 4}}
NIC = {"rdma": {"deviceClass": "rdma.example"}}
CHANNEL = "compute-domain-default-channel.nvidia.com"
NVLINK = {"preset": "NVIDIA", "packWithin": "nvlink"}


def sets(objects: list[Object], role: str = "prefill") -> list[Object]:
    return [
        found
        for found in objects
        if found["kind"] == "StatefulSet" and found["metadata"]["labels"][labels.ROLE] == role
    ]


def pod(objects: list[Object], role: str = "prefill") -> Object:
    found: Object = sets(objects, role)[0]["spec"]["template"]
    return found


def containers(template: Object) -> dict[str, Object]:
    spec = template["spec"]
    return {one["name"]: one for one in [*spec.get("initContainers", []), *spec["containers"]]}


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def environment(container: Object) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


def test_nothing_is_added_that_was_not_asked_for(make: Make) -> None:
    for spec in ({}, {"accelerator": GPU}):
        objects = make(**spec)
        template = pod(objects)
        assert "resourceClaims" not in template["spec"]
        assert labels.CLAIMS not in template["metadata"]["annotations"]
        assert not of_kind(objects, "ResourceClaimTemplate") + of_kind(objects, "ComputeDomain")
        for container in containers(template).values():
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not {name for name in environment(container) if name[:4] in ("NCCL", "UCX_")}


def test_engine_and_migrator_share_one_claim(make: Make) -> None:
    objects = make(accelerator=CLAIMED, prefill=FOUR, decode={})
    template = pod(objects)
    (claim,) = template["spec"]["resourceClaims"]
    users = containers(template)
    for name in ("engine", "kv-migrator"):
        assert users[name]["resources"]["claims"] == [{"name": claim["name"]}]
        assert "nvidia.com/gpu" not in users[name]["resources"].get("limits", {})
    named = {t["metadata"]["name"]: t for t in of_kind(objects, "ResourceClaimTemplate")}
    assert len(named) == 4, "two roles in each of two units"
    asked = named[claim["resourceClaimTemplateName"]]
    assert asked["metadata"]["labels"][labels.UNIT] == "u0"
    assert asked["spec"]["spec"]["devices"] == {
        "requests": [
            {
                "name": "accelerators",
                "exactly": {
                    "deviceClassName": "gpu.nvidia.com",
                    "allocationMode": "ExactCount",
                    "count": 4,
                },
            }
        ]
    }
    assert json.loads(template["metadata"]["annotations"][labels.CLAIMS]) == {"gpu.nvidia.com": 4}
    units = [one["spec"]["template"]["spec"]["resourceClaims"][0] for one in sets(objects)]
    assert len({one["resourceClaimTemplateName"] for one in units}) == 2, "one of each unit"
    assert {one["resourceClaimTemplateName"] for one in units} <= set(named)


def test_each_rank_gets_a_network_device_under_its_accelerators_root(make: Make) -> None:
    objects = make(accelerator=CLAIMED, prefill={"parallelism": {"tensor": 2}}, fabric=NIC)
    template = pod(objects)
    counted = json.loads(template["metadata"]["annotations"][labels.CLAIMS])
    assert counted == {"gpu.nvidia.com": 2, "rdma.example": 2}
    devices = next(
        t["spec"]["spec"]["devices"]
        for t in of_kind(objects, "ResourceClaimTemplate")
        if t["metadata"]["labels"][labels.ROLE] == "prefill"
    )
    root = "resource.kubernetes.io/pcieRoot"
    assert devices["constraints"] == [
        {"requests": ["accelerator-0", "network-0"], "matchAttribute": root},
        {"requests": ["accelerator-1", "network-1"], "matchAttribute": root},
    ]
    classes = {one["name"]: one["exactly"]["deviceClassName"] for one in devices["requests"]}
    assert classes["accelerator-1"] == "gpu.nvidia.com" and classes["network-1"] == "rdma.example"


def test_an_instance_of_several_pods_claims_for_each_of_them(make: Make) -> None:
    objects = make(accelerator=CLAIMED | {"perPod": 4}, prefill={"parallelism": {"tensor": 8}})
    assert sets(objects)[0]["spec"]["replicas"] == 2
    counted = json.loads(pod(objects)["metadata"]["annotations"][labels.CLAIMS])
    assert counted == {"gpu.nvidia.com": 4}


def test_a_revision_keeps_what_its_pods_claim(deployment: Deploy) -> None:
    before, after = deployment(accelerator=CLAIMED), deployment(accelerator=GPU)
    old = make_revision(before, SETTINGS)
    assert from_object(to_object(before, old)) == old
    again = make_revision(before, SETTINGS, [old])
    assert again == old
    new = make_revision(after, SETTINGS, [old])
    assert new.name != old.name and not new.claims
    assert of_kind(unit_objects(after, "u0", old), "ResourceClaimTemplate")
    assert not of_kind(unit_objects(after, "u0", new), "ResourceClaimTemplate")
    stored = to_object(after, new)
    del stored["data"]["claims"]  # as an earlier version stored it
    assert from_object(stored) == new


def test_a_claim_with_other_devices_has_another_name(make: Make) -> None:
    names = {
        tuple(sorted(t["metadata"]["name"] for t in of_kind(objects, "ResourceClaimTemplate")))
        for objects in (
            make(accelerator=CLAIMED),
            make(accelerator=CLAIMED, fabric=NIC),
            make(accelerator={"type": "GPU", "deviceClass": "h200"}),
        )
    }
    assert len(names) == 3, "the API server lets no claim template change"


def test_rdma_devices_of_a_plugin_go_to_whoever_moves_kv(make: Make) -> None:
    rdma = {"rdma": {"resourceName": "rdma/hca_a", "count": 2}}
    users = containers(pod(make(accelerator=GPU, fabric=rdma)))
    assert users["engine"]["resources"]["limits"] == {"nvidia.com/gpu": "1", "rdma/hca_a": "2"}
    assert users["engine"]["resources"]["requests"]["rdma/hca_a"] == "2"
    users = containers(pod(make(accelerator=CLAIMED, fabric=rdma)))
    assert users["kv-migrator"]["resources"]["limits"]["rdma/hca_a"] == "2"
    assert "memory" in users["kv-migrator"]["resources"]["limits"]


def test_memory_is_locked_by_user_0_and_only_when_asked(make: Make) -> None:
    rdma = {"resourceName": "rdma/hca_a"}
    template = pod(make(accelerator=GPU, fabric={"rdma": rdma}))
    assert template["spec"]["securityContext"]["runAsUser"] != 0
    template = pod(make(accelerator=CLAIMED, fabric={"rdma": rdma | {"ipcLock": True}}))
    security = template["spec"]["securityContext"]
    assert (security["runAsUser"], security["runAsNonRoot"]) == (0, False)
    for name in ("engine", "kv-migrator"):
        found = containers(template)[name]["securityContext"]["capabilities"]
        assert found == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {"fabric": {"socketInterface": "eth0"}},
            {
                "NCCL_SOCKET_IFNAME": "=eth0",
                "GLOO_SOCKET_IFNAME": "eth0",
                "UCX_NET_DEVICES": "eth0",
            },
        ),
        (
            {"fabric": {"socketInterface": "eth0", "rdma": {"resourceName": "rdma/a"}}},
            {"NCCL_SOCKET_IFNAME": "=eth0", "GLOO_SOCKET_IFNAME": "eth0", "UCX_TLS": "^tcp"},
        ),
        ({"fabric": {"computeDomain": True}}, {"UCX_CUDA_IPC_ENABLE_MNNVL": "yes"}),
        (
            {"fabric": {"computeDomain": True}, "topology": NVLINK},
            {"UCX_CUDA_IPC_ENABLE_MNNVL": "yes", "NCCL_MNNVL_ENABLE": "1"},
        ),
        (
            {
                "fabric": {"computeDomain": True},
                "topology": NVLINK | {"enforcement": "Preferred"},
            },
            {"UCX_CUDA_IPC_ENABLE_MNNVL": "yes"},
        ),
    ],
)
def test_variables_follow_from_the_fabric(make: Make, spec: Object, wanted: dict[str, str]) -> None:
    users = containers(pod(make(accelerator=CLAIMED, **spec)))
    for name in ("engine", "kv-migrator"):
        found = environment(users[name])
        assert {n: v for n, v in found.items() if n[:4] in ("NCCL", "GLOO", "UCX_")} == wanted


def test_the_users_variables_win(make: Make) -> None:
    mine = {"name": "UCX_TLS", "value": "rc,cuda_copy"}
    template = {"spec": {"containers": [{"name": "engine", "env": [mine]}]}}
    rdma = {"rdma": {"resourceName": "rdma/a"}}
    objects = make(accelerator=GPU, fabric=rdma, prefill={"podTemplate": template})
    assert environment(containers(pod(objects))["engine"])["UCX_TLS"] == "rc,cuda_copy"
    assert environment(containers(pod(objects, "decode"))["engine"])["UCX_TLS"] == "^tcp"


def test_another_level_is_another_revision_only_where_it_tells_nccl_something(
    deployment: Deploy,
) -> None:
    wide = {"preset": "NVIDIA", "packWithin": "zone"}

    def name(**spec: Any) -> str:
        return make_revision(deployment(accelerator=GPU, **spec), SETTINGS).name

    assert name(topology=NVLINK) == name(topology=wide)
    domain = {"computeDomain": True}
    assert name(topology=NVLINK, fabric=domain) != name(topology=wide, fabric=domain)


def test_each_unit_has_a_compute_domain_of_its_own(make: Make) -> None:
    objects = make(accelerator=GPU, fabric={"computeDomain": True})
    domains = of_kind(objects, "ComputeDomain")
    assert [one["metadata"]["name"] for one in domains] == ["opt-13b-u0", "opt-13b-u1"]
    assert [one["metadata"]["labels"][labels.UNIT] for one in domains] == ["u0", "u1"]
    for unit, domain in zip(("u0", "u1"), domains, strict=True):
        channel = domain["spec"]["channel"]["resourceClaimTemplate"]["name"]
        for role in ("prefill", "decode"):
            its = [s for s in sets(objects, role) if s["metadata"]["labels"][labels.UNIT] == unit]
            for one in its:
                (claim,) = one["spec"]["template"]["spec"]["resourceClaims"]
                assert claim["resourceClaimTemplateName"] == channel
    counted = json.loads(pod(objects)["metadata"]["annotations"][labels.CLAIMS])
    assert counted == {CHANNEL: 1}


def test_a_shared_host_has_a_socket_for_each_pod(make: Make) -> None:
    template = pod(make(kvTransfer={"hostSharing": True}))
    users = containers(template)
    (volume,) = [v for v in template["spec"]["volumes"] if "hostPath" in v]
    assert volume["hostPath"]["path"] == "/run/distserve/llm/opt-13b"
    first, *_ = template["spec"]["initContainers"]
    assert first["securityContext"]["runAsUser"] == 0
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    arguments = users["kv-migrator"]["args"]
    socket = arguments[arguments.index("--peer-socket") + 1]
    assert socket == "/run/distserve-host/$(POD_NAME).sock"
    mounts = {mount["name"]: mount["mountPath"] for mount in users["kv-migrator"]["volumeMounts"]}
    assert socket.startswith(mounts[volume["name"]])
    together = {"hostSharing": True, "migratorPlacement": "InEngineContainer"}
    assert (
        "/run/distserve-host/$(POD_NAME).sock"
        in containers(pod(make(kvTransfer=together)))["engine"]["args"]
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            {"metadata": {"annotations": {labels.CLAIMS: "{}"}}},
            "metadata.annotations.distserve.io/claims",
        ),
        (
            {"spec": {"resourceClaims": [{"name": "distserve-devices", "resourceClaimName": "x"}]}},
            r"resourceClaims\[distserve-devices\]",
        ),
    ],
)
def test_what_is_claimed_cannot_be_taken_away(make: Make, template: Object, said: str) -> None:
    with pytest.raises(RenderError, match=said):
        make(accelerator=CLAIMED, prefill={"podTemplate": template})


def test_users_may_claim_more(make: Make) -> None:
    mine = {"name": "mine", "resourceClaimName": "storage"}
    container = {"name": "engine", "resources": {"claims": [{"name": "mine"}]}}
    template = {"spec": {"resourceClaims": [mine], "containers": [container]}}
    found = pod(make(accelerator=CLAIMED, prefill={"podTemplate": template}))
    assert [one["name"] for one in found["spec"]["resourceClaims"]] == ["distserve-devices", "mine"]
    claims = containers(found)["engine"]["resources"]["claims"]
    assert [one["name"] for one in claims] == ["distserve-devices", "mine"]


@dataclass(frozen=True)
class Features:
    kubernetes: tuple[int, int] = (1, 34)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    served: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("spec", "kind", "names"),
    [
        ({"accelerator": CLAIMED}, "resource.k8s.io/v1/ResourceClaimTemplate", "deviceClass"),
        (
            {"accelerator": GPU, "fabric": {"computeDomain": True}},
            "resource.nvidia.com/v1beta1/ComputeDomain",
            "computeDomain",
        ),
    ],
)
def test_what_a_cluster_does_not_serve_is_refused_with_the_cure(
    deployment: Deploy, spec: Object, kind: str, names: str
) -> None:
    line = unsupported_by_cluster(deployment(**spec), Features())
    assert line and names in line and kind in line and ";" in line
    assert unsupported_by_cluster(deployment(**spec), Features(served=frozenset({kind}))) is None


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"kvTransfer": {"hostSharing": True}}, "spec.kvTransfer.hostSharing"),
        (
            {
                "accelerator": GPU,
                "fabric": {"rdma": {"resourceName": "rdma/a", "ipcLock": True}},
            },
            "spec.fabric.rdma.ipcLock",
        ),
    ],
)
def test_what_needs_a_privileged_namespace_is_refused_in_others(
    deployment: Deploy, spec: Object, names: str
) -> None:
    enforce = "pod-security.kubernetes.io/enforce"
    line = unsupported_by_cluster(
        deployment(**spec), Features(namespace_labels={enforce: "baseline"})
    )
    assert line and line.startswith(names) and "level privileged" in line
    assert unsupported_by_cluster(deployment(**spec), Features()) is None


def test_hybrid_instances_have_no_migrator_to_share_a_host_with(make: Make) -> None:
    objects = make(
        strategy={"name": "Colocated"}, prefill=None, decode=None, hybrid={},
        kvTransfer={"hostSharing": True},
    )  # fmt: skip
    assert not [v for v in pod(objects, Role.HYBRID)["spec"]["volumes"] if "hostPath" in v]


CHECKOUT = Path(__file__).parents[2]
DOC = (CHECKOUT / "docs" / "fabric-pods.md").read_text()


def test_the_docs_have_every_variable(deployment: Deploy) -> None:
    fabrics = (
        {"socketInterface": "eth0"},
        {"socketInterface": "eth0", "rdma": {"resourceName": "rdma/a"}, "computeDomain": True},
    )
    set_by_us = {
        name
        for fabric in fabrics
        for name in variables(deployment(accelerator=GPU, fabric=fabric, topology=NVLINK))
    }
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", DOC, re.MULTILINE)) == set_by_us


def test_the_docs_name_samples_that_use_the_field() -> None:
    rows = re.findall(r"^\| `([\w.]+)`.*\[[\w-]+\]\(\.\./(\S+)\) \|", DOC, re.MULTILINE)
    assert len(rows) == 4
    for path, sample in rows:
        found = yaml.safe_load((CHECKOUT / sample).read_text())["spec"]
        for name in path.split("."):
            found = found[name]


def test_more_shared_memory_is_a_pod_template(make: Make) -> None:
    text = next(
        block for block in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL) if "shm" in block
    )
    template = yaml.safe_load(text)["podTemplate"]
    found = pod(make(accelerator=GPU, prefill={"podTemplate": template}))
    mounts = [mount["mountPath"] for mount in containers(found)["engine"]["volumeMounts"]]
    assert "/dev/shm" in mounts and processes.RUN_FOLDER in mounts
