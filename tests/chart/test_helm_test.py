"""`helm test`: what its pod would run, with the pod's rights, with and without a leader."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.errors import CommandFailed

Ask = Callable[..., "subprocess.CompletedProcess[str]"]
End = Callable[[str], str]


@pytest.fixture
def asked_by_helm(release: Any, tmp_path: Path) -> Iterator[tuple[Ask, End]]:
    """`helm test` as it runs: its pod is there, and here is what the pod would run."""
    cluster, namespace = release.cluster, release.namespace
    # The fake kubelet runs nothing: helm waits until the test below says how the pod ended.
    outcome: list[str] = []

    def run() -> None:
        try:
            outcome.append(release.helm("test", "--timeout=60s"))
        except CommandFailed as failed:
            outcome.append(str(failed))

    helm = threading.Thread(target=run)
    helm.start()
    name = f"{release.name}-test"

    def running() -> bool:
        found = cluster.get("pods", namespace=namespace)["items"]
        return any(
            pod["metadata"]["name"] == name and pod["status"]["phase"] == "Running" for pod in found
        )

    cluster.wait_for("the test's pod", running)
    script, sample = (
        cluster.get("configmap", name, namespace)["data"][file]
        for file in ("helm_test.py", "sample.json")
    )
    (tmp_path / "helm_test.py").write_text(script)
    (tmp_path / "sample.json").write_text(sample)
    (tmp_path / "token").write_text(
        cluster.kubectl("create", "token", name, f"--namespace={namespace}").strip()
    )
    (config,) = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"]
    (tmp_path / "ca.crt").write_bytes(
        base64.b64decode(config["cluster"]["certificate-authority-data"])
    )
    (container,) = cluster.get("pod", name, namespace)["spec"]["containers"]
    args = [word.replace("/test/", f"{tmp_path}/") for word in container["args"]]
    command = [sys.executable, str(tmp_path / "helm_test.py"), *args]
    command += [f"--server={config['cluster']['server']}", f"--token-folder={tmp_path}"]

    def ask(*flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)

    def end(phase: str) -> str:
        patch = json.dumps({"status": {"phase": phase}})
        flags = (f"--namespace={namespace}", "--subresource=status", f"--patch={patch}")
        cluster.kubectl("patch", "pod", name, *flags)
        helm.join(70)
        assert not helm.is_alive(), "helm ends when the pod has"
        return outcome[0]

    try:
        yield ask, end
    finally:
        if not outcome:
            end("Failed")
        hooks = ("get", "sa,role,rolebinding,configmap,pod", f"--namespace={namespace}")
        left = cluster.kubectl(*hooks, "--selector=app.kubernetes.io/name=distserve-test")
        if left:
            cluster.kubectl("delete", "pod", name, f"--namespace={namespace}", "--wait=false")


def test_it_says_what_is_wrong(release: Any, asked_by_helm: tuple[Ask, End]) -> None:
    ask, end = asked_by_helm
    answer = ask("--timeout-seconds=0")
    assert answer.returncode == 1
    assert answer.stdout.startswith("ok ")
    assert "FAILED one of them leads" in answer.stderr
    assert "nobody holds the Lease" in answer.stderr or "not found" in answer.stderr
    assert "kubectl logs" in answer.stderr
    assert "failed" in end("Failed")


def test_it_passes_when_the_operator_leads(
    release: Any, start_operator: Any, asked_by_helm: tuple[Ask, End]
) -> None:
    ask, end = asked_by_helm
    with start_operator(release) as operator:
        answer = ask("--timeout-seconds=50")
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr + operator.tail
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["ok"] * 3
    assert "Succeeded" in end("Succeeded")
    selector = "--selector=app.kubernetes.io/name=distserve-test"
    kinds = "sa,role,rolebinding,configmap,pod"
    flag = f"--namespace={release.namespace}"
    release.cluster.wait_for(
        "nothing of the test to be left",
        lambda: not release.cluster.kubectl("get", kinds, flag, selector),
    )
    listed = release.cluster.kubectl("get", "dsd", flag, "--output=name")
    assert listed == "", "the sample was only tried"
