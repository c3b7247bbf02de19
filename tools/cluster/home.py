"""A cluster's folder and who owns it: what is needed to find and remove it after a crash.

    <cache>/distserve/clusters/.lock          held while a slot is claimed
    <cache>/distserve/clusters/<name>/        home.json and everything the cluster writes

A home without a living owner is stale. One that was made to be kept lasts until a reboot.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tools.cluster.addresses import CONTROL_PLANE_PORTS, Addresses, free_slots
from tools.cluster.errors import ClusterError, CommandFailed, DidNotCome, Unavailable
from tools.cluster.profiles import Profile, Provider
from tools.cluster.waiting import run, wait_for

LOCK_SECONDS = 120.0


def cache() -> Path:
    """Where everything outside the checkout lies."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "distserve"


def boot_identity() -> str:
    """A name for the time since the machine last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_identity(pid: int) -> str | None:
    """A name for a process that no later one gets, not even after a reboot; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name in parentheses may hold spaces: count fields from its end.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else f"{boot_identity()}:{pid}:{rest[18]}"


@dataclass(frozen=True)
class Home:
    """One cluster's folder. `owner` is the identity of a process, or of the boot if it is kept."""

    name: str
    provider: Provider
    profile: Profile
    slot: int
    owner: str

    @property
    def folder(self) -> Path:
        return clusters() / self.name

    @property
    def run_folder(self) -> Path:
        """Sockets: their paths must stay below 108 characters."""
        return Path("/run/distserve-cluster") / self.addresses.bridge

    @property
    def addresses(self) -> Addresses:
        return Addresses(self.slot)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def lent_nodes(self) -> Path:
        """There once the cluster, which is somebody else's, was given fake nodes."""
        return self.folder / "lent-nodes"

    @property
    def mark(self) -> dict[str, str]:
        """The entry of the environment that all processes of the cluster inherit."""
        return {"DISTSERVE_CLUSTER_HOME": str(self.folder)}

    @property
    def kept(self) -> bool:
        return ":" not in self.owner

    @property
    def stale(self) -> bool:
        now = boot_identity() if self.kept else process_identity(int(self.owner.split(":")[1]))
        return now != self.owner

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def remove(self) -> None:
        shutil.rmtree(self.run_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.run_folder.parent.rmdir()
        # The record goes last: a teardown that is cut short is found again.
        for entry in self.folder.iterdir():
            if entry.name != "home.json":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.rmtree(self.folder)


def clusters() -> Path:
    return cache() / "clusters"


def make_mount_point(path: Path) -> None:
    """Makes a folder outside the cache that nodes mount over, and remembers that it is ours."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    with _mount_points().open("a") as made:
        made.write(f"{path}\n")


def remove_mount_points() -> None:
    """Removes what `make_mount_point` made, once no cluster has nodes of its own. Needs
    `registry_lock`."""
    in_use = any(home.profile is Profile.REAL for home in homes())
    if not in_use and _mount_points().exists():
        for path in _mount_points().read_text().splitlines():
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        _mount_points().unlink()


def _mount_points() -> Path:
    return clusters() / ".mount-points"


def homes() -> list[Home]:
    """Every cluster of this user, living or left behind."""
    found = []
    for record in sorted(clusters().glob("*/home.json")):
        with contextlib.suppress(FileNotFoundError):
            said = json.loads(record.read_text())
            kinds = {"provider": Provider(said["provider"]), "profile": Profile(said["profile"])}
            found.append(Home(**said | kinds))
    return found


@contextlib.contextmanager
def registry_lock() -> Iterator[None]:
    """One process at a time claims or removes clusters."""
    clusters().mkdir(parents=True, exist_ok=True)
    with (clusters() / ".lock").open("w") as lock:
        lock_file(lock, "another process that claims or removes a cluster", LOCK_SECONDS)
        yield


def lock_file(file: TextIO, holder: str, seconds: float) -> None:
    """Takes the file's lock for as long as it is open; the death of its holder frees it."""

    def taken() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    wait_for(f"{holder} (lock {file.name})", taken, seconds)


def claim(name: str, provider: Provider, profile: Profile, *, keep: bool) -> Home:
    """Makes a home in the first free slot; the name must not be in use."""
    owner = boot_identity() if keep else process_identity(os.getpid())
    assert owner is not None, "this process lives"
    with registry_lock():
        if name in {home.name for home in homes()}:
            raise ClusterError(f"there is a cluster {name}: choose another name, or take it down")
        for addresses in free_slots((home.slot for home in homes()), _routes()):
            if not _in_use(addresses.loopback):
                home = Home(name, provider, profile, addresses.slot, owner)
                (home.folder / "logs").mkdir(parents=True, exist_ok=True)
                record = home.folder / "home.json"
                record.with_suffix(".new").write_text(json.dumps(asdict(home)))
                record.with_suffix(".new").rename(record)
                return home
    raise Unavailable(
        "every address range for test clusters is in use; "
        "see `python -m tools.cluster list` and free one with `down`"
    )


def _routes() -> list[str]:
    try:
        routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
    except (FileNotFoundError, CommandFailed, DidNotCome):
        return []  # Without `ip` no network is made either.
    return [route["dst"] for route in routes if route["dst"] != "default"]


def _in_use(address: str) -> bool:
    """Whether a cluster of another user holds this address."""
    for port in CONTROL_PLANE_PORTS.values():
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return True
    return False
