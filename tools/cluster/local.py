"""The project's own cluster: the real programs of Kubernetes as processes of this machine."""

import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster import binaries, host
from tools.cluster.addresses import MAX_NODES
from tools.cluster.cluster import Cluster
from tools.cluster.control_plane import ControlPlane, ExtraFlags
from tools.cluster.errors import ClusterError, CommandFailed
from tools.cluster.home import claim
from tools.cluster.images import COREDNS, write_node_images
from tools.cluster.network import make_bridge
from tools.cluster.node import Node
from tools.cluster.pki import make_control_plane_pki, make_node_pki
from tools.cluster.profiles import Profile, Provider, Release
from tools.cluster.progress import Progress

ADDONS = Path(__file__).parent / "manifests" / "addons.yaml"


@dataclass
class LocalCluster(Cluster):
    """Control plane and nodes are processes of this machine."""

    real_nodes: list[Node] = field(default_factory=list)

    def load_image(self, archive: Path) -> None:
        for node in self.real_nodes:
            node.load_image(archive)


def prepare(
    profile: Profile, progress: Progress, release: Release = Release.PINNED
) -> dict[str, Path]:
    """Checks the machine and builds what is missing; raises Unavailable with the cure."""
    host.check(real_nodes=profile is Profile.REAL)
    names = binaries.REAL_NODES if profile is Profile.REAL else binaries.CONTROL_PLANE
    if release is Release.NEXT:
        return binaries.ensure_next(names, progress)
    return binaries.ensure(names, progress)


def start(
    profile: Profile,
    progress: Progress,
    *,
    name: str,
    keep: bool = False,
    nodes: int = 2,
    extra: ExtraFlags | None = None,
    release: Release = Release.PINNED,
) -> LocalCluster:
    """A cluster that answers; its nodes are Ready and its DNS serves. What fails leaves nothing."""
    if not 1 <= nodes <= MAX_NODES:
        raise ClusterError(f"{nodes} nodes: a cluster of real nodes has 1 to {MAX_NODES}")
    programs = prepare(profile, progress, release)
    home = claim(name, Provider.LOCAL, profile, keep=keep)
    cluster = LocalCluster(home, progress, node_paths="" if profile is Profile.REAL else None)
    try:
        with progress.step(f"cluster {home.name}: {profile}"):
            _bring_up(cluster, programs, nodes if profile is Profile.REAL else 0, extra)
    except BaseException as reason:
        try:
            cluster.down()
        except ClusterError as also:
            reason.add_note(f"and its teardown failed: {also}")
        raise
    return cluster


def _bring_up(
    cluster: LocalCluster,
    programs: dict[str, Path],
    node_count: int,
    extra: ExtraFlags | None,
) -> None:
    home = cluster.home
    addresses = home.addresses
    api_address = addresses.bridge_address if node_count else addresses.loopback
    if node_count:
        make_bridge(addresses)
    pki = make_control_plane_pki(home.folder / "pki", addresses, api_address)
    home.kubeconfig.touch(mode=0o600)
    home.kubeconfig.write_text(pki.kubeconfig("admin").read_text())
    ControlPlane(home, pki, programs, api_address, extra or ExtraFlags()).start(cluster.processes)
    for number in range(1, node_count + 1):
        node = Node(home, number, pki, programs, cluster.processes)
        make_node_pki(pki, node.name, node.address, api_address)
        cluster.real_nodes.append(node)
    if node_count:
        archives = write_node_images(home.folder, programs)
        addons = string.Template(ADDONS.read_text())
        text = addons.substitute(image=COREDNS, address=addresses.dns_service)
        cluster.kubectl("apply", "--server-side", "--filename=-", stdin=text)
        _start_nodes(cluster, archives)
    cluster.wait_for("the default ServiceAccount", lambda: _has_service_account(cluster))


def _start_nodes(cluster: LocalCluster, archives: Sequence[Path]) -> None:
    count = len(cluster.real_nodes)
    with ThreadPoolExecutor(count) as pool:
        # list: an exception of any of them is raised here.
        list(pool.map(lambda node: node.start(count, archives), cluster.real_nodes))
    cluster.wait_until_ready("node " + " ".join(node.name for node in cluster.real_nodes))
    cluster.kubectl(
        *("rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=100s"),
        seconds=110,
    )


def _has_service_account(cluster: LocalCluster) -> bool:
    try:
        cluster.get("serviceaccount", "default")
    except CommandFailed:
        return False
    return True
