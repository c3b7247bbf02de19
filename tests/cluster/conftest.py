"""What is on the machine, so that a test can see that a cluster left nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.cluster.home import clusters, homes, process_identity
from tools.cluster.waiting import run

Traces = dict[str, set[str]]


def _lines(*command: str) -> set[str]:
    return set(run(command).split("\n"))


def _of_others() -> list[bytes]:
    """Folders of clusters that other test runs own: what they start meanwhile is no matter here."""
    mine = process_identity(os.getpid())
    return [os.fsencode(h.folder) for h in homes() if not h.stale and h.owner != mine]


def _processes() -> set[str]:
    """Living processes by number and command; what has ended and waits for its parent is none."""
    found, others = set(), _of_others()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            said = words + (entry / "environ").read_bytes()
        except OSError:
            continue
        if any(folder in said for folder in others):
            continue
        command = words.replace(b"\0", b" ").decode()
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


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


GO = """#!/bin/sh
[ "$1" = env ] && { echo go1.99.0; exit; }
mkdir -p "$GOCACHE/objects" && chmod a-w "$GOCACHE/objects"
while [ "$1" != -o ]; do shift; done
echo built > "$2"
echo "dial tcp: no network" >&2
exit %d
"""


@pytest.fixture
def go(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Puts before all programs of the machine a Go whose builds end with this status."""
    for variable in ("KUBEBUILDER_ASSETS", "GOPATH", "GOCACHE"):
        monkeypatch.delenv(variable, raising=False)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def install(status: int) -> None:
        (programs / "go").write_text(GO % status)
        (programs / "go").chmod(0o755)

    return install
