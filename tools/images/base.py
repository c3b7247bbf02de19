"""The base image where no registry can be reached: Debian's Python 3.11, made by mmdebstrap.

It has what the Dockerfile asks of BASE. The root file tree is kept as a tar in the cache, under a
name that says what it was made of; remove it to get newer packages.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.errors import Unavailable
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv", "tzdata")
DEBOOTSTRAP_SECONDS = 900.0
INSTALL_SECONDS = 600.0
_FLAGS = (
    "--mode=root",
    "--variant=minbase",
    f"--include={','.join(PACKAGES)}",
    # A builder makes its own devices, and these two are the machine's.
    "--skip=output/dev,output/mknod",
    '--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/etc/hostname',
)


@dataclass(frozen=True)
class LocalBase:
    """A root file tree in `folder`, made when it is first asked for."""

    folder: Path

    @property
    def key(self) -> str:
        return hashlib.sha256(" ".join((SUITE, *_FLAGS)).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What builders call it."""
        return f"localhost/distserve-base:{self.key}"

    def tree(self, progress: Progress) -> Path:
        """The tar of the tree."""
        made = self.folder / f"base-{self.key}.tar"
        if not made.exists():
            with progress.step(f"base image: Debian {SUITE} with Python"):
                partial = made.with_suffix(".new.tar")
                command = ["mmdebstrap", "--quiet", *_FLAGS, SUITE, str(partial)]
                run(command, seconds=DEBOOTSTRAP_SECONDS)
                partial.rename(made)
        return made


def install_packages(*programs: str) -> None:
    """Installs Debian's packages of these programs' names, where root and apt-get can.

    Raises Unavailable with the cure where they are missing and cannot be installed.
    """
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    cure = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        builders = "docker (25 or newer, with buildx), no podman (4 or newer)"
        raise Unavailable(f"no {builders} and no {' or '.join(missing)}: {cure} (as root)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        run(["apt-get", "--quiet", *command], env=environment, seconds=INSTALL_SECONDS)
