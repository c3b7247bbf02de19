"""A node's cgroup: where its pods live, and the sure way to find every process of theirs.

Both hierarchies are served: one tree (v2) and one tree per controller (v1, also hybrid).
"""

import contextlib
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


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
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in file.read_text().split())
    return found


def remove_cgroup(name: str) -> None:
    """Removes the cgroup and all below it; it must be without processes."""
    for folder in _folders(name):
        below = [path for path in folder.rglob("*") if path.is_dir()]
        for path in sorted(below, key=lambda path: -len(path.parts)):
            path.rmdir()
        folder.rmdir()
