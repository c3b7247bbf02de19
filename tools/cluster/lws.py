"""LeaderWorkerSet's controller as a process of a cluster: benchmarks/control_plane.py measures it.

It runs as its chart would run it (leader election, webhooks, its own client limits); only its
webhooks are reached by address, because a control plane without real nodes has no pods to call.
"""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tools.cluster import binaries
from tools.cluster.beside import free_ports, has_leader, listens
from tools.cluster.cluster import Cluster
from tools.cluster.modules import module_files
from tools.cluster.pki import Pki
from tools.cluster.processes import Process

CRD = "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"
WEBHOOKS = "config/webhook/manifests.yaml"
NAMESPACE = "lws-system"
OF_A_GROUP = {
    "matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]
}
READY_SECONDS = 60.0


def prepare(cluster: Cluster) -> None:
    """Builds it where that was not done yet (20 minutes on two cores); serves its CRD."""
    binaries.ensure(["lws"], cluster.progress)
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.apply(_manifest(CRD))
    cluster.wait_for("its kind to be served", lambda: "lws" in _kinds(cluster))


@contextmanager
def controller(cluster: Cluster, kubeconfig: Path) -> Iterator[Process]:
    """A controller that works, with its webhooks, which are gone again afterwards."""
    host, (webhook, health) = cluster.home.addresses.loopback, free_ports(2)
    folder = cluster.home.folder / "lws"
    folder.mkdir(exist_ok=True)
    pki = Pki(cluster.home.folder / "pki")
    if not pki.crt("lws-webhook").exists():
        pki.make_certificate("lws-webhook", "/CN=lws-webhook", names=(f"IP:{host}",))
    shutil.copy(pki.crt("lws-webhook"), folder / "tls.crt")
    shutil.copy(pki.key("lws-webhook"), folder / "tls.key")
    configuration = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": True},
        "internalCertManagement": {"enable": False},
        "webhook": {"host": host, "port": webhook, "certDir": str(folder)},
        "health": {"healthProbeBindAddress": f"{host}:{health}"},
        "metrics": {"bindAddress": "0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    # The last one's, which would have to run out.
    cluster.kubectl("delete", "leases", "--all", f"--namespace={NAMESPACE}")
    program = str(binaries.ensure(["lws"], cluster.progress)["lws"])
    flags = (f"--config={folder / 'config.yaml'}", "--zap-log-level=2")
    process = cluster.processes.start("lws", [program, f"--kubeconfig={kubeconfig}", *flags])
    hooks = _webhooks(f"https://{host}:{webhook}", pki.crt("ca"))
    try:
        process.wait_for("its webhooks", lambda: listens(host, webhook), READY_SECONDS)
        process.wait_for("the lease", lambda: has_leader(cluster, NAMESPACE), READY_SECONDS)
        cluster.apply(hooks)
        yield process
    finally:
        names = (f"{one['kind']}/{one['metadata']['name']}" for one in hooks)
        cluster.kubectl("delete", "--ignore-not-found", *names)
        process.stop()


def _webhooks(url: str, authority: Path) -> list[dict[str, Any]]:
    """As installed: for pods, only those that belong to a group."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all(_manifest(WEBHOOKS).read_text()))
    bundle = base64.b64encode(authority.read_bytes()).decode()
    for one in found:
        one["metadata"]["name"] = f"lws-{one['metadata']['name']}"
        for hook in one["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": url + path, "caBundle": bundle}
            if path.endswith("-pod"):
                hook["objectSelector"] = OF_A_GROUP
    return found


def _manifest(name: str) -> Path:
    (found,) = module_files(binaries.PROGRAMS["lws"], "sigs.k8s.io/lws", [name])
    return found


def _kinds(cluster: Cluster) -> list[str]:
    return cluster.kubectl("api-resources", "--api-group=leaderworkerset.x-k8s.io").split()
