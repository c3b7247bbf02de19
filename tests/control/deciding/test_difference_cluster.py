"""What a real API server makes of our objects is no difference to it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import Cluster

from distserve.api import labels
from distserve.api.loading import load_deployments, parse_deployment
from distserve.operator.difference import difference, stamped
from distserve.resources.render import shared_objects, unit_objects
from distserve.resources.revisions import make_revision, to_object
from distserve.resources.settings import RenderSettings, released_images

SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"
SETTINGS = RenderSettings(released_images(), key="k" * 64)
POD: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"empty": ""}},
    "spec": {
        "nodeSelector": {"pool": "gpu"},
        "hostNetwork": False,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
                    ]
                }
            }
        },
        "volumes": [{"name": "more", "emptyDir": {"sizeLimit": "1024Mi"}}],
        "containers": [
            {
                "name": "engine",
                "env": [
                    {"name": "EMPTY", "value": ""},
                    {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                ],
                "resources": {
                    "requests": {"cpu": "0.5", "memory": "2048Mi"},
                    "limits": {"cpu": "1.50", "memory": "1e10"},
                },
                "volumeMounts": [{"name": "more", "mountPath": "/more", "readOnly": False}],
            },
            {"name": "mine", "image": "mine:1", "ports": [{"containerPort": 9}], "args": []},
        ],
        "initContainers": [{"name": "first", "image": "mine:1", "tty": False}],
    },
}


def everything() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in sorted(SAMPLES.glob("*.yaml")):
        for deployment in load_deployments(path):
            if deployment.spec.planning.automatic:
                document = yaml.safe_load(path.read_text())
                document["spec"]["planning"] = {}
                deployment = parse_deployment(document, path.name)
            yield path.stem, objects(deployment)
    document = yaml.safe_load((SAMPLES / "tiny-cpu.yaml").read_text())
    document["spec"]["prefill"] = {"podTemplate": POD}
    document["spec"]["gateway"] = {"podTemplate": {"spec": {"tolerations": []}}}
    yield "podTemplate", objects(parse_deployment(document, "podTemplate"))


def objects(deployment: Any) -> list[dict[str, Any]]:
    revision = make_revision(deployment, SETTINGS)
    made = [
        *shared_objects(deployment, SETTINGS, revision),
        to_object(deployment, revision),
        *unit_objects(deployment, "u0", revision),
    ]
    return [stamped(one) for one in made]


CASES = dict(everything())


@pytest.mark.parametrize("name", CASES)
def test_what_is_served_is_what_was_applied(
    control_plane: Cluster, compute_domains: None, name: str
) -> None:
    with control_plane.namespace() as namespace:
        wanted = [
            {**one, "metadata": {**one["metadata"], "namespace": namespace}} for one in CASES[name]
        ]
        control_plane.apply(wanted, namespace)
        for one in wanted:
            live = control_plane.get(one["kind"], one["metadata"]["name"], namespace)
            assert difference(one, live) is None, json.dumps(live, indent=1)
            edited = json.loads(json.dumps(one))
            edited["metadata"]["labels"][labels.APP_NAME] = "other"
            assert difference(edited, live) == f"metadata.labels.{labels.APP_NAME}"
