"""Two nodes on which pods really run: what they execute, whom they reach, what they are called."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed
from tools.cluster.images import HOST_PYTHON, Layer, write_archive

WHO = """
import http.server, os
class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(os.environ["HOSTNAME"].encode())
http.server.HTTPServer(("", 8000), Who).serve_forever()
"""
ASK = """
import json, sys, urllib.request
answers = []
for url in sys.argv[1:]:
    try: answers.append(urllib.request.urlopen(url, timeout=5).read().decode())
    except OSError as failed: answers.append(f"{failed}")
print(json.dumps(answers))
"""


@dataclass
class Pods:
    """Two web servers, `one` on node1 and `two` on node2, behind one Service."""

    cluster: Cluster
    namespace: str

    def address(self, name: str) -> str:
        return str(self.cluster.get("pod", name, self.namespace)["status"]["podIP"])

    def ask(self, pod: str, *urls: str) -> list[str]:
        """What these addresses answer to a pod."""
        inside = ("exec", pod, f"--namespace={self.namespace}", "--")
        said = json.loads(self.cluster.kubectl(*inside, sys.executable, "-c", ASK, *urls))
        return [str(answer) for answer in said]


@pytest.fixture(scope="module")
def pods(real_cluster: Cluster) -> Iterator[Pods]:
    with real_cluster.namespace("pods") as namespace:
        for number, name in enumerate(("one", "two"), 1):
            pod = real_cluster.python_pod(
                name, ["-c", WHO], nodeName=f"node{number}", hostname=name, subdomain="names"
            )
            pod["metadata"]["labels"] = {"app": "who"}
            pod["spec"]["containers"][0]["readinessProbe"] = {
                "httpGet": {"port": 8000},
                "periodSeconds": 1,
            }
            real_cluster.apply(pod, namespace)
        real_cluster.apply(
            [service("behind", 80), service("names", 8000, clusterIP="None")], namespace
        )
        real_cluster.wait_until_ready("pod one two", namespace)
        yield Pods(real_cluster, namespace)


def service(name: str, port: int, **spec: Any) -> dict[str, Any]:
    ports = [{"port": port, "targetPort": 8000}]
    spec = {"selector": {"app": "who"}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def test_a_pod_runs_this_python_with_this_checkout(real_cluster: Cluster) -> None:
    code = "import sys, distserve.wire, numpy; print(sys.version); print(distserve.wire.__file__)"
    with real_cluster.namespace() as namespace:
        pod = real_cluster.python_pod("runs", ["-c", code], restartPolicy="Never")
        real_cluster.apply(pod, namespace)

        def ended() -> bool:
            status = real_cluster.get("pod", "runs", namespace)["status"]
            return status["phase"] in ("Succeeded", "Failed")

        real_cluster.wait_for("the pod's end", ended)
        said = real_cluster.kubectl("logs", "runs", f"--namespace={namespace}")
    import distserve.wire

    assert said.strip() == f"{sys.version}\n{distserve.wire.__file__}"


def test_pods_reach_each_other_on_the_same_and_on_another_node(pods: Pods) -> None:
    urls = [f"http://{pods.address(name)}:8000" for name in ("one", "two")]
    assert pods.ask("one", *urls) == ["one", "two"]
    assert pods.ask("two", *urls) == ["one", "two"]


@pytest.mark.parametrize("pod", ["one", "two"])
def test_a_service_spreads_over_both_nodes(pods: Pods, pod: str) -> None:
    address = pods.cluster.get("service", "behind", pods.namespace)["spec"]["clusterIP"]
    seen: set[str] = set()

    def both_answered() -> bool:
        seen.update(pods.ask(pod, *[f"http://{address}"] * 8))
        return seen >= {"one", "two"}

    pods.cluster.wait_for(f"both pods behind {address}; answers so far in {seen}", both_answered)


def test_names_are_resolved(pods: Pods) -> None:
    names = [
        "http://one.names:8000",
        f"http://two.names.{pods.namespace}.svc.cluster.local:8000",
    ]

    def answered() -> bool:
        return pods.ask("one", *names) == ["one", "two"] == pods.ask("two", *names)

    pods.cluster.wait_for("the pods' own names in DNS", answered)
    by_service = pods.ask("two", "http://behind", f"http://behind.{pods.namespace}")
    assert set(by_service) <= {"one", "two"}
    assert "Name or service not known" in pods.ask("one", "http://nobody.names:8000")[0]


def test_a_pod_speaks_to_the_api_server_as_its_account(pods: Pods) -> None:
    code = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
url = "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews"
body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
asked = urllib.request.Request(url, json.dumps(body).encode())
asked.add_header("Authorization", "Bearer " + open(f"{folder}/token").read())
asked.add_header("Content-Type", "application/json")
with urllib.request.urlopen(asked, context=context, timeout=5) as answer:
    print(json.load(answer)["status"]["userInfo"]["username"])
"""
    inside = ("exec", "one", f"--namespace={pods.namespace}", "--")
    said = pods.cluster.kubectl(*inside, sys.executable, "-c", code)
    assert said.strip() == f"system:serviceaccount:{pods.namespace}:default"


