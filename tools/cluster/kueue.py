"""Kueue as a process of a cluster: its queues, their scheduler and its webhooks.

It runs as its manifests have it. Two things differ, because a control plane without real nodes has
no pods to call and mounts no Secrets: its webhooks are reached by address, and their certificate is
made here. Of its integrations with others' kinds only that of Jobs is on, which is its default.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tools.cluster import binaries
from tools.cluster.beside import free_ports, has_leader, listens
from tools.cluster.cluster import Cluster
from tools.cluster.modules import module_files
from tools.cluster.processes import Process
from tools.cluster.waiting import run

NAME = "kueue"
MODULE = "sigs.k8s.io/kueue"
GROUP = "kueue.x-k8s.io"
NAMESPACE = "kueue-system"
CRDS = "config/components/crd/bases"
WEBHOOKS = "config/components/webhook/manifests.yaml"
KINDS = (
    "admissionchecks",
    "clusterqueues",
    "cohorts",
    "localqueues",
    "multikueueclusters",
    "multikueueconfigs",
    "provisioningrequestconfigs",
    "resourceflavors",
    "topologies",
    "workloadpriorityclasses",
    "workloads",
)
CONVERTED = frozenset(
    {"clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads"}
)
"""Kinds of which Kueue itself converts one version to another."""
SECRET = "kueue-webhook-server-cert"
SERVICE = "kueue-webhook-service"
AUTHORITY = "kueue-ca"
VALID_DAYS = "365"
"""Kueue makes a new certificate 90 days before the end of the one that it finds."""
READY_SECONDS = 120.0


@contextmanager
def controller(cluster: Cluster, **settings: Any) -> Iterator[Process]:
    """Kueue at work, with its kinds, which are gone again afterwards with all that is in them.
    `settings` are fields of its Configuration.

    Builds it where that was not done yet (7 minutes of CPU)."""
    program = str(binaries.ensure([NAME], cluster.progress)[NAME])
    host, (webhook, health) = cluster.home.addresses.loopback, free_ports(2)
    folder = cluster.home.folder / NAME
    folder.mkdir(exist_ok=True)
    _make_certificates(folder, host)
    url, bundle = f"https://{host}:{webhook}", _text(folder / "ca.crt")
    cluster.kubectl("create", "namespace", NAMESPACE)
    data = {name: _text(folder / name) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
    cluster.apply(secret, NAMESPACE)
    names = [WEBHOOKS, *(f"{CRDS}/{GROUP}_{kind}.yaml" for kind in KINDS)]
    manifest, *definitions = module_files(binaries.PROGRAMS[NAME], MODULE, names)
    hooks = _webhooks(manifest, url, bundle)
    kinds = [_crd(file, url, bundle) for file in definitions]
    cluster.apply(kinds)
    cluster.wait_for("its kinds to be served", lambda: set(KINDS) <= _served(cluster))
    cluster.apply(hooks)
    said = _configuration(folder, host, webhook, health) | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    command = ["env", f"KUBECONFIG={cluster.kubeconfig}", program]
    process = cluster.processes.start(NAME, [*command, f"--config={folder / 'config.yaml'}"])
    try:
        process.wait_for("its webhooks", lambda: listens(host, webhook), READY_SECONDS)
        process.wait_for("the lease", lambda: has_leader(cluster, NAMESPACE), READY_SECONDS)
        yield process
        for kind in ("workloads", "localqueues", "clusterqueues", "resourceflavors"):
            everywhere = ("--all-namespaces",) if kind in ("workloads", "localqueues") else ()
            cluster.kubectl("delete", f"{kind}.{GROUP}", "--all", *everywhere)
    finally:
        process.stop()
        # Nobody converts what may be left.
        cluster.apply([_crd(file) for file in definitions])
        for one in (*hooks, *kinds):
            kind, name = one["kind"], one["metadata"]["name"]
            cluster.kubectl("delete", "--ignore-not-found", f"{kind}/{name}")
        cluster.kubectl("delete", "namespace", NAMESPACE)


def _configuration(folder: Path, host: str, webhook: int, health: int) -> dict[str, Any]:
    return {
        "apiVersion": f"config.{GROUP}/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{host}:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": host, "port": webhook, "certDir": str(folder)},
        "leaderElection": {"leaderElect": True, "resourceNamespace": NAMESPACE},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": SERVICE,
            "webhookSecretName": SECRET,
        },
        # An API server of its own for questions about what is pending.
        "featureGates": {"VisibilityOnDemand": False},
        "integrations": {"frameworks": ["batch/job"]},
    }


def _make_certificates(folder: Path, host: str) -> None:
    """Such as Kueue would make and keeps if it finds them; with the address besides."""
    names = folder / "names.ext"
    names.write_text(f"subjectAltName=DNS:{SERVICE}.{NAMESPACE}.svc,IP:{host}\n")
    files = {name: str(folder / name) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
    request = str(folder / "tls.csr")
    days = ("-days", VALID_DAYS)
    for command in (
        # It reads no other form of the authority's key.
        ("genrsa", "-traditional", "-out", files["ca.key"], "2048"),
        (
            *("req", "-x509", *days, "-subj", f"/CN={AUTHORITY}", "-key", files["ca.key"]),
            *("-addext", f"subjectAltName=DNS:{AUTHORITY}", "-out", files["ca.crt"]),
        ),
        (
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={SERVICE}"),
            *("-keyout", files["tls.key"], "-out", request),
        ),
        (
            *("x509", "-req", "-in", request, *days, "-CAcreateserial"),
            *("-CA", files["ca.crt"], "-CAkey", files["ca.key"]),
            *("-extfile", str(names), "-out", files["tls.crt"]),
        ),
    ):
        run(["openssl", *command])


def _crd(file: Path, url: str = "", bundle: str = "") -> dict[str, Any]:
    """Without a URL no version is converted."""
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    if url and found["spec"]["names"]["plural"] in CONVERTED:
        found["spec"]["conversion"] = {
            "strategy": "Webhook",
            "webhook": {
                "clientConfig": {"url": f"{url}/convert", "caBundle": bundle},
                "conversionReviewVersions": ["v1"],
            },
        }
    return found


def _webhooks(file: Path, url: str, bundle: str) -> list[dict[str, Any]]:
    """Those of its own kinds."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all(file.read_text()))
    for one in found:
        one["metadata"]["name"] = f"{NAME}-{one['metadata']['name']}"
        one["webhooks"] = [w for w in one["webhooks"] if w["rules"][0]["apiGroups"] == [GROUP]]
        for hook in one["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": url + path, "caBundle": bundle}
    return found


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _served(cluster: Cluster) -> set[str]:
    said = cluster.kubectl("api-resources", f"--api-group={GROUP}", "--output=name")
    return {line.partition(".")[0] for line in said.split()}
