"""A running cluster as a test sees it, whoever provides it."""

import contextlib
import os
import secrets
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tools.cluster import binaries, fake_nodes
from tools.cluster.api import Api
from tools.cluster.errors import ClusterError, CommandFailed, Unavailable
from tools.cluster.home import Home, registry_lock
from tools.cluster.images import host_python_pod
from tools.cluster.processes import NO_PROXY, Processes
from tools.cluster.progress import Progress
from tools.cluster.teardown import tear_down
from tools.cluster.waiting import run, wait_for

CHECKOUT = Path(__file__).parents[2]
COMMAND_SECONDS = 60.0
READY_SECONDS = 120.0

Manifest = Mapping[str, Any]


@dataclass
class Cluster:
    """What all providers have in common; they differ in how an image gets to the nodes."""

    home: Home
    progress: Progress = field(default_factory=Progress)
    # By name; on the project's own cluster a test may stop and start each of them.
    processes: Processes = field(init=False)
    api: Api = field(init=False)
    # Put before a path of this machine, to name it as the nodes see it; None where they cannot.
    node_paths: str | None = None
    fake_node_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.processes = Processes(self.home)
        self.api = Api(self.home.kubeconfig)

    @property
    def kubeconfig(self) -> Path:
        """An administrator's."""
        return self.home.kubeconfig

    def kubectl(
        self, *args: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS
    ) -> str:
        """Runs kubectl and returns its stdout; raises CommandFailed with what it said."""
        return run(
            [str(self._program("kubectl")), *args], stdin=stdin, env=self.env, seconds=seconds
        )

    def helm(self, *args: str, seconds: float = COMMAND_SECONDS) -> str:
        """Runs helm, with caches of the cluster's own, and returns its stdout."""
        homes = {
            f"HELM_{kind}_HOME": str(self.home.folder / "helm")
            for kind in ("CACHE", "CONFIG", "DATA")
        }
        return run([str(self._program("helm")), *args], env={**self.env, **homes}, seconds=seconds)

    @property
    def env(self) -> dict[str, str]:
        """An environment in which a client talks to this cluster."""
        # Kinds that it was told of before, at this address, may have been another cluster's.
        known = {"KUBECACHEDIR": str(self.home.folder / "kube-cache")}
        return {**os.environ, **NO_PROXY, **known, "KUBECONFIG": str(self.kubeconfig)}

    def apply(
        self,
        manifest: Path | Manifest | Iterable[Manifest],
        namespace: str = "default",
        *options: str,
    ) -> str:
        """Server-side apply of a file, an object or several; returns kubectl's words."""
        if isinstance(manifest, Path):
            text = manifest.read_text()
        else:
            objects = [manifest] if isinstance(manifest, Mapping) else list(manifest)
            text = yaml.safe_dump_all([dict(one) for one in objects])
        flags = ("--server-side", "--field-manager=test", f"--namespace={namespace}")
        return self.kubectl("apply", *flags, *options, "--filename=-", stdin=text)

    def get(
        self, kind: str, name: str = "", namespace: str = "default", *, selector: str = ""
    ) -> Any:
        """One object, or all of a kind that the label selector matches."""
        return self.api.get(kind, name, namespace, selector)

    def wait_for(
        self, what: str, condition: Callable[[], bool], seconds: float = READY_SECONDS
    ) -> None:
        """Waits with a bound; when it runs out, the message ends in what the cluster shows."""
        wait_for(what, condition, seconds, explain=self.describe, poll_seconds=0.2)

    def wait_until_ready(
        self, what: str, namespace: str = "default", seconds: float = READY_SECONDS
    ) -> None:
        """Waits until e.g. `pod x y` or `pod --selector=app=x` exist and are Ready."""
        which = (*what.split(), f"--namespace={namespace}")
        expected = sum(not word.startswith("--") for word in what.split()[1:]) or 1

        def exist() -> bool:
            found = self.kubectl("get", *which, "--ignore-not-found", "--output=name")
            return len(found.splitlines()) >= expected

        self.wait_for(f"{what} to be there", exist, seconds)
        try:
            wait = ("wait", "--for=condition=Ready", f"--timeout={seconds:.0f}s")
            self.kubectl(*wait, *which, seconds=seconds + 10)
        except CommandFailed as failed:
            failed.add_note(self.describe())
            raise

    def describe(self) -> str:
        """What somebody who looks for the reason would ask first."""
        said = []
        for question in (
            ("get", "nodes"),
            ("get", "pods", "--all-namespaces", "--output=wide"),
            ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
        ):
            try:
                said.append("\n".join(self.kubectl(*question, seconds=10).splitlines()[-30:]))
            except ClusterError as failed:
                said.append(str(failed))
        return "\n\n".join(said)

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A namespace that no other test uses, once it has what every one has; it is deleted
        afterwards without waiting."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.api.create("namespace", {"metadata": {"name": name}})

        def complete() -> bool:
            found = self.get("serviceaccounts,configmaps", namespace=name)["items"]
            return {one["kind"] for one in found} == {"ServiceAccount", "ConfigMap"}

        try:
            self.wait_for(f"the namespace {name} to have its service account", complete)
            yield name
        finally:
            self.api.delete("namespace", name)

    def nodes(
        self,
        count: int,
        gpus: int = 8,
        labels: Callable[[int], Mapping[str, str]] = lambda number: {},
        *,
        prefix: str = "gpu",
    ) -> list[str]:
        """Adds fake nodes with this many GPUs each and returns their names, when they are Ready.

        Their pods run in name only, and must tolerate `fake_nodes.TAINT`.
        """
        self._start_fake_kubelet()
        names = [f"{prefix}-{number}" for number in range(count)]
        objects = [fake_nodes.node(name, gpus, labels(at)) for at, name in enumerate(names)]
        # Not applied: a node of that name that is there already is somebody else's.
        self.kubectl("create", "--filename=-", stdin=yaml.safe_dump_all(objects))
        self.fake_node_names += names

        def ready() -> bool:
            found = self.get("nodes", selector=fake_nodes.selector(names))["items"]
            return len(found) == count and all(map(fake_nodes.is_ready, found))

        self.wait_for(f"{count} fake nodes to be Ready", ready)
        return names

    def remove_nodes(self, names: Sequence[str]) -> None:
        """Removes fake nodes; the pods on them go with them."""
        if names:
            # One call for all of them; kubectl delete would make and await one for each.
            selector = urllib.parse.quote(fake_nodes.selector(names))
            self.kubectl("delete", f"--raw=/api/v1/nodes?labelSelector={selector}")
        self.fake_node_names = [name for name in self.fake_node_names if name not in names]

    def load_image(self, archive: Path) -> None:
        """Gives an OCI or Docker archive to every real node."""
        raise Unavailable(
            f"images cannot be loaded into a {self.home.provider} cluster from here: push "
            f"{archive.name} to a registry that its nodes pull from"
        )

    def python_pod(self, name: str, command: Sequence[str], **spec: Any) -> dict[str, Any]:
        """A Pod that runs this very Python, with the checkout's code, on a real node."""
        if self.node_paths is None:
            raise Unavailable("the nodes of this cluster cannot mount this machine's files")
        return host_python_pod(name, command, CHECKOUT, self.node_paths, **spec)

    def down(self) -> None:
        """Removes everything; the object is of no use afterwards. A second call does nothing."""
        self.api.close()
        with registry_lock():
            if self.home.folder.exists():
                tear_down(self.home, self.processes.reap)

    def _start_fake_kubelet(self) -> None:
        if "kwok" not in self.processes:
            addresses = self.home.addresses
            flags = fake_nodes.kwok_flags(
                self.kubeconfig, addresses.fake_pods, addresses.fake_node_address
            )
            self.processes.start("kwok", [str(self._program("kwok")), *flags])

    def _program(self, name: str) -> Path:
        return binaries.client(name, self.progress)
