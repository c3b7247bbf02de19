"""The operator with the chart's command line and the chart's rights: what it needs, it may."""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.chart.rendering import template
from tools.cluster import fake_nodes
from tools.cluster.cluster import CHECKOUT, Cluster

from distserve.cli import operator as command

# The process listens for everybody in its pod; here for this machine alone.
PROGRAM = """
import sys
from dataclasses import replace
from distserve.cli import main, operator
settings = operator._settings
operator._settings = lambda args: replace(settings(args), host="127.0.0.1")
sys.exit(main.main())
"""
SECONDS = 60


def test_the_command_knows_the_charts_flags(render: Any) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    container = render({"namespaces": ["a", "b"]}).container
    assert container["command"] == ["distserve", "operator"]
    args = parser.parse_args(container["args"])
    assert (args.namespaces, args.workers, args.log_level) == ("a,b", 4, "info")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": args.metrics_port, "health": args.health_port}


@dataclass(frozen=True)
class Operator:
    """A replica that runs on this machine."""

    process: "subprocess.Popen[bytes]"
    log: Path
    health: str
    metrics: str

    def answers(self, address: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def running(release: Any, folder: Path) -> Iterator[Operator]:
    """As in its pod, besides ports and the way to the API server."""
    cluster, where = release.cluster, f"--namespace={release.namespace}"
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", release.operator, where).strip()
    config["users"] = [{"name": "operator", "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"]["user"] = "operator"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    found = cluster.get("deployment", release.operator, release.namespace)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    ports = _free_ports(2)
    words = [word.replace("$(POD_NAME)", "a-pod") for word in container["args"]]
    words += [f"--health-port={ports[0]}", f"--metrics-port={ports[1]}"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "operator", *words, f"--kubeconfig={kubeconfig}"],
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    one = Operator(process, log, addresses[0], f"{addresses[1]}/metrics")
    try:
        cluster.wait_for("readiness", lambda: one.answers(f"{one.health}/readyz"), SECONDS)
        assert one.answers(f"{one.health}/healthz")
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def sample() -> Any:
    """The tiny one, on fake nodes."""
    found = yaml.safe_load((CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text())
    tolerant = {"spec": {"tolerations": [fake_nodes.TOLERATION]}}
    for section in ("prefill", "decode", "gateway"):
        found["spec"].setdefault(section, {})["podTemplate"] = tolerant
    return found


def made(cluster: Cluster, namespace: str) -> set[str]:
    kinds = "statefulset,deployment,service,sa,rolebinding,netpol,pdb,secret,controllerrevision"
    said = cluster.kubectl("get", kinds, f"--namespace={namespace}", "--output=name")
    return set(said.split())


@pytest.mark.parametrize("mode", ["everywhere", "confined"])
def test_a_deployment_is_made_with_the_charts_rights(
    request: pytest.FixtureRequest, mode: str, tmp_path: Path
) -> None:
    if mode == "everywhere":
        release = request.getfixturevalue("release")
        spaces: Any = release.cluster.namespace("user")
    else:
        confined = request.getfixturevalue("confined")
        release, spaces = confined.release, contextlib.nullcontext(confined.kept)
    cluster = release.cluster
    with running(release, tmp_path) as operator, spaces as namespace:
        cluster.apply(sample(), namespace)
        wanted = {
            "statefulset.apps/tiny-u0-prefill-0",
            "statefulset.apps/tiny-u0-decode-0",
            "deployment.apps/tiny-gateway",
            "service/tiny-gateway",
            "serviceaccount/tiny-gateway",
            "rolebinding.rbac.authorization.k8s.io/tiny-gateway",
            "networkpolicy.networking.k8s.io/tiny-engine",
            "secret/tiny-key",
        }

        def complete() -> bool:
            return wanted <= made(cluster, namespace)

        cluster.wait_for(f"{wanted}\n{operator.log.read_text()[-3000:]}", complete, SECONDS)

        def told() -> bool:
            found = cluster.get("dsd", "tiny", namespace).get("status", {})
            return any(one["type"] == "Ready" for one in found.get("conditions", []))

        cluster.wait_for("a status", told, SECONDS)
        lease = cluster.get("lease", release.operator, release.namespace)
        assert lease["spec"]["holderIdentity"] == "a-pod"
        with urllib.request.urlopen(operator.metrics, timeout=5) as answer:
            metrics = answer.read().decode()
        rules = template({"monitoring": {"prometheusRule": "Always"}})
        names = set(re.findall(r"distserve_operator_\w+", rules))
        assert names == {
            name for name in names if re.search(rf"^{name}(_bucket)?[ {{]", metrics, re.M)
        }
        cluster.kubectl("delete", "dsd", "tiny", f"--namespace={namespace}")
    assert operator.process.returncode == 0
    log = operator.log.read_text()
    assert 'outcome="403"' not in metrics, log[-4000:]
    assert "forbidden" not in log.lower(), log[-4000:]
