"""Debian's prometheus and promtool for the tests: the machine's, else unpacked into the cache.

Nothing is installed: no service, no user, nothing outside of the cache's folder.
"""

import shutil
import tempfile
from pathlib import Path

from tools.cluster.errors import CommandFailed, DidNotCome, Unavailable
from tools.cluster.home import cache, lock_file
from tools.cluster.waiting import run

VERSION = "2.42"
"""Debian 12's. Its packaging revision is left open: security updates replace one another."""
DOWNLOAD_SECONDS = 300.0
CURE = "apt-get install prometheus"


def program(name: str) -> Path:
    """The path of `prometheus` or `promtool`. Raises Unavailable."""
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    unpacked = cache() / "tools" / f"prometheus-{VERSION}"
    if not (unpacked / name).exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with (unpacked.parent / ".prometheus.lock").open("w") as lock:
            lock_file(lock, "another process that unpacks prometheus", DOWNLOAD_SECONDS)
            if not (unpacked / name).exists():
                _unpack(unpacked)
    return unpacked / name


def _unpack(target: Path) -> None:
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            raise Unavailable(f"there is no prometheus, and no {needed} to get it: {CURE}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        try:
            _download(work)
            (package,) = work.glob("*.deb")
            run(["dpkg-deb", "--extract", str(package), str(work / "root")], seconds=120)
        except (CommandFailed, DidNotCome) as failed:
            raise Unavailable(f"there is no prometheus: {CURE}\n{failed}") from failed
        # The rename makes it whole or not at all.
        (work / "root" / "usr" / "bin").rename(target)


def _download(folder: Path) -> None:
    """apt-get checks the package's signature. Its lists may be old, or not be there yet."""
    download = ["env", f"--chdir={folder}", "apt-get", "download", f"prometheus={VERSION}.*"]
    try:
        run(download, seconds=DOWNLOAD_SECONDS)
    except CommandFailed:
        run(["apt-get", "update"], seconds=DOWNLOAD_SECONDS)
        run(download, seconds=DOWNLOAD_SECONDS)
