"""A gateway in a pod: credentials, address and certificate as the kubelet gives them."""

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from tools.cluster.cluster import Cluster
from tools.cluster.profiles import Profile

KEY_FILE = "/etc/distserve/key/key"
DISTSERVE = ["-m", "distserve.cli.main"]
WAIT_SECONDS = 120.0
PATIENCE_SECONDS = 3.0
"""How old the gateway's last word from the API server is, at least, when it is asked again."""


def objects(namespace: str) -> list[dict[str, Any]]:
    metadata = {"name": "gateway"}
    account = {"kind": "ServiceAccount", "name": "gateway", "namespace": namespace}
    rule = {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "gateway"},
            "subjects": [account],
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "key"},
            "stringData": {"key": "k" * 64},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "tiny-instances"},
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {"app": "tiny-u0-hybrid-0-0"},
                "ports": [{"name": "engine", "port": 8100}],
            },
        },
    ]


def pod_of(
    cluster: Cluster, name: str, command: list[str], port: int, **spec: Any
) -> dict[str, Any]:
    pod = cluster.python_pod(name, [*DISTSERVE, *command, "--key-file", KEY_FILE], **spec)
    (container,) = pod["spec"]["containers"]
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    home = [{"name": "HOME", "value": "/tmp"}, {"name": "OMP_NUM_THREADS", "value": "1"}]
    container["env"] += [address, *home]
    probe = {"httpGet": {"path": "/readyz", "port": port}, "periodSeconds": 1}
    container["readinessProbe"] = probe
    container["volumeMounts"].append({"name": "key", "mountPath": "/etc/distserve/key"})
    pod["spec"]["volumes"].append({"name": "key", "secret": {"secretName": "key"}})
    container["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"})
    pod["spec"]["volumes"].append({"name": "tmp", "emptyDir": {}})
    return pod


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """From this machine, which reaches pods without the API server."""
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.2)


def test_a_gateway_serves_on_while_the_api_server_is_away(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster(Profile.REAL, nodes=1)
    with cluster.namespace() as namespace:
        name = "tiny-u0-hybrid-0-0"
        engine = [
            "engine", "--model", "builtin:tiny", "--served-name", "tiny", "--role", "hybrid",
            "--strategy", "Colocated", "--instance", name, "--unit", "u0", "--host", "$(POD_IP)",
        ]  # fmt: skip
        gateway = [
            "gateway", "--model", "tiny", "--strategy", "Colocated", "--host", "$(POD_IP)",
            "--discovery", f"endpointslices:{namespace}/tiny-instances",
        ]  # fmt: skip
        cluster.apply(objects(namespace), namespace)
        cluster.apply(pod_of(cluster, name, engine, 8100), namespace)
        cluster.apply(
            pod_of(cluster, "gateway", gateway, 8000, serviceAccountName="gateway"), namespace
        )
        # The gateway's readiness is a complete route: it has found the engine.
        cluster.wait_until_ready(f"pod {name} gateway", namespace, WAIT_SECONDS)
        address = cluster.get("pod", "gateway", namespace)["status"]["podIP"]
        url = f"http://{address}:8000"
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}

        def age() -> float:
            _, metrics = ask(f"{url}/metrics")
            (line,) = (
                one
                for one in metrics.splitlines()
                if one.startswith("distserve_gateway_discovery_age_seconds ")
            )
            return float(line.split()[1])

        assert ask(f"{url}/v1/completions", body)[0] == 200
        cluster.processes["kube-apiserver"].stop(signal.SIGKILL)
        until("the gateway's word to be old", lambda: age() > PATIENCE_SECONDS)
        assert ask(f"{url}/v1/completions", body)[0] == 200
        assert ask(f"{url}/readyz")[0] == 200

        cluster.processes["kube-apiserver"].start()
        until("the API server to be back", lambda: age() < PATIENCE_SECONDS)
        cluster.kubectl("delete", "pod", name, f"--namespace={namespace}", "--wait=false")
        until("the gateway to be without a route", lambda: ask(f"{url}/readyz")[0] == 503)
