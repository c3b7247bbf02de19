"""A cluster that the user names in DISTSERVE_KUBECONFIG.

KUBECONFIG itself is not looked at: tests create and delete namespaces, nodes and CRDs, and nobody
should find that done to the cluster that happened to be selected.
"""

import os
import shutil
from pathlib import Path

from tools.cluster.cluster import Cluster
from tools.cluster.errors import ClusterError, Unavailable
from tools.cluster.home import claim
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress

VARIABLE = "DISTSERVE_KUBECONFIG"


class GivenCluster(Cluster):
    """Somebody else's: only what was added is removed."""

    def down(self) -> None:
        try:
            self.remove_nodes(self.fake_node_names)
        finally:
            super().down()


def named() -> Path | None:
    """The kubeconfig that the user opted in with."""
    said = os.environ.get(VARIABLE)
    return Path(said) if said else None


def connect(profile: Profile, progress: Progress, kubeconfig: Path, *, name: str) -> GivenCluster:
    """The user's cluster, once its API server has answered."""
    if not kubeconfig.exists():
        raise Unavailable(f"{VARIABLE}={kubeconfig}: there is no such file")
    cluster = GivenCluster(claim(name, Provider.GIVEN, profile, keep=False), progress)
    try:
        shutil.copyfile(kubeconfig, cluster.kubeconfig)
        cluster.kubeconfig.chmod(0o600)
        cluster.kubectl("get", "--raw=/readyz")
    except ClusterError as failed:
        cluster.down()
        raise Unavailable(f"{VARIABLE}={kubeconfig}: no cluster answers: {failed}") from failed
    return cluster
