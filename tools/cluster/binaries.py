"""The programs of a cluster: from KUBEBUILDER_ASSETS or the cache, else built from Go modules.

A built program lies in a folder named after the hash of its module (go.mod, go.sum, sources), so
two checkouts share it exactly when they pin the same versions.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.errors import CommandFailed, Unavailable
from tools.cluster.home import cache, homes, lock_file
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

GO_MODULES = Path(__file__).parent / "gomod"
GO_NEEDED = (1, 26)
BUILD_LOCK_SECONDS = 3600.0


@dataclass(frozen=True)
class Program:
    """One program: the pinned module that holds it and its package there."""

    name: str
    module: str
    package: str

    @property
    def source(self) -> Path:
        return GO_MODULES / self.module

    @functools.cached_property
    def key(self) -> str:
        """Hash of everything that decides what the program becomes."""
        digest = hashlib.sha256(f"{platform.system()} {platform.machine()}".encode())
        for file in sorted(self.source.rglob("*")):
            if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
                digest.update(file.relative_to(self.source).as_posix().encode())
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def built(self) -> Path:
        """Where the program lies once built."""
        return cache() / "cluster" / f"{self.module}-{self.key}" / self.name


_KUBERNETES = "k8s.io/kubernetes/cmd"
PINNED, NEXT = "kubernetes", "kubernetes-next"
"""Modules of Kubernetes' programs; the second is of a later version."""
SERVERS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_COREOS = "github.com/prometheus-operator/prometheus-operator"
PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        *(
            Program(name, PINNED, f"{_KUBERNETES}/{name}")
            for name in (*SERVERS, "kubectl", "kubelet", "kube-proxy")
        ),
        # For `make soak`: what a cluster of `Release.NEXT` has, for gang scheduling.
        *(Program(f"{name}-next", NEXT, f"{_KUBERNETES}/{name}") for name in SERVERS),
        Program("etcd", "tools", "go.etcd.io/etcd/server/v3"),
        Program("kwok", "tools", "sigs.k8s.io/kwok/cmd/kwok"),
        Program("helm", "tools", "helm.sh/helm/v4/cmd/helm"),
        Program("coredns", "coredns", "."),
        Program("pause", "coredns", "./pause"),
        # A peer that benchmarks/control_plane.py measures beside ours; no test needs it.
        Program("lws", "lws", "sigs.k8s.io/lws/cmd"),
        # For `make soak`: what admits units by quota, with topology.scheduler Kueue.
        Program("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue"),
        # For `make soak`: what issues the webhook's certificate, with certificates: CertManager.
        Program("cert-manager", "cert-manager", "."),
        # For `make soak`: what reads PodMonitors and PrometheusRules, and scrapes by them. Debian's
        # Prometheus knows no Kubernetes.
        Program("prometheus-operator", "prometheus-operator", f"{_COREOS}/cmd/operator"),
        Program("prometheus", "prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
        # Not a cluster's: for tests/observability, Grafana's own types as a check of dashboards.
        Program("dashboard-check", "grafana", "."),
    )
}
CLIENTS = ("kubectl", "helm", "kwok")
CONTROL_PLANE = ("etcd", *SERVERS, *CLIENTS)
REAL_NODES = (*CONTROL_PLANE, "kubelet", "kube-proxy", "coredns", "pause")


def kubernetes_version(module: str = PINNED) -> str:
    """The version that the module names, without its v."""
    found = re.search(
        r"^(?:require )?\s*k8s\.io/kubernetes v(\S+)",
        (GO_MODULES / module / "go.mod").read_text(),
        re.MULTILINE,
    )
    assert found is not None, f"gomod/{module}/go.mod requires k8s.io/kubernetes"
    return found[1]


def find(name: str) -> Path | None:
    """A program that is there already; KUBEBUILDER_ASSETS goes before what was built."""
    asset = _asset(name)
    if asset is not None:
        return asset
    built = PROGRAMS[name].built
    return built if built.exists() else None


