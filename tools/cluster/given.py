"""A cluster that the user names in DISTSERVE_KUBECONFIG.

KUBECONFIG itself is not looked at: tests create and delete namespaces, nodes and CRDs, and nobody
should find that done to the cluster that happened to be selected.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.cluster import binaries
from tools.cluster.cluster import Cluster
from tools.cluster.errors import ClusterError, Unavailable
from tools.cluster.fake_nodes import OWNER
from tools.cluster.home import claim
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

VARIABLE = "DISTSERVE_KUBECONFIG"


class GivenCluster(Cluster):
    """Somebody else's: only what was added is removed."""

    def nodes(
        self,
        count: int,
        gpus: int = 8,
        labels: Callable[[int], Mapping[str, str]] = lambda number: {},
        *,
        prefix: str = "gpu",
    ) -> list[str]:
        """As everywhere, with a label by which the teardown finds them, after a crash too."""
        self.home.lent_nodes.touch()
        owner = {OWNER: self.home.name}
        return super().nodes(count, gpus, lambda at: {**labels(at), **owner}, prefix=prefix)


def named() -> Path | None:
    """The kubeconfig that the user opted in with."""
    said = os.environ.get(VARIABLE)
    return Path(said) if said else None


def connect(
    profile: Profile, progress: Progress, kubeconfig: Path, *, name: str, keep: bool = False
) -> GivenCluster:
    """The user's cluster, once its API server has answered."""
    if not kubeconfig.exists():
        raise Unavailable(f"{VARIABLE}={kubeconfig}: there is no such file")
    cluster = GivenCluster(claim(name, Provider.GIVEN, profile, keep=keep), progress)
    try:
        # Not a copy: what it names by relative paths would not be found from the copy's folder.
        view = ("config", "view", "--raw", "--flatten", "--minify", f"--kubeconfig={kubeconfig}")
        whole = run([str(binaries.client("kubectl", progress)), *view])
        cluster.kubeconfig.touch(mode=0o600)
        cluster.kubeconfig.write_text(whole)
        cluster.kubectl("get", "--raw=/readyz")
    except ClusterError as failed:
        cluster.down()
        raise Unavailable(f"{VARIABLE}={kubeconfig}: no cluster answers: {failed}") from failed
    return cluster
