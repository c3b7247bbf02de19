"""The chart on a real API server: what is taken, what changes, what stays."""

import shutil
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
            # What gateways read with, as long as there are deployments.
            (kept,) = cluster.kubectl(*outside).split()
            assert kept == "clusterrole.rbac.authorization.k8s.io/distserve-gone-gateway"
            assert cluster.get("crd", CRD)["metadata"]["name"] == CRD
            assert cluster.get("dsd", "tiny", namespace)["spec"]["model"]["id"] == "tiny"
            with pytest.raises(CommandFailed, match="cannot be imported into the current release"):
                release.cluster.helm("install", "other", str(CHART), f"--namespace={namespace}")
            gone.helm("install", str(CHART))  # takes it up again
        assert cluster.get("dsd", "tiny", namespace)["spec"]["model"]["id"] == "tiny"
    release.upgrade(CHART, "--take-ownership", "--force-conflicts")
