"""Operators as processes on a real API server, and a network between that can fall silent."""

import contextlib
import itertools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.home import Home
from tools.cluster.waiting import wait_for

FAKE_OPERATOR = Path(__file__).with_name("fake_operator.py")
LEASE = {"duration_seconds": 4, "renew_deadline_seconds": 2.5, "renew_seconds": 0.8}
WATCH = {"inactivity_seconds": 4.0, "connect_seconds": 2.0, "proof_seconds": 30.0}
SECONDS = 30.0


@pytest.fixture(scope="session")
def install_crd() -> Callable[[Cluster], Cluster]:
    """Makes a cluster serve our resource."""

    def install(cluster: Cluster) -> Cluster:
        cluster.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
        # `kubectl wait` fails where the CRD has no conditions yet.
        cluster.wait_for(
            "our kind to be served", lambda: "dsd" in cluster.kubectl("api-resources").split()
        )
        return cluster

    return install


@pytest.fixture(scope="session")
def crd(control_plane: Cluster, install_crd: Callable[[Cluster], Cluster]) -> Cluster:
    """The control plane that serves our resource."""
    return install_crd(control_plane)


@pytest.fixture
def namespace(crd: Cluster) -> Iterator[str]:
    with crd.namespace("control") as name:
        yield name


@pytest.fixture
def sample() -> Callable[..., dict[str, Any]]:
    """A valid deployment of this name."""

    def make(name: str, **spec: Any) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(
            (CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text()
        )
        found["metadata"]["name"] = name
        found["spec"] |= spec
        return found

    return make


@pytest.fixture
def deployment(sample: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """One whose pods fake nodes take."""

    def make(name: str = "opt", **spec: Any) -> dict[str, Any]:
        pod = {"podTemplate": {"spec": {"tolerations": [TOLERATION]}}}
        found = sample(name, **spec)
        found["spec"]["gateway"] = pod
        for role in ("prefill", "decode"):
            found["spec"][role] |= pod
        return found

    return make


@pytest.fixture
def decide() -> Any:
    """The deciding half of fake_operator.py, for an operator in the test's own process."""
    return runpy.run_path(str(FAKE_OPERATOR))["decide"]


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    return _free_ports


class Replica:
    """One operator process."""

    def __init__(self, home: Home, said: dict[str, Any], log: Path, command: list[str]) -> None:
        self.identity: str = said["lease"]["identity"]
        self._metrics = f"http://127.0.0.1:{said['metrics_port']}/metrics"
        self._health = f"http://127.0.0.1:{said['health_port']}"
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stderr=file,
                # With the cluster's mark: where this test is killed, it goes with the cluster.
                env={
                    **os.environ,
                    **home.mark,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONFAULTHANDLER": "1",
                },
            )

    def metrics(self) -> dict[str, float]:
        """All samples, by their names with labels."""
        with urllib.request.urlopen(self._metrics, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metric(self, sample: str) -> float:
        """The value of e.g. `distserve_operator_leader`."""
        found = self.metrics()
        assert sample in found, f"no {sample} at {self._metrics}"
        return found[sample]

    def probe(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self._health + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    @property
    def leads(self) -> bool:
        try:
            return self.metric("distserve_operator_leader") == 1
        except OSError:
            return False

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
        wait_for(f"{self.identity}: {what}", holds, seconds, explain=self.tail, poll_seconds=0.1)

    def wait_until_ready(self) -> None:
        ready = f"{self.identity}: ready"
        wait_for(
            ready, lambda: self.probe("/readyz") == 200, SECONDS, explain=self.abort,
            poll_seconds=0.1,
        )  # fmt: skip

    def abort(self) -> str:
        """Where each of its threads was: one that hangs as it starts has logged nothing."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(SECONDS)
        return self.log.read_text()

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-30:])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


Start = Callable[..., Replica]


@pytest.fixture
def start_operator(crd: Cluster, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """start(kubeconfig=..., watch={...}) -> Replica, watching this test's namespace only."""
    started: list[Replica] = []
    numbers = itertools.count()

    def start(kubeconfig: Path = crd.kubeconfig, **times: dict[str, Any]) -> Replica:
        identity = f"replica-{next(numbers)}"
        ports = _free_ports(2)
        said = {
            "kubeconfig": str(kubeconfig),
            "health_port": ports[0],
            "metrics_port": ports[1],
            "namespaces": [namespace],
            "lease": LEASE
            | times.get("lease", {})
            | {"namespace": namespace}
            | {"identity": identity},
            "watch": WATCH | times.get("watch", {}),
        }
        command = [sys.executable, str(FAKE_OPERATOR), json.dumps(said)]
        replica = Replica(crd.home, said, tmp_path / f"{identity}.log", command)
        started.append(replica)
        return replica

    yield start
    for one in started:
        one.end(signal.SIGKILL)


class Distserve:
    """Starts `distserve operator` itself; the caller's flags come last, and win."""

    def __init__(self, cluster: Cluster, namespace: str, logs: Path) -> None:
        self._cluster, self._namespace, self._logs = cluster, namespace, logs
        self.started: list[Replica] = []

    def __call__(
        self, *flags: str, program: tuple[str, ...] = ("-m", "distserve.cli.main")
    ) -> Replica:
        identity = f"operator-{len(self.started)}"
        health, metrics = _free_ports(2)
        said = {
            "lease": {"identity": identity},
            "health_port": health,
            "metrics_port": metrics,
        }
        command = [
            *(sys.executable, *program, "operator"),
            f"--kubeconfig={self._cluster.kubeconfig}",
            f"--namespaces={self._namespace}",
            f"--lease-namespace={self._namespace}",
            f"--identity={identity}",
            "--host=127.0.0.1",
            f"--health-port={health}",
            f"--metrics-port={metrics}",
            *flags,
        ]
        replica = Replica(self._cluster.home, said, self._logs / f"{identity}.log", command)
        self.started.append(replica)
        return replica

    def end(self) -> None:
        for one in self.started:
            one.end(signal.SIGKILL)
            print(one.tail())


@pytest.fixture
def start_distserve(crd: Cluster, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """start() -> Replica, watching this test's namespace only."""
    start = Distserve(crd, namespace, tmp_path)
    yield start
    start.end()


@pytest.fixture(scope="module")
def shared_namespace(crd: Cluster) -> Iterator[str]:
    """For the tests of one module, each with deployments of its own names."""
    with crd.namespace("control") as name:
        yield name


@pytest.fixture(scope="module")
def shared_operator(
    crd: Cluster, shared_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replica]:
    """`distserve operator` for the tests of one module."""
    start = Distserve(crd, shared_namespace, tmp_path_factory.mktemp("operator"))
    operator = start("--engine-check=off")
    operator.wait_until("leads", lambda: operator.leads)
    yield operator
    start.end()


class Network:
    """Forwards TCP. `fall_silent` leaves the connections of that moment open and dead; between
    `go_away` and `come_back` there are none, and new ones are refused."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._alive: list[threading.Event] = []
        self._sockets: list[socket.socket] = []
        self.address = (target[0], 0)
        self.come_back()

    def fall_silent(self) -> None:
        for one in self._alive:
            one.clear()
        self._alive = []

    def go_away(self) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets = []

    def come_back(self) -> None:
        self._listener = socket.create_server(self.address)
        self.address = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                alive = threading.Event()
                alive.set()
                self._alive.append(alive)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(*ends, alive), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, alive: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if alive.is_set():
                    sink.sendall(data)
            if alive.is_set():
                sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def network(crd: Cluster, tmp_path: Path) -> Iterator[tuple[Network, Path]]:
    """One between operator and API server, and the kubeconfig that goes through it."""
    config = yaml.safe_load(crd.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]
    host, _, port = server["server"].removeprefix("https://").rpartition(":")
    found = Network((host, int(port)))
    server["server"] = f"https://{host}:{found.address[1]}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    yield found, path
    found.go_away()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
