"""A cluster by kind, where a Docker engine runs.

Its nodes mount the machine's root read-only at NODE_PATHS, for pods that run the machine's Python.
"""

import shutil
from pathlib import Path

import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.errors import ClusterError
from tools.cluster.home import claim
from tools.cluster.images import write_host_python
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

# Of kind 0.33, whose release notes name it: a tag alone may be built anew for another kind.
NODE_IMAGE = (
    "kindest/node:v1.34.11@sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d"
)
NODE_PATHS = "/machine"
CREATE_SECONDS = 600.0  # The first time the node image is pulled.
IMPORT_SECONDS = 120.0


class KindCluster(Cluster):
    """Its nodes are Docker containers."""

    def load_image(self, archive: Path) -> None:
        name = f"--name={self.home.name}"
        run(["kind", "load", "image-archive", str(archive), name], seconds=IMPORT_SECONDS)


def usable() -> bool:
    """Whether there is kind, and a Docker engine that answers."""
    if shutil.which("kind") is None or shutil.which("docker") is None:
        return False
    try:
        run(["docker", "info", "--format={{.ServerVersion}}"], seconds=20)
    except ClusterError:
        return False
    return True


def start(
    profile: Profile, progress: Progress, *, name: str, keep: bool = False, nodes: int = 2
) -> KindCluster:
    """A cluster whose nodes are Ready; what fails leaves nothing."""
    home = claim(name, Provider.KIND, profile, keep=keep)
    real = profile is Profile.REAL
    cluster = KindCluster(home, progress, node_paths=NODE_PATHS if real else None)
    config = home.folder / "kind.yaml"
    config.write_text(yaml.safe_dump(configuration(nodes if real else 0)))
    command = ["kind", "create", "cluster", f"--name={name}", f"--kubeconfig={home.kubeconfig}"]
    command += [f"--config={config}", f"--image={NODE_IMAGE}", "--wait=120s"]
    try:
        with progress.step(f"cluster {name}: {profile} by kind"):
            run(command, seconds=CREATE_SECONDS)
            if real:
                cluster.load_image(write_host_python(home.folder))
    except BaseException as reason:
        try:
            cluster.down()
        except ClusterError as also:
            reason.add_note(f"and its teardown failed: {also}")
        raise
    return cluster


def configuration(workers: int) -> dict[str, object]:
    """kind's cluster configuration; without workers pods run on the control plane's node."""
    mounts = [{"hostPath": "/", "containerPath": NODE_PATHS, "readOnly": True}]
    roles = ["control-plane", *["worker"] * workers]
    nodes = [{"role": role, "extraMounts": mounts} for role in roles]
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}
