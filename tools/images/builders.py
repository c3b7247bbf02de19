"""Who builds: the first of docker, podman and buildah that works here and is not too old.

buildah needs no daemon and no registry; where it builds, the base is of our own making (base.py).
The machine's way to the package registries (pip's configuration, certificates) is lent to the
build as secrets: no layer holds it.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tools.cluster.errors import ClusterError, CommandFailed, DidNotCome
from tools.cluster.progress import Progress, Step
from tools.cluster.waiting import run
from tools.images.base import LocalBase, install_packages
from tools.images.context import Context

BUILD_SECONDS = 3600.0
EXPORT_SECONDS = 1200.0
ANSWER_SECONDS = 20.0
LOG_SECONDS = 60.0

_OLDEST = {"docker": (25, "{{.ServerVersion}}"), "podman": (4, "{{.Version.Version}}")}
"""The first that write OCI layouts, and where `info` has the version."""
_PIP_CONFIGURATIONS = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf")
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


class Builder(Protocol):
    @property
    def base(self) -> str:
        """Name of the base image; empty is the Dockerfile's own."""

    def build(self, context: Context, target: str, step: Step) -> None:
        """Builds a target and tags it with `context.image(target)`."""

    def export(self, image: str, layout: Path) -> None:
        """Writes an image as an OCI layout into an empty folder."""

    def close(self) -> None:
        """Leaves nothing mounted or running; layers stay for the next build."""


@dataclass(frozen=True)
class Engine:
    """docker or podman, whose daemon or storage is the user's own."""

    program: str
    base: str = ""

    def build(self, context: Context, target: str, step: Step) -> None:
        command = [self.program, "build", *build_flags(context, target, self.base)]
        if self.program == "docker":
            command += ["--provenance=false", "--progress=plain"]
        follow([*command, str(context.folder)], step, BUILD_SECONDS)

    def export(self, image: str, layout: Path) -> None:
        archive = layout.with_suffix(".tar")
        kind = ["--format=oci-archive"] if self.program == "podman" else []
        try:
            save = [self.program, "save", *kind, f"--output={archive}", image]
            run(save, seconds=EXPORT_SECONDS)
            with tarfile.open(archive) as tar:
                tar.extractall(layout, filter="data")
        finally:
            archive.unlink(missing_ok=True)

    def close(self) -> None:
        """The daemon or podman does that by itself."""


@dataclass(frozen=True)
class Buildah:
    """buildah with a storage of our own in `folder`, so that its layers are ours to remove."""

    folder: Path
    base: str

    def build(self, context: Context, target: str, step: Step) -> None:
        command = [*self._buildah("bud"), "--isolation=chroot", "--network=host", "--pull-never"]
        command += ["--format=oci", "--layers", *build_flags(context, target, self.base)]
        follow([*command, str(context.folder)], step, BUILD_SECONDS, self._environment)

    def export(self, image: str, layout: Path) -> None:
        self._run("push", "--quiet", image, f"oci:{layout}:latest")

    def close(self) -> None:
        # buildah 1.28 leaves a mounted container for each stage that another one copies from.
        self._run("rm", "--all")
        with contextlib.suppress(CommandFailed):  # It is not always mounted.
            run(["umount", str(self.folder / "storage" / "overlay")])

    def remove(self) -> None:
        """Removes the storage with all its layers."""
        self.close()
        shutil.rmtree(self.folder)

    def add_base(self, tree: Path) -> None:
        """Makes the base image of a file tree's tar, unless it is there."""
        with contextlib.suppress(CommandFailed):
            run([*self._buildah("inspect"), "--type=image", self.base], env=self._environment)
            return
        container = self._run("from", "scratch").strip()
        self._run("add", "--quiet", container, str(tree), "/")
        self._run("config", "--env=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
        self._run("commit", "--quiet", "--rm", container, self.base)

    def _run(self, *words: str) -> str:
        command = [*self._buildah(words[0]), *words[1:]]
        return run(command, env=self._environment, seconds=EXPORT_SECONDS)

    def _buildah(self, verb: str) -> list[str]:
        places = (f"--root={self.folder / 'storage'}", f"--runroot={self.folder / 'run'}")
        return ["buildah", *places, verb]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.folder / "tmp")}


def choose(folder: Path, packages_key: str, base: str, progress: Progress) -> Builder:
    """A builder that answers; `base` names a base image instead of the usual one.

    Raises Unavailable with what to install where there is none.
    """
    for program in _OLDEST:
        if _answers(program):
            return Engine(program, base)
    install_packages("buildah", "mmdebstrap")
    local = LocalBase(folder)
    buildah = Buildah(folder / f"layers-{packages_key}", base or local.name)
    (buildah.folder / "tmp").mkdir(parents=True, exist_ok=True)
    os.utime(buildah.folder)
    if not base:
        buildah.add_base(local.tree(progress))
    return buildah


def build_flags(context: Context, target: str, base: str) -> list[str]:
    """Flags that docker, podman and buildah have in common."""
    flags = [f"--target={target}", f"--tag={context.image(target)}"]
    flags += [f"--build-arg=VERSION={context.version}"]
    flags += [f"--build-arg=BASE={base}"] if base else []
    for name, path in machine_secrets().items():
        flags += [f"--secret=id={name},src={path}"]
    return flags


def machine_secrets() -> dict[str, Path]:
    """Files that say how this machine reaches a package registry, as far as it has them."""
    configurations = [os.environ.get("PIP_CONFIG_FILE"), *_PIP_CONFIGURATIONS]
    certificates = [*map(os.environ.get, _CERTIFICATES), "/etc/ssl/certs/ca-certificates.crt"]
    wanted = {"pip.conf": configurations, "ca.crt": certificates}
    found = {}
    for name, paths in wanted.items():
        existing = [path for one in paths if one and (path := Path(one).expanduser()).is_file()]
        if existing:
            found[name] = existing[0]
    return found


def _answers(program: str) -> bool:
    if shutil.which(program) is None:
        return False
    oldest, version = _OLDEST[program]
    try:
        said = run([program, "info", f"--format={version}"], seconds=ANSWER_SECONDS)
        if program == "docker":  # Without buildx it knows no --provenance.
            run([program, "buildx", "version"], seconds=ANSWER_SECONDS)
    except ClusterError:
        return False
    major = said.strip().partition(".")[0]
    return major.isdecimal() and int(major) >= oldest


def follow(
    command: Sequence[str], step: Step, seconds: float, environment: dict[str, str] | None = None
) -> None:
    """Runs a command that takes long and says what it is at.

    Raises CommandFailed with the end of its words, DidNotCome after `seconds`.
    """
    said: list[str] = []
    last = 0.0
    with _ended_after(command, seconds, environment) as (process, expired):
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if step.seconds - last > (0.2 if step.live else LOG_SECONDS) and "STEP" in line:
                last = step.seconds
                step.say(f"{line.strip()[:90]} ({step.seconds:.0f} s)")
    tail = "".join(said[-40:])
    if expired.is_set():
        raise DidNotCome(f"{' '.join(command)[:400]} had not ended after {seconds:g} s\n{tail}")
    if process.returncode != 0:
        raise CommandFailed(command, process.returncode, "", tail)


@contextlib.contextmanager
def _ended_after(
    command: Sequence[str], seconds: float, environment: dict[str, str] | None
) -> Iterator[tuple[subprocess.Popen[str], threading.Event]]:
    expired = threading.Event()
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(
            command,
            cwd=empty,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):

        def end() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield process, expired
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
