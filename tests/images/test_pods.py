"""The images in pods exactly as they are rendered, under the `restricted` pod security standard."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed
from tools.images.archive import Image

# Building from empty caches counts as part of the first test.
pytestmark = pytest.mark.timeout(1800)

TARGETS = ("operator", "gateway", "migrator")
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
STRICT_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass
class Restricted:
    """A namespace that takes only restricted pods, on nodes that hold the images."""

    cluster: Cluster
    namespace: str

    def phase(self, pod: str) -> str:
        return str(self.cluster.get("pod", pod, self.namespace)["status"]["phase"])

    def logs(self, pod: str, *flags: str) -> str:
        return self.cluster.kubectl("logs", pod, f"--namespace={self.namespace}", *flags)

    def run_to_end(self, image: str, name: str, command: list[str]) -> str:
        """What a container of this image writes; it must end with status 0."""
        # Neither user nor image pull policy is named: they are the image's and the default.
        container = {"name": name, "image": image, "securityContext": STRICT_CONTAINER}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"restartPolicy": "Never", "containers": [container | {"command": command}]},
        }
        self.cluster.apply(pod, self.namespace)
        ends = ("Succeeded", "Failed")
        self.cluster.wait_for(f"{name} to end", lambda: self.phase(name) in ends)
        assert self.phase(name) == "Succeeded", self.logs(name)
        return self.logs(name)


@pytest.fixture(scope="module")
def restricted(images: dict[str, Image], real_cluster: Cluster) -> Iterator[Restricted]:
    for image in images.values():
        real_cluster.load_image(image.archive)
    with real_cluster.namespace("images") as namespace:
        real_cluster.kubectl("label", "namespace", namespace, RESTRICTED)
        yield Restricted(real_cluster, namespace)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_with_a_root_that_nobody_can_write(
    restricted: Restricted, images: dict[str, Image], target: str
) -> None:
    said = restricted.run_to_end(
        images[target].name, f"help-{target}", ["distserve", target, "--help"]
    )
    assert f"usage: distserve {target}" in said


def test_the_engines_hook_finds_a_shell_and_the_command(
    restricted: Restricted, images: dict[str, Image]
) -> None:
    script = 'id -u; exec distserve drain --help; echo "not reached"'
    said = restricted.run_to_end(images["migrator"].name, "hook", ["sh", "-c", script])
    assert said.startswith("65532\nusage: distserve drain")


@pytest.fixture(scope="module")
def deployment(restricted: Restricted, tmp_path_factory: pytest.TempPathFactory) -> Restricted:
    """A deployment's rendered objects, applied; its engines' image is on no node."""
    manifest = yaml.safe_load((CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text())
    manifest["metadata"]["namespace"] = restricted.namespace
    file = tmp_path_factory.mktemp("render") / "deployment.yaml"
    file.write_text(yaml.safe_dump(manifest))
    objects = rendered(file)
    key = next(
        volume["secret"]["secretName"]
        for each in objects
        if each["kind"] == "StatefulSet"
        for volume in each["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "key"
    )
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": key},
        "stringData": {"key": secrets.token_hex(32)},
    }
    kept = [each for each in objects if each["kind"] != "Secret"]
    restricted.cluster.apply([cluster_role(), secret, *kept], restricted.namespace)
    return restricted


def rendered(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "distserve.cli.main", "render", "-f", str(file)]
    done = subprocess.run(
        [*command, "--output", "json"], capture_output=True, text=True, timeout=60, check=True
    )
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items


def cluster_role() -> dict[str, Any]:
    """The chart's, which lets gateways read EndpointSlices."""
    every = yaml.safe_load_all((CHECKOUT / "manifests" / "distserve.yaml").read_text())
    found: dict[str, Any] = next(
        each
        for each in every
        if each and (each["kind"], each["metadata"]["name"]) == ("ClusterRole", "distserve-gateway")
    )
    return found


def test_a_rendered_gateway_listens(deployment: Restricted) -> None:
    cluster, namespace = deployment.cluster, deployment.namespace
    selector = "app.kubernetes.io/component=gateway"

    def started() -> list[str]:
        pods = cluster.get("pods", namespace=namespace, selector=selector)["items"]
        return [
            pod["metadata"]["name"]
            for pod in pods
            if all(each.get("started") for each in pod["status"].get("containerStatuses", [{}]))
        ]

    # Started is what its startup probe says; Ready it is not, for there is no engine.
    cluster.wait_for("two gateways to have started", lambda: len(started()) == 2)
    for name in started():
        address = f"/api/v1/namespaces/{namespace}/pods/{name}:8000/proxy"
        assert cluster.kubectl("get", f"--raw={address}/health") is not None
        assert "distserve_gateway_" in cluster.kubectl("get", f"--raw={address}/metrics")
        with pytest.raises(CommandFailed):
            cluster.kubectl("get", f"--raw={address}/readyz")


def test_a_rendered_migrator_starts_before_its_engine(deployment: Restricted) -> None:
    cluster, namespace = deployment.cluster, deployment.namespace

    def migrators() -> list[dict[str, Any]]:
        pods = cluster.get("pods", namespace=namespace)["items"]
        return [
            status | {"pod": pod["metadata"]["name"]}
            for pod in pods
            for status in pod["status"].get("initContainerStatuses", [])
        ]

    def both_started() -> bool:
        return [each["name"] for each in migrators() if each.get("started")] == ["kv-migrator"] * 2

    cluster.wait_for("two migrators to have started", both_started)
    for each in migrators():
        address = f"/api/v1/namespaces/{namespace}/pods/{each['pod']}:8102/proxy"
        assert "distserve_kv_transfer_bytes_total" in cluster.kubectl(
            "get", f"--raw={address}/metrics"
        )
