"""A real HorizontalPodAutoscaler on /scale moves units, by a metric that this test serves."""

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.pki import Pki
from tools.cluster.profiles import Profile

API = "external.metrics.k8s.io/v1beta1"
TARGET = 10
SERVICE = "metrics"
FLAGS = ExtraFlags(
    # Aggregated APIs are called at their Service's name, here this test's address.
    api_server=("--enable-aggregator-routing=false",),
    controller_manager=("--horizontal-pod-autoscaler-sync-period=2s",),
)


class Metric:
    """The external metric, by HTTPS. It is on target, but for each `off` value once: whoever asks
    then acts on it, and finds it on target at his next look."""

    def __init__(self, address: str, pki: Pki) -> None:
        pki.make_certificate(
            "metrics", "/CN=metrics", names=(f"DNS:{SERVICE}.kube-system.svc", f"IP:{address}")
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pki.crt("metrics"), pki.key("metrics"))
        self.off: list[int] = []
        self.asked = 0
        metric = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = metric.answer(self.path.partition("?")[0].strip("/").split("/"))
                text = json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                """Nothing: pytest shows what is said."""

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: list[str]) -> dict[str, Any] | None:
        if "/".join(path) == f"apis/{API}":
            resource = {"name": "queue", "kind": "ExternalMetricValueList", "verbs": ["get"]}
            resources = [resource | {"singularName": "", "namespaced": True}]
            return {"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": API} | {
                "resources": resources
            }
        if path[-1] != "queue":
            return None
        self.asked += 1
        item = {
            "metricName": "queue",
            "metricLabels": {},
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "value": str(self.off.pop() if self.off else TARGET),
        }
        kind = {"apiVersion": API, "kind": "ExternalMetricValueList", "metadata": {}}
        return kind | {"items": [item]}


@pytest.fixture
def crd(start_cluster: Callable[..., Cluster]) -> Cluster:
    """Instead of the session's: its autoscaler looks often, and finds the metric."""
    cluster = start_cluster(Profile.CONTROL_PLANE, extra=FLAGS)
    cluster.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
    cluster.wait_for(
        "our kind to be served", lambda: "dsd" in cluster.kubectl("api-resources").split()
    )
    return cluster


@pytest.fixture
def metric(crd: Cluster) -> Iterator[Metric]:
    pki = Pki(crd.home.folder / "pki")
    found = Metric(crd.home.addresses.loopback, pki)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE},
        "spec": {"type": "ExternalName", "externalName": crd.home.addresses.loopback},
    }
    group, version = API.split("/")
    registration = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": base64.b64encode(pki.crt("ca").read_bytes()).decode(),
            "service": {"name": SERVICE, "namespace": "kube-system", "port": found.port},
        },
    }
    crd.apply([service, registration], "kube-system")
    yield found
    found.server.shutdown()
    found.server.server_close()


def autoscaler(name: str) -> dict[str, Any]:
    """By Value: asked ratio times the pods that /scale's selector names."""
    target = {"type": "Value", "value": str(TARGET)}
    reference = {"apiVersion": "distserve.io/v1alpha1", "kind": "DistServeDeployment", "name": name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": reference,
            "minReplicas": 1,
            "maxReplicas": 20,
            "metrics": [
                {"type": "External", "external": {"metric": {"name": "queue"}, "target": target}}
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


def test_an_autoscaler_moves_units_and_not_more(
    crd: Cluster,
    namespace: str,
    metric: Metric,
    start_distserve: Callable[..., Any],
    sample: Callable[..., dict[str, Any]],
) -> None:
    crd.nodes(2)
    operator = start_distserve()
    pod = {"podTemplate": {"spec": {"tolerations": [TOLERATION]}}}
    role = {"instancesPerUnit": 2, **pod}
    crd.apply(sample("opt", gateway=pod, prefill=role, decode=role), namespace)

    def ready(units: int) -> bool:
        found = crd.get("dsd", "opt", namespace)
        pods = crd.get("pods", namespace=namespace, selector="distserve.io/unit")["items"]
        counted = found.get("status", {}).get("replicas") == found["spec"].get("units", 1) == units
        return counted and len(pods) == 4 * units

    operator.wait_until("one unit", lambda: ready(1), 60)
    crd.apply(autoscaler("opt"), namespace)
    # Once it has looked at what is on target, each look finds what it acts on.
    operator.wait_until("the autoscaler looks", lambda: metric.asked > 0, 60)
    for value, units in ((3 * TARGET, 3), (TARGET // 2, 2)):
        before = crd.get("dsd", "opt", namespace)["metadata"]["generation"]
        metric.off.append(value)
        operator.wait_until(f"{units} units", lambda units=units: ready(units), 60)
        seen = metric.asked
        operator.wait_until("it looks on", lambda seen=seen: metric.asked >= seen + 2, 60)
        found = crd.get("dsd", "opt", namespace)
        assert found["spec"]["units"] == units
        assert found["metadata"]["generation"] == before + 1, "it was scaled once"
    scaled = crd.get("hpa", "opt", namespace)["status"]
    assert scaled["currentReplicas"] == scaled["desiredReplicas"] == 2
