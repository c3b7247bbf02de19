"""A node's cgroup: where its pods live, and the sure way to find every process of theirs.

Both hierarchies are served: one tree (v2) and one tree per controller (v1, also hybrid).
"""

import contextlib
import os
from pathlib import Path

from tools.cluster.waiting import wait_for

ROOT = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 20.0


def _folders(name: str) -> list[Path]:
    return [folder for folder in (ROOT / name, *ROOT.glob(f"*/{name}")) if folder.is_dir()]


def make_cgroup(name: str) -> str:
    """Makes the node's root cgroup in every hierarchy and returns its name."""
    if (ROOT / "cgroup.controllers").exists():
        controllers = (ROOT / "cgroup.controllers").read_text().split()
        (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in controllers))
        (ROOT / name).mkdir(exist_ok=True)
        return name
    for hierarchy in ROOT.iterdir():
        # cpu,cpuacct are often links to one folder.
        if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink():
            (hierarchy / name).mkdir(exist_ok=True)
    for file in ("cpuset.cpus", "cpuset.mems"):
        # A new v1 cpuset is empty, and no process may enter it.
        if (ROOT / "cpuset" / name / file).exists():
            (ROOT / "cpuset" / name / file).write_text((ROOT / "cpuset" / file).read_text())
    return name


def processes_in(name: str) -> set[int]:
    """Every process in the cgroup or below it."""
    found: set[int] = set()
    for folder in _folders(name):
        # os.walk passes over what dying runtimes remove meanwhile.
        for path, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (Path(path) / "cgroup.procs").read_text().split())
    return found


def remove_cgroup(name: str) -> None:
    """Removes the cgroup and all below it; its processes must have been killed."""

    def removed() -> bool:
        for folder in _folders(name):
            for path, _, _ in os.walk(folder, topdown=False):
                # A killed process is counted until its memory is returned.
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        return not _folders(name)

    wait_for(f"the removal of cgroup {name}", removed, REMOVE_SECONDS)
