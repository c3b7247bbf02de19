"""What is on the machine, so that a test can see that a cluster left nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tools.cluster.home import clusters
from tools.cluster.waiting import run

Traces = dict[str, set[str]]


def _lines(*command: str) -> set[str]:
    return set(run(command).split("\n"))


def _processes() -> set[str]:
    """Living processes by number and command; what has ended and waits for its parent is none."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if any(word in command for word in ("kube", "etcd", "containerd", "dsk", "kwok", "pause")):
            found.add(f"{entry.name} {command}")
    return found


def _namespaces() -> set[str]:
    found = set()
    for kind in ("net", "mnt"):
        for entry in Path("/proc").glob(f"[0-9]*/ns/{kind}"):
            try:
                found.add(str(entry.readlink()))
            except OSError:
                continue
    return found


@pytest.fixture
def traces() -> Callable[[], Traces]:
    """Everything that a cluster makes on a machine, by kind."""

    def look() -> Traces:
        return {
            "processes": _processes(),
            "namespaces": _namespaces(),
            "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
            "links": _lines("ip", "-oneline", "link", "show"),
            "routes": _lines("ip", "route", "show", "table", "all"),
            "rules": _lines("nft", "list", "ruleset"),
            "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/dsk*")},
            "clusters": {str(path) for path in clusters().glob("*") if path.name[0] != "."},
            "sockets": {str(path) for path in Path("/run/distserve-cluster").glob("*")},
            "fixed folders": {
                path for path in ("/var/lib/kubelet", "/var/lib/cni") if Path(path).exists()
            },
        }

    return look