def test_the_api_server_reaches_pods(pods: Pods) -> None:
    """As it must for webhooks."""
    path = f"/api/v1/namespaces/{pods.namespace}/pods/two:8000/proxy/"
    assert pods.cluster.kubectl("get", f"--raw={path}") == "two"


def test_nothing_outside_the_cluster_is_reached(pods: Pods) -> None:
    """192.0.2.0/24 is reserved for documentation: nobody lives there."""
    assert "No route to host" in pods.ask("one", "http://192.0.2.200")[0]


def test_an_image_is_loaded_and_run(real_cluster: Cluster, tmp_path: Path) -> None:
    name = "localhost/distserve-test/loaded:1"
    layer = Layer()
    layer.file("said", b"from the image")
    write_archive(tmp_path / "loaded.tar", name, layer)
    real_cluster.load_image(tmp_path / "loaded.tar")
    with real_cluster.namespace() as namespace:
        for node in ("node1", "node2"):
            pod = real_cluster.python_pod(node, ["-c", "print(open('/said').read())"])
            pod["spec"] |= {"nodeName": node, "restartPolicy": "Never"}
            pod["spec"]["containers"][0]["image"] = name
            # The image has no root file system besides that file; /lib64 comes from the machine.
            real_cluster.apply(with_machine_libraries(pod), namespace)

            def read_it(node: str = node) -> bool:
                try:
                    said = real_cluster.kubectl("logs", node, f"--namespace={namespace}")
                except CommandFailed:
                    return False
                return said.strip() == "from the image"

            real_cluster.wait_for(f"the loaded image's words on {node}", read_it)


def with_machine_libraries(pod: dict[str, Any]) -> dict[str, Any]:
    for folder in ("lib", "lib64"):
        pod["spec"]["volumes"].append({"name": folder, "hostPath": {"path": f"/usr/{folder}"}})
        mount = {"name": folder, "mountPath": f"/{folder}", "readOnly": True}
        pod["spec"]["containers"][0]["volumeMounts"].append(mount)
    return pod


def test_an_image_that_nobody_loaded_does_not_run(real_cluster: Cluster) -> None:
    with real_cluster.namespace() as namespace:
        pod = real_cluster.python_pod("absent", ["-c", ""])
        pod["spec"]["containers"][0]["image"] = HOST_PYTHON.replace(":1", ":2")
        real_cluster.apply(pod, namespace)

        def refused() -> bool:
            statuses = real_cluster.get("pod", "absent", namespace)["status"]
            waiting = [one["state"].get("waiting") for one in statuses.get("containerStatuses", [])]
            return any(one and one["reason"] == "ErrImageNeverPull" for one in waiting)

        real_cluster.wait_for("the kubelet's word on an image that is not there", refused)