def ensure(names: Iterable[str], progress: Progress) -> dict[str, Path]:
    """Paths of these programs; builds those that are missing.

    Raises Unavailable when something has to be built and there is no Go to do it.
    """
    names = tuple(names)
    if not all(find(name) for name in names):
        _check_go()
        _build(names, progress)
    found = {name: find(name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def ensure_next(names: Iterable[str], progress: Progress) -> dict[str, Path]:
    """The same, with the servers of Kubernetes' later version under their own names."""
    later = {name: f"{name}-next" if name in SERVERS else name for name in names}
    found = ensure(later.values(), progress)
    return {name: found[program] for name, program in later.items()}


def ensure_clients(progress: Progress) -> None:
    """Builds those of `CLIENTS` that neither we have nor the machine."""
    ensure([name for name in CLIENTS if not (find(name) or shutil.which(name))], progress)


def client(name: str, progress: Progress) -> Path:
    """A program that talks to a cluster: ours, else the machine's, else built."""
    on_path = shutil.which(name)
    if find(name) is None and on_path is not None:
        return Path(on_path)
    return ensure([name], progress)[name]


def _asset(name: str) -> Path | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder or not (Path(folder) / name).exists():
        return None
    if (Path(folder) / "kube-apiserver").exists():
        _check_asset_version(Path(folder))
    return Path(folder) / name


@functools.cache
def _check_asset_version(folder: Path) -> None:
    """A controller manager may not be newer than its API server, and some programs are ours."""
    said = run([str(folder / "kube-apiserver"), "--version"]).strip()
    wanted = ".".join(kubernetes_version().split(".")[:2])
    if f" v{wanted}." not in f"{said}.":
        raise Unavailable(
            f"KUBEBUILDER_ASSETS={folder} holds {said}, the tests need {wanted}: "
            f"run `setup-envtest use {wanted}` or unset the variable"
        )


def _check_go() -> None:
    cure = (
        f"install Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer to build them once, "
        "or name binaries in KUBEBUILDER_ASSETS"
    )
    if shutil.which("go") is None:
        raise Unavailable(f"the cluster's programs are not built and there is no Go: {cure}")
    said = run(["go", "env", "GOVERSION"]).strip()
    found = re.match(r"go(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) < GO_NEEDED:
        raise Unavailable(f"the cluster's programs are not built and Go is {said}: {cure}")


def _build(names: tuple[str, ...], progress: Progress) -> None:
    work = cache() / "cluster" / "build"
    work.mkdir(parents=True, exist_ok=True)
    with (cache() / "cluster" / ".lock").open("w") as lock:
        lock_file(lock, "another process that builds the same programs", BUILD_LOCK_SECONDS)
        missing = [name for name in names if find(name) is None]
        try:
            for number, name in enumerate(missing, 1):
                with progress.step(f"[{number}/{len(missing)}] building {name}") as step:
                    _build_one(PROGRAMS[name], work, step.count)
            if all(home.stale for home in homes()):  # else one may run what is removed
                for name in missing:
                    _remove_other_versions(PROGRAMS[name])
        finally:
            # Some 10 GB of sources and objects, of no use once everything is built; where a build
            # failed nobody would look for them.
            run(["chmod", "-R", "u+w", str(work)], seconds=600)
            shutil.rmtree(work)


def _remove_other_versions(program: Program) -> None:
    """What the program's module was built into before it changed."""
    folder = program.built.parent
    for other in folder.parent.iterdir():
        # Modules' names begin alike: kubernetes, kubernetes-next.
        if re.fullmatch(rf"{program.module}-[0-9a-f]{{16}}", other.name) and other != folder:
            shutil.rmtree(other)


def _build_one(program: Program, work: Path, count: Callable[[int], None]) -> None:
    program.built.parent.mkdir(parents=True, exist_ok=True)
    flags = "-s -w"
    if program.module in (PINNED, NEXT):
        # Without it the API server takes itself for v0.0.0 and refuses its own API versions.
        version = kubernetes_version(program.module)
        variable = "k8s.io/component-base/version"
        major, minor, _ = version.split(".", 2)
        flags += f" -X {variable}.gitVersion=v{version}"
        flags += f" -X {variable}.gitMajor={major} -X {variable}.gitMinor={minor}"
    with tempfile.NamedTemporaryFile(dir=program.built.parent, delete=False) as made:
        target = Path(made.name)
    command = ["nice", "-n", "15", "go", "build", "-v", "-trimpath", "-buildvcs=false"]
    command += ["-mod=readonly", "-ldflags", flags, "-o", str(target), program.package]
    said = []
    try:
        with subprocess.Popen(
            command,
            cwd=program.source,
            env={
                # Who sets these two himself keeps his caches.
                "GOPATH": str(work / "path"),
                "GOCACHE": str(work / "objects"),
                **os.environ,
                "CGO_ENABLED": "0",
            },
            stderr=subprocess.PIPE,
            text=True,
        ) as building:
            assert building.stderr is not None
            for line in building.stderr:
                said.append(line)
                count(len(said))
        if building.returncode != 0:
            raise CommandFailed(command, building.returncode, "", "".join(said[-30:]))
        target.chmod(0o755)
        target.rename(program.built)
    finally:
        target.unlink(missing_ok=True)
