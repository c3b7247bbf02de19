"""Rendered objects by kind and name, and releases of the chart in a real API server."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.chart.rendering import CHART, objects
from tools.cluster import binaries, fake_nodes
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import ClusterError, CommandFailed
from tools.cluster.fixtures import or_skip
from tools.cluster.progress import Progress

CRD = CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml"

Object = dict[str, Any]

# The process listens for everybody in its pod; here for this machine alone, under its name.
OPERATOR = """
import sys
from dataclasses import replace
from distserve.cli import main, operator
settings, webhook = operator._settings, operator._webhook

def named(args):
    found = webhook(args)
    if found is None:
        return None
    names = (*found.certificate.names, "localhost")
    return replace(found, certificate=replace(found.certificate, names=names))

operator._webhook = named
operator._settings = lambda args: replace(settings(args), host="127.0.0.1")
sys.exit(main.main())
"""
SECONDS = 60

_no_helm = pytest.StashKey[ClusterError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """helm may have to be built, which takes minutes once: outside of any test's time limit."""
    here = Path(__file__).parent
    if session.config.getoption("collectonly") or not any(
        here in item.path.parents for item in session.items
    ):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            binaries.client("helm", Progress())
        except ClusterError as failed:
            session.config.stash[_no_helm] = failed


@pytest.fixture(scope="session", autouse=True)
def helm(request: pytest.FixtureRequest) -> None:
    """Without it everything here is skipped, and in CI fails."""
    with or_skip("helm"):
        if _no_helm in request.config.stash:
            raise request.config.stash[_no_helm]


