"""What the machine itself must bring, told before anything is started."""

import os
import platform
import shutil
from pathlib import Path

from tools.cluster.errors import Unavailable
from tools.cluster.search_path import search_path
from tools.cluster.waiting import run

INSTALL_SECONDS = 600.0
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")
# Program -> Debian's package.
CONTROL_PLANE_PROGRAMS = {"openssl": "openssl"}
REAL_NODE_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "socat": "socat",
}


def check(*, real_nodes: bool) -> None:
    """Raises Unavailable with everything that is missing, and how to get it."""
    if platform.system() != "Linux":
        raise Unavailable(
            "the project's own test cluster runs on Linux only; elsewhere start Docker and install "
            "kind, or name a cluster in DISTSERVE_KUBECONFIG"
        )
    packages = missing_packages(real_nodes=real_nodes)
    if packages:
        raise Unavailable(
            f"apt-get install --no-install-recommends {' '.join(packages)} "
            "(`make cluster` does it as root)"
        )
    if real_nodes and os.geteuid() != 0:
        raise Unavailable(
            "real nodes need root (namespaces, mounts, cgroups), or kind with a Docker engine"
        )


def missing_packages(*, real_nodes: bool) -> list[str]:
    """Debian's names of the packages whose programs are not there."""
    needed = CONTROL_PLANE_PROGRAMS | (REAL_NODE_PROGRAMS if real_nodes else {})
    packages = {package for program, package in needed.items() if not _which(program)}
    if real_nodes and cni_folder() is None:
        packages.add("containernetworking-plugins")
    return sorted(packages)


def install(*, real_nodes: bool) -> None:
    """Installs what `missing_packages` names, where root and apt-get can."""
    packages = missing_packages(real_nodes=real_nodes)
    if packages and os.geteuid() == 0 and _which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            run(["apt-get", "--quiet", *command], env=environment, seconds=INSTALL_SECONDS)


def cni_folder() -> Path | None:
    """Where the network plug-ins lie; distributions differ."""
    for folder in map(Path, CNI_FOLDERS):
        if all((folder / plugin).exists() for plugin in CNI_PLUGINS):
            return folder
    return None


def _which(program: str) -> str | None:
    return shutil.which(program, path=search_path())
