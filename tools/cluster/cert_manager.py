"""cert-manager as a process of a cluster: what issues and renews certificates, and its cainjector.

Its controllers in a program of ours (gomod/cert-manager/main.go says why). Without its own webhook,
which refuses wrong objects of its kinds and changes none that is right.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tools.cluster import binaries
from tools.cluster.cluster import Cluster
from tools.cluster.modules import module_files
from tools.cluster.processes import Process

NAME = "cert-manager"
MODULE = "github.com/cert-manager/cert-manager"
CRDS = "deploy/crds"
KINDS = (
    "certificaterequests.cert-manager.io",
    "certificates.cert-manager.io",
    "challenges.acme.cert-manager.io",
    "clusterissuers.cert-manager.io",
    "issuers.cert-manager.io",
    "orders.acme.cert-manager.io",
)


def prepare(cluster: Cluster) -> None:
    """Builds it where that was not done yet (4 minutes of CPU); serves its kinds."""
    binaries.ensure([NAME], cluster.progress)
    names = [f"{CRDS}/{group}_{kind}.yaml" for kind, _, group in (k.partition(".") for k in KINDS)]
    for manifest in module_files(binaries.PROGRAMS[NAME], MODULE, names):
        cluster.apply(manifest)
    served = ("wait", "--for=condition=Established", "--timeout=30s")
    cluster.kubectl(*served, *(f"crd/{kind}" for kind in KINDS))


@contextmanager
def controller(cluster: Cluster, **feature_gates: bool) -> Iterator[Process]:
    """At work in all namespaces."""
    program = str(binaries.ensure([NAME], cluster.progress)[NAME])
    gates = ",".join(f"{name}={str(on).lower()}" for name, on in feature_gates.items())
    flags = (f"--kubeconfig={cluster.kubeconfig}", f"--feature-gates={gates}")
    process = cluster.processes.start(NAME, [program, *flags])
    try:
        yield process
    finally:
        process.stop()