class Rendered:
    """The chart's objects with some values."""

    def __init__(self, values: Object | None = None, **options: Any) -> None:
        given = json.dumps([values or {}, options], sort_keys=True)
        self.objects: list[Object] = json.loads(_objects(given))

    def all(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        (found,) = [one for one in self.all(kind) if name in ("", one["metadata"]["name"])]
        return found

    @property
    def pod(self) -> Object:
        """The spec of the operator's pods."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (found,) = self.pod["containers"]
        return dict(found)

    @property
    def flags(self) -> dict[str, str]:
        args = self.container["args"]
        return dict(zip(args[::2], args[1::2], strict=True))


@functools.cache
def _objects(given: str) -> str:
    values, options = json.loads(given)
    return json.dumps(objects(values, **options))


@pytest.fixture
def render() -> type[Rendered]:
    return Rendered


@dataclass(frozen=True)
class Release:
    """The chart as helm installed it."""

    cluster: Cluster
    name: str
    namespace: str

    @property
    def operator(self) -> str:
        """Name of the Deployment, its ServiceAccount and its Lease."""
        return f"{self.name}-operator"

    @property
    def user(self) -> str:
        """The operator, as the API server knows it."""
        return f"system:serviceaccount:{self.namespace}:{self.operator}"

    def helm(self, verb: str, *args: str) -> str:
        return self.cluster.helm(verb, self.name, *args, f"--namespace={self.namespace}")

    def upgrade(self, chart: Path = CHART, *args: str) -> str:
        return self.helm("upgrade", str(chart), "--reuse-values", *args)

    def as_operator(self, *args: str, stdin: str | None = None) -> str:
        """kubectl with the operator's rights."""
        return self.cluster.kubectl(f"--as={self.user}", *args, stdin=stdin)


Install = Callable[..., contextlib.AbstractContextManager[Release]]


@pytest.fixture(scope="session")
def install(control_plane: Cluster) -> Install:
    """install(name, values): the chart in a namespace of its own, whose pods must be restricted.

    The session's CRD is taken over and given back.
    """

    @contextlib.contextmanager
    def release(name: str, values: Object) -> Iterator[Release]:
        with control_plane.namespace() as namespace:
            enforce = "pod-security.kubernetes.io/enforce=restricted"
            control_plane.kubectl("label", "namespace", namespace, enforce)
            found = Release(control_plane, name, namespace)
            given = control_plane.home.folder / f"{namespace}.yaml"
            tolerations = {"operator": {"tolerations": [fake_nodes.TOLERATION]}}
            given.write_text(yaml.safe_dump({**tolerations, **values}))
            flags = ("--take-ownership", "--force-conflicts", "--wait", "--timeout=60s")
            try:
                found.helm("install", str(CHART), f"--values={given}", *flags)
            except CommandFailed as failed:
                failed.add_note(control_plane.describe())
                raise
            try:
                yield found
            finally:
                found.helm("uninstall", "--ignore-not-found", "--wait", "--timeout=60s")
                control_plane.kubectl("delete", "clusterrole", f"{name}-gateway")

    return release


@pytest.fixture(scope="module")
def release(control_plane: Cluster, install: Install) -> Iterator[Release]:
    """For all namespaces, on two fake nodes."""
    nodes = control_plane.nodes(2, gpus=0, prefix="chart")
    try:
        with install("distserve", {}) as found:
            yield found
    finally:
        control_plane.apply(CRD, "default", "--force-conflicts")
        control_plane.remove_nodes(nodes)


@dataclass(frozen=True)
class Confined:
    """A release that keeps one namespace, and a namespace that is none of its business."""

    release: Release
    kept: str
    foreign: str


@pytest.fixture(scope="module")
def confined(release: Release, install: Install) -> Iterator[Confined]:
    """Beside the other release, and without nodes of its own."""
    cluster = release.cluster
    with cluster.namespace("kept") as kept, cluster.namespace("foreign") as foreign:
        values = {"namespaces": [kept], "crds": {"install": False}, "replicas": 1}
        with install("distserve-one", values) as found:
            yield Confined(found, kept, foreign)


@pytest.fixture(scope="module")
def hooked(release: Release, install: Install) -> Iterator[Confined]:
    """Of one namespace, and with a webhook for it. Its replica is one of a fake node: it never
    answers."""
    cluster = release.cluster
    with cluster.namespace("hooked") as kept, cluster.namespace("foreign") as foreign:
        values = {"namespaces": [kept], "crds": {"install": False}, "replicas": 1}
        hook = {"webhook": {"enabled": True, "timeoutSeconds": 1}}
        with install("distserve-hook", values | hook) as found:
            yield Confined(found, kept, foreign)


@dataclass(frozen=True)
class Operator:
    """A replica that runs on this machine."""

    process: "subprocess.Popen[bytes]"
    log: Path
    health: str
    metrics: str

    @property
    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:]

    def answers(self, address: str) -> bool:
        assert self.process.poll() is None, self.tail
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def start_operator(
    tmp_path: Path,
) -> Callable[..., contextlib.AbstractContextManager[Operator]]:
    """start(release, *flags)"""
    return functools.partial(_running, tmp_path)


@pytest.fixture
def free_port() -> int:
    (found,) = _free_ports(1)
    return found


@contextlib.contextmanager
def _running(folder: Path, release: Release, *flags: str) -> Iterator[Operator]:
    """As in its pod, besides ports and the way to the API server; the last of a flag counts."""
    cluster, where = release.cluster, f"--namespace={release.namespace}"
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", release.operator, where).strip()
    config["users"] = [{"name": "operator", "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"]["user"] = "operator"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    found = cluster.get("deployment", release.operator, release.namespace)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    ports = _free_ports(2)
    words = [word.replace("$(POD_NAME)", "a-pod") for word in container["args"]]
    words += [f"--health-port={ports[0]}", f"--metrics-port={ports[1]}", *flags]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", OPERATOR, "operator", *words, f"--kubeconfig={kubeconfig}"],
            stderr=file,
            env={**os.environ, **cluster.home.mark, "OMP_NUM_THREADS": "1"},
        )
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    one = Operator(process, log, addresses[0], f"{addresses[1]}/metrics")
    try:
        cluster.wait_for("readiness", lambda: one.answers(f"{one.health}/readyz"), SECONDS)
        assert one.answers(f"{one.health}/healthz")
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS)
        finally:
            process.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
