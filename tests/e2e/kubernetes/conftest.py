"""DistServe installed as a user installs it, on two real nodes.

Operator, gateway and migrator run from the images that users get. The engine's image is 5 GB of
torch: its container runs this machine's virtual environment instead, mounted by podTemplate.
"""

import contextlib
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.images import HOST_PYTHON, host_python_paths, write_host_python
from tools.images.build import archives

SYSTEM = "distserve-system"
SAMPLE = CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml"
READY_SECONDS = 180.0
TOLD_SECONDS = 30.0

ASK = """
import json, sys
from openai import OpenAI
url, prompt, tokens, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
answers = []
for _ in range(times):
    stream = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=tokens, temperature=0, stream=True
    )
    chunks = [chunk.choices[0].text for chunk in stream if chunk.choices]
    answers.append({"text": "".join(chunks), "chunks": len(chunks)})
print(json.dumps(answers))
"""

READ = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
"""


@dataclass
class Installed:
    """The operator, from its chart."""

    cluster: Cluster
    kinds: list[str]
    """All that can be listed in a namespace."""

    def objects(self, namespace: str) -> set[str]:
        """Everything there, as kind/name; what Kubernetes itself puts there left out."""
        kinds = ",".join(kind for kind in self.kinds if not kind.startswith("events"))
        said = self.cluster.kubectl(
            "get", kinds, f"--namespace={namespace}", "--output=name", "--ignore-not-found"
        )
        return {line for line in said.split() if line}


@dataclass
class Place:
    """A namespace with the pod of a client."""

    installed: Installed
    namespace: str

    @property
    def cluster(self) -> Cluster:
        return self.installed.cluster

    def python(self, script: str, *args: str, seconds: float = 90.0) -> str:
        """Runs a script in the client's pod and returns its stdout."""
        where = ("exec", "client", f"--namespace={self.namespace}", "--")
        return self.cluster.kubectl(*where, sys.executable, "-c", script, *args, seconds=seconds)

    def read(self, url: str) -> str:
        """What a GET from within the cluster answers."""
        return self.python(READ, url)

    def metrics(self, pod: Any, port: int) -> dict[str, float]:
        """A pod's /metrics page as Prometheus would read it."""
        samples = {}
        page = self.read(f"http://{pod['status']['podIP']}:{port}/metrics")
        for line in page.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples


@dataclass
class Deployment:
    """One DistServeDeployment and the client that talks to it."""

    place: Place
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def cluster(self) -> Cluster:
        return self.place.cluster

    @property
    def namespace(self) -> str:
        return self.place.namespace

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    def apply(self, **spec: Any) -> None:
        """Changes what is named and applies the whole."""
        merge(self.document["spec"], spec)
        self.cluster.apply(self.document, self.namespace)

    def live(self) -> Any:
        return self.cluster.get("distservedeployment", self.name, self.namespace)

    def condition(self, kind: str) -> Any:
        found = self.live()
        status = found.get("status", {})
        current = status.get("observedGeneration") == found["metadata"]["generation"]
        known = status.get("conditions", []) if current else []
        return next((c for c in known if c["type"] == kind), {"status": "Unknown"})

    def wait_for(self, kind: str, status: str = "True", seconds: float = READY_SECONDS) -> Any:
        """Waits for a condition that speaks of the newest spec."""

        def holds() -> bool:
            return bool(self.condition(kind)["status"] == status)

        self.cluster.wait_for(f"{kind}={status} of {self.name}", holds, seconds)
        return self.condition(kind)

    def told(self, reason: str) -> list[Any]:
        """The events of its namespace for this reason."""
        events = self.cluster.get("events.events.k8s.io", namespace=self.namespace)["items"]
        return [event for event in events if event["reason"] == reason]

    def wait_until_told(self, reason: str, seconds: float = TOLD_SECONDS) -> list[Any]:
        """What is seen in the status is told in the moment after."""
        self.cluster.wait_for(f"an event {reason}", lambda: bool(self.told(reason)), seconds)
        return self.told(reason)

    def pods(self, **labels: str) -> list[Any]:
        wanted = {"distserve.io/deployment": self.name}
        wanted |= {f"distserve.io/{name}": value for name, value in labels.items()}
        selector = ",".join(f"{name}={value}" for name, value in wanted.items())
        return list(self.cluster.get("pods", namespace=self.namespace, selector=selector)["items"])

    def pod(self, **labels: str) -> Any:
        (found,) = self.pods(**labels)
        return found

    def gateways(self) -> list[Any]:
        return [p for p in self.pods() if "distserve.io/instance" not in p["metadata"]["labels"]]

    def ask(self, prompt: str, tokens: int = 24, times: int = 1) -> list[Any]:
        """Streamed completions through the Service's name, by the openai client."""
        url = str(self.live()["status"]["url"])
        return list(json.loads(self.place.python(ASK, url, prompt, str(tokens), str(times))))


def merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def run_on_this_machine(
    cluster: Cluster,
    node: str = "",
    *,
    env: Mapping[str, str] | None = None,
    fetch: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A podTemplate whose engine container runs this machine's Python; with the variables of
    `fetch` the container that downloads the model does, too."""
    assert cluster.node_paths is not None
    paths = host_python_paths(CHECKOUT)
    mounts = [
        {"name": f"host-{number}", "mountPath": str(path), "readOnly": True}
        for number, path in enumerate(paths)
    ]
    volumes = [
        {"name": f"host-{number}", "hostPath": {"path": f"{cluster.node_paths}{path}"}}
        for number, path in enumerate(paths)
    ]

    def container(name: str, variables: Mapping[str, str]) -> dict[str, Any]:
        given = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", **variables}
        return {
            "name": name,
            "imagePullPolicy": "Never",
            "env": [{"name": name, "value": value} for name, value in given.items()],
            "volumeMounts": mounts,
            # Both nodes are one small machine.
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
        }

    spec: dict[str, Any] = {"containers": [container("engine", env or {})], "volumes": volumes}
    if fetch is not None:
        spec["initContainers"] = [container("fetch-model", fetch)]
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"spec": spec}


@pytest.fixture(scope="session")
def installed(real_cluster: Cluster) -> Iterator[Installed]:
    """`helm install`, with the images built from this checkout."""
    for archive in archives().values():
        real_cluster.load_image(archive)
    real_cluster.kubectl("create", "namespace", SYSTEM)
    level = "pod-security.kubernetes.io/enforce=restricted"
    real_cluster.kubectl("label", "namespace", SYSTEM, level)
    real_cluster.helm(
        "install", "distserve", str(CHECKOUT / "charts" / "distserve"),
        "--namespace", SYSTEM, "--wait", "--timeout=120s", seconds=150,
    )  # fmt: skip
    said = real_cluster.kubectl(
        "api-resources", "--namespaced", "--verbs=list,delete", "--output=name"
    )
    yield Installed(real_cluster, said.split())
    with contextlib.suppress(Exception):
        real_cluster.helm("uninstall", "distserve", "--namespace", SYSTEM, "--wait", seconds=90)


@pytest.fixture(scope="module")
def place(installed: Installed) -> Iterator[Place]:
    cluster = installed.cluster
    with cluster.namespace("e2e") as namespace:
        cluster.apply(
            cluster.python_pod("client", ["-c", "import time; time.sleep(3600)"]), namespace
        )
        cluster.wait_until_ready("pod client", namespace)
        yield Place(installed, namespace)


New = Callable[..., Deployment]


@pytest.fixture(scope="module")
def new_deployment(place: Place) -> New:
    """new_deployment(): the sample, its prefill on one node and its decode on the other; not yet
    applied. `fetch` goes to `run_on_this_machine`."""

    def make(**options: Any) -> Deployment:
        document = yaml.safe_load(SAMPLE.read_text())
        document["spec"]["images"] = {"engine": HOST_PYTHON}
        for role, node in (("prefill", "node1"), ("decode", "node2")):
            template = run_on_this_machine(place.cluster, node, **options)
            document["spec"][role]["podTemplate"] = template
        return Deployment(place, document)

    return make


@pytest.fixture(scope="module")
def deployment(new_deployment: New) -> Deployment:
    return new_deployment()


@pytest.fixture(scope="module")
def other_image(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The engine's image under another name."""
    name = f"{HOST_PYTHON}.1"
    installed.cluster.load_image(write_host_python(tmp_path_factory.mktemp("image"), name))
    return name
