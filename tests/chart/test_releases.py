"""The chart on a real API server: what is taken, what changes, what stays, `helm test`."""

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.chart.rendering import CHART
from tools.cluster.cluster import CHECKOUT
from tools.cluster.errors import CommandFailed

CRD = "distservedeployments.distserve.io"
SAMPLES = CHECKOUT / "manifests" / "samples"

Object = dict[str, Any]


def test_replicas_run_on_different_nodes(release: Any) -> None:
    pods = release.cluster.get("pods", namespace=release.namespace)["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == len(pods) == 2


def test_notes_say_what_to_do_next(release: Any, tmp_path: Path) -> None:
    """And what they tell to apply is taken by the API server."""
    where = f"--namespace={release.namespace}"
    notes = release.cluster.helm("get", "notes", release.name, where)
    assert f"helm test {release.name} --namespace {release.namespace}" in notes
    sample = notes.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0]
    (tmp_path / "sample.yaml").write_text(sample)
    assert yaml.safe_load(sample) == yaml.safe_load((SAMPLES / "tiny-cpu.yaml").read_text())
    release.cluster.apply(tmp_path / "sample.yaml", "default", "--dry-run=server")


def test_an_upgrade_brings_new_fields(release: Any, tmp_path: Path) -> None:
    """What crds/ of a chart could not do: helm never upgrades that folder."""
    cluster = release.cluster
    newer = tmp_path / "distserve"
    shutil.copytree(CHART, newer)
    file = newer / "files" / f"{CRD}.yaml"
    crd = yaml.safe_load(file.read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["novelty"] = {"type": "string", "description": "New in the next version."}
    file.write_text(yaml.safe_dump(crd))
    tiny = yaml.safe_load((SAMPLES / "tiny-cpu.yaml").read_text())
    tiny["spec"]["novelty"] = "yes"
    dry = ("--dry-run=server", "--validate=strict")
    with pytest.raises(CommandFailed, match="novelty"):
        cluster.apply(tiny, release.namespace, *dry)
    try:
        release.upgrade(newer, "--force-conflicts")

        def known() -> bool:
            try:
                return "applied" in cluster.apply(tiny, release.namespace, *dry)
            except CommandFailed:
                return False

        cluster.wait_for("the new field to be served", known)
    finally:
        release.upgrade(CHART, "--force-conflicts")


def test_an_upgrade_restarts_the_operator_only_when_its_pods_change(release: Any) -> None:
    def generation() -> int:
        found = release.cluster.get("deployment", release.operator, release.namespace)
        return int(found["metadata"]["generation"])

    before = generation()
    release.upgrade(CHART, "--set=monitoring.interval=15s")
    assert generation() == before
    release.upgrade(CHART, "--set=operator.workers=5")
    assert generation() == before + 1
    release.helm("rollback", "--force-conflicts")
    assert generation() == before + 2


def test_uninstalling_keeps_deployments_and_their_kind(install: Any, release: Any) -> None:
    """A second release takes the CRD over from the first, and the first one takes it back."""
    cluster = release.cluster
    with cluster.namespace() as namespace:
        cluster.apply(SAMPLES / "tiny-cpu.yaml", namespace)
        with install("distserve-gone", {"replicas": 1}) as gone:
            kinds = "deploy,sa,pdb,netpol,role,rolebinding,configmap,pod,lease"
            selector = "--selector=app.kubernetes.io/instance=distserve-gone"
            where = ("--all-namespaces", selector, "--output=name")
            assert f"deployment.apps/{gone.operator}" in cluster.kubectl("get", kinds, *where)
            gone.helm("uninstall", "--wait", "--timeout=60s")
            cluster.wait_for(
                "nothing of the release to be left",
                lambda: not cluster.kubectl("get", kinds, *where),
            )
            outside = ("get", "clusterrole,clusterrolebinding", selector, "--output=name")
            assert cluster.kubectl(*outside) == ""
            assert cluster.get("crd", CRD)["metadata"]["name"] == CRD
            assert cluster.get("dsd", "tiny", namespace)["spec"]["model"]["id"] == "tiny"
            with pytest.raises(CommandFailed, match="cannot be imported into the current release"):
                release.cluster.helm("install", "other", str(CHART), f"--namespace={namespace}")
            gone.helm("install", str(CHART))
        assert cluster.get("dsd", "tiny", namespace)["spec"]["model"]["id"] == "tiny"
    release.upgrade(CHART, "--take-ownership", "--force-conflicts")


class Leader:
    """Holds the operator's Lease and renews it, with the operator's rights."""

    def __init__(self, release: Any) -> None:
        self._release = release
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew)
        self._flag = f"--namespace={release.namespace}"
        self._lease: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": release.operator},
            "spec": {"holderIdentity": "one", "leaseDurationSeconds": 10},
        }

    def __enter__(self) -> None:
        self._write("create")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._release.cluster.kubectl("delete", "lease", self._release.operator, self._flag)

    def _renew(self) -> None:
        second = 0
        while not self._stop.wait(0.2):
            second += 1
            renewed = f"2030-01-01T00:{second // 60 % 60:02}:{second % 60:02}.000000Z"
            self._lease["spec"]["renewTime"] = renewed
            self._write("replace")

    def _write(self, verb: str) -> None:
        said = self._release.as_operator(
            verb, self._flag, "--filename=-", "--output=json", stdin=json.dumps(self._lease)
        )
        self._lease["metadata"] = json.loads(said)["metadata"]


@pytest.fixture
def asked_by_helm(release: Any, tmp_path: Path) -> Iterator[Any]:
    """`helm test` as it runs: its pod is there, and here is what the pod would run."""
    cluster, namespace = release.cluster, release.namespace
    # The fake kubelet runs nothing: helm waits until the test below says how the pod ended.
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(release.helm("test", "--timeout=60s"))
        except CommandFailed as failed:
            outcome.append(failed)

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

    def end(phase: str) -> object:
        patch = json.dumps({"status": {"phase": phase}})
        flags = (f"--namespace={namespace}", "--subresource=status", f"--patch={patch}")
        cluster.kubectl("patch", "pod", name, *flags)
        helm.join(60)
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


def test_helm_test_passes_when_the_operator_leads(release: Any, asked_by_helm: Any) -> None:
    ask, end = asked_by_helm
    with Leader(release):
        answer = ask()
    assert (answer.returncode, answer.stderr) == (0, "")
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["ok"] * 3
    assert "Succeeded" in str(end("Succeeded"))
    selector = "--selector=app.kubernetes.io/name=distserve-test"
    kinds = "sa,role,rolebinding,configmap,pod"
    flag = f"--namespace={release.namespace}"
    release.cluster.wait_for(
        "nothing of the test to be left",
        lambda: not release.cluster.kubectl("get", kinds, flag, selector),
    )
    listed = release.cluster.kubectl("get", "dsd", flag, "--output=name")
    assert listed == "", "the sample was only tried"


def test_helm_test_says_what_is_wrong(release: Any, asked_by_helm: Any) -> None:
    ask, end = asked_by_helm
    answer = ask("--timeout-seconds=0")
    assert answer.returncode == 1
    assert "FAILED one of them leads" in answer.stderr
    assert f'"{release.operator}" not found' in answer.stderr
    assert "kubectl logs" in answer.stderr
    assert "failed" in str(end("Failed"))
