"""All four images at work: tokens from engines that run in the image that `make images` builds.

Gigabytes are built and unpacked, hence in `make soak` only.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed
from tools.cluster.fixtures import or_skip
from tools.cluster.profiles import Profile
from tools.images.build import archives

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(3600)]

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
LOAD_SECONDS = 900.0
REQUEST = {"model": "tiny", "prompt": "Return the", "max_tokens": 8, "temperature": 0}


def test_a_rendered_deployment_answers_from_its_images(
    start_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    with or_skip("no builder of images"):
        made = archives(("gateway", "migrator", "engine"))
    # One node: an engine's image takes 8 GB on each.
    cluster = start_cluster(Profile.REAL, nodes=1)
    for archive in made.values():
        cluster.load_image(archive)
    with cluster.namespace("engine") as namespace:
        cluster.kubectl("label", "namespace", namespace, RESTRICTED)
        cluster.apply(rendered(tmp_path / "deployment.yaml", namespace), namespace)
        cluster.wait_until_ready(
            "pod --selector=distserve.io/deployment=tiny", namespace, LOAD_SECONDS
        )
        said = json.loads(complete(cluster, namespace))
        assert said["usage"]["completion_tokens"] == REQUEST["max_tokens"]
        assert moved_bytes(cluster, namespace, "tiny-u0-decode-0-0") > 0


def rendered(file: Path, namespace: str) -> list[dict[str, Any]]:
    """What the operator would make of the sample, its Secret included."""
    manifest = yaml.safe_load((CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text())
    manifest["metadata"]["namespace"] = namespace
    # One real node has two cores.
    manifest["spec"]["gateway"] = {"replicas": 1}
    small = {"requests": {"cpu": "100m"}}
    containers = [{"name": "engine", "resources": small}]
    for role in ("prefill", "decode"):
        manifest["spec"][role]["podTemplate"] = {"spec": {"containers": containers}}
    file.write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "distserve.cli.main", "render", "-f", str(file)]
    done = subprocess.run(
        [*command, "--output", "json"], capture_output=True, text=True, timeout=60, check=True
    )
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "tiny-key"},
        "stringData": {"key": secrets.token_hex(32)},
    }
    role = next(
        each
        for each in yaml.safe_load_all((CHECKOUT / "manifests" / "distserve.yaml").read_text())
        if each and (each["kind"], each["metadata"]["name"]) == ("ClusterRole", "distserve-gateway")
    )
    return [role, secret, *json.loads(done.stdout)["items"]]


def complete(cluster: Cluster, namespace: str) -> str:
    """A completion, asked for from the gateway's own container: the image has no other client."""
    program = (
        "import sys, urllib.request as u;"
        "r = u.Request(sys.argv[1], sys.argv[2].encode(), {'content-type': 'application/json'});"
        "print(u.urlopen(r, timeout=60).read().decode())"
    )
    url = f"http://tiny-gateway.{namespace}:{8000}/v1/completions"
    inside = ("exec", "deployment/tiny-gateway", f"--namespace={namespace}", "--")
    return cluster.kubectl(*inside, "python3", "-c", program, url, json.dumps(REQUEST), seconds=90)


def moved_bytes(cluster: Cluster, namespace: str, pod: str) -> float:
    address = f"/api/v1/namespaces/{namespace}/pods/{pod}:8102/proxy/metrics"
    try:
        lines = cluster.kubectl("get", f"--raw={address}").splitlines()
    except CommandFailed:
        return 0.0
    found = [line for line in lines if line.startswith("distserve_kv_transfer_bytes_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in found)
