"""Everything that is rendered, through a real API server's dry run in a restricted namespace."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import read_manifest
from distserve.cli.planned import Sources, planned
from distserve.resources import naming
from distserve.resources.access import key_secret
from distserve.resources.affinity import Placement
from distserve.resources.render import render, shared_objects, unit_objects
from distserve.resources.revisions import from_object, make_revision, to_object
from distserve.resources.settings import RenderSettings, released_images
from distserve.resources.support import unsupported_by_cluster

Object = dict[str, Any]
Deploy = Callable[..., DistServeDeployment]
SAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "samples").glob("*.yaml"))
SETTINGS = RenderSettings(released_images())
SERVED = frozenset(
    {
        "resource.k8s.io/v1/ResourceClaimTemplate",
        "resource.nvidia.com/v1beta1/ComputeDomain",
        # Of no use here: a unit's is made by the operator.
        "kueue.x-k8s.io/v1beta2/Workload",
        "scheduling.volcano.sh/v1beta1/PodGroup",
        "scheduling.run.ai/v2alpha2/PodGroup",
    }
)
ENFORCE = "pod-security.kubernetes.io/enforce"
VARIANTS: dict[str, dict[str, Any]] = {
    "together": {"kvTransfer": {"migratorPlacement": "InEngineContainer"}},
    "hub": {
        "model": {
            "id": "m",
            "source": {"huggingFace": {"repository": "org/m", "tokenSecretName": "hub"}},
            "cache": {"claimName": "models"},
        }
    },
    "ephemeral": {
        "model": {
            "id": "m",
            "source": {"huggingFace": {"repository": "org/m"}},
            "cache": {"ephemeral": {"sizeLimit": "9Gi"}},
        }
    },
    "merged": {
        "prefill": {
            "podTemplate": {
                "metadata": {"annotations": {"a": "b"}},
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [
                        {"name": "engine", "resources": {"limits": {"memory": "9Gi"}}},
                        {
                            "name": "aside",
                            "image": "aside:1",
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                        },
                    ],
                },
            }
        }
    },
}


@dataclass(frozen=True)
class Features:
    kubernetes: tuple[int, int] = (1, 34)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    served: frozenset[str] = frozenset()


@pytest.fixture
def restricted(control_plane: Cluster) -> Iterator[str]:
    with control_plane.namespace("restricted") as namespace:
        control_plane.kubectl("label", "namespace", namespace, f"{ENFORCE}=restricted")
        yield namespace


def moved(found: DistServeDeployment, namespace: str) -> DistServeDeployment:
    metadata = found.metadata.model_copy(update={"namespace": namespace})
    return found.model_copy(update={"metadata": metadata})


def pods(objects: list[Object]) -> list[Object]:
    """Those that the controllers would make: pod security is enforced on pods alone."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **found["spec"]["template"]["metadata"],
                "name": f"{found['metadata']['name']}-0",
                "namespace": found["metadata"]["namespace"],
            },
            "spec": found["spec"]["template"]["spec"],
        }
        for found in objects
        if found["kind"] in ("StatefulSet", "Deployment")
    ]


def taken(cluster: Cluster, namespace: str, objects: list[Object]) -> None:
    """All objects and the pods that come of them. Service accounts are made: pods need them."""
    accounts = [o for o in objects if o["kind"] == "ServiceAccount"]
    cluster.apply(accounts, namespace)
    said = cluster.apply([*objects, *pods(objects)], namespace, "--dry-run=server")
    assert said.count("serverside-applied") == len(objects) + len(pods(objects))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_taken(
    control_plane: Cluster, compute_domains: None, restricted: str, sample: Path
) -> None:
    """In a restricted namespace, but for those that say that they need another one."""
    manifest = read_manifest(sample)
    found = moved(planned(manifest.deployment(), Sources(manifest)), restricted)
    objects = render(found, replace(SETTINGS, key="k" * 64))
    features = Features(served=SERVED, namespace_labels={ENFORCE: "restricted"})
    line = unsupported_by_cluster(found, features)
    if line is not None:
        assert "level privileged" in line
        with pytest.raises(CommandFailed, match="violates PodSecurity"):
            taken(control_plane, restricted, objects)
        control_plane.kubectl(
            "label", "namespace", restricted, f"{ENFORCE}=privileged", "--overwrite"
        )
        assert unsupported_by_cluster(found, replace(features, namespace_labels={})) is None
    taken(control_plane, restricted, objects)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_shape_is_taken_with_its_place(
    control_plane: Cluster, restricted: str, deployment: Deploy, variant: str
) -> None:
    found = moved(deployment(**VARIANTS[variant]), restricted)
    revision = make_revision(found, SETTINGS)
    nodes = {i.name: ("node-1", "node-2") for i in naming.instances(found, "u0", revision.unit)}
    place = Placement("nvlink", "nvidia.com/gpu.clique", "c1.0", nodes)
    objects = [
        *shared_objects(found, SETTINGS, revision),
        *unit_objects(found, "u0", revision, place),
        key_secret(found, "k" * 64),
        to_object(found, revision),
    ]
    taken(control_plane, restricted, objects)


def test_a_revision_comes_back_as_it_was(
    control_plane: Cluster, restricted: str, deployment: Deploy
) -> None:
    found = moved(deployment(), restricted)
    made = make_revision(found, SETTINGS)
    stored = to_object(found, made)
    control_plane.apply(stored, restricted)
    name = stored["metadata"]["name"]
    again = from_object(control_plane.get("controllerrevision", name, restricted))
    assert again == made
    changed = {**stored, "data": {**stored["data"], "replan": "x"}}
    with pytest.raises(CommandFailed, match="immutable"):
        control_plane.apply(changed, restricted)


def test_what_the_cluster_lacks_is_refused_by_it(
    control_plane: Cluster, restricted: str, deployment: Deploy
) -> None:
    """So `unsupported_by_cluster` says beforehand what would happen."""
    source = {"hostPath": "/models/m"}
    found = moved(deployment(model={"id": "m", "source": source}), restricted)
    with pytest.raises(CommandFailed, match="hostPath"):
        taken(control_plane, restricted, render(found, SETTINGS))
    version = json.loads(control_plane.kubectl("version", "--output=json"))["serverVersion"]
    found = moved(deployment(model={"id": "m", "source": {"image": "m:1"}}), restricted)
    objects = render(found, SETTINGS)
    control_plane.apply([o for o in objects if o["kind"] == "ServiceAccount"], restricted)
    pod = next(pod for pod in pods(objects) if "prefill" in pod["metadata"]["name"])
    said = control_plane.apply(pod, restricted, "--dry-run=server", "--output=json")
    kept = [volume for volume in json.loads(said)["spec"]["volumes"] if "image" in volume]
    has_feature = (int(version["major"]), int(version["minor"])) >= (1, 35)
    assert bool(kept) is has_feature, "older ones drop it without a word"
