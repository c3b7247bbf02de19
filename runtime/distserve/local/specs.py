"""What of the rendered objects a runner needs, as nouns. Whatever it cannot run is refused here."""

from dataclasses import dataclass, field
from typing import Any

from distserve.api import labels
from distserve.local.errors import Refused

Object = dict[str, Any]


@dataclass(frozen=True)
class ProbeSpec:
    """A probe with the kubelet's defaults. Exactly one of path, tcp and command is given."""

    port: int = 0
    path: str = ""
    tcp: bool = False
    command: tuple[str, ...] = ()
    initial_delay_seconds: float = 0.0
    period_seconds: float = 10.0
    timeout_seconds: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1


@dataclass(frozen=True)
class ContainerSpec:
    name: str
    command: tuple[str, ...]
    environment: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()
    startup: ProbeSpec | None = None
    readiness: ProbeSpec | None = None
    liveness: ProbeSpec | None = None
    pre_stop: tuple[str, ...] = ()
    memory_request: str = "0"
    ports: dict[str, int] = field(default_factory=dict)
    """Those that have a name."""


@dataclass(frozen=True)
class PodSpec:
    name: str
    namespace: str
    labels: dict[str, str]
    containers: tuple[ContainerSpec, ...]
    sidecars: tuple[ContainerSpec, ...] = ()
    """Native ones: started before the containers, in order, and ended after them."""
    volumes: tuple[Object, ...] = ()
    grace_seconds: float = 30.0

    @property
    def is_gateway(self) -> bool:
        return self.labels.get(labels.APP_COMPONENT) == labels.COMPONENT_GATEWAY

    @property
    def role(self) -> str:
        """Empty for a gateway."""
        return self.labels.get(labels.ROLE, "")


@dataclass(frozen=True)
class Inventory:
    """Pods to run, and the configuration that they mount."""

    pods: tuple[PodSpec, ...]
    config_maps: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)


def read_inventory(objects: list[Object]) -> Inventory:
    """Pods as their controllers would make them. Raises Refused."""
    pods: list[PodSpec] = []
    for found in objects:
        if found["kind"] in ("StatefulSet", "Deployment"):
            pods.extend(_pod(found, index) for index in range(found["spec"]["replicas"]))
    return Inventory(
        tuple(pods),
        {o["metadata"]["name"]: o for o in objects if o["kind"] == "ConfigMap"},
        {o["metadata"]["name"]: o for o in objects if o["kind"] == "Secret"},
    )


def _pod(controller: Object, index: int) -> PodSpec:
    name = f"{controller['metadata']['name']}-{index}"
    template = controller["spec"]["template"]
    spec = template["spec"]
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") != "Always":
            raise Refused(
                f"pod {name}: init container {container['name']!r} runs to completion, which only "
                "a cluster does; remove it from podTemplate"
            )
    return PodSpec(
        name=name,
        namespace=controller["metadata"]["namespace"],
        labels=template["metadata"]["labels"],
        containers=tuple(_container(c) for c in spec["containers"]),
        sidecars=tuple(_container(c) for c in spec.get("initContainers", [])),
        volumes=tuple(spec.get("volumes", [])),
        grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
    )


def _container(container: Object) -> ContainerSpec:
    if not container.get("command"):
        raise Refused(
            f"container {container['name']!r} has no command: without its image there is nothing "
            "to run; give it one in podTemplate"
        )
    ports = {p["name"]: p["containerPort"] for p in container.get("ports", []) if "name" in p}
    hook = container.get("lifecycle", {}).get("preStop", {})
    return ContainerSpec(
        name=container["name"],
        command=(*container["command"], *container.get("args", [])),
        environment=tuple(container.get("env", [])),
        mounts=tuple(container.get("volumeMounts", [])),
        startup=_probe(container.get("startupProbe"), ports),
        readiness=_probe(container.get("readinessProbe"), ports),
        liveness=_probe(container.get("livenessProbe"), ports),
        # A hook that only sleeps waits for the cluster's endpoints; here they change at once.
        pre_stop=tuple(hook.get("exec", {}).get("command", [])),
        memory_request=container.get("resources", {}).get("requests", {}).get("memory", "0"),
        ports=ports,
    )


def _probe(probe: Object | None, ports: dict[str, int]) -> ProbeSpec | None:
    if probe is None:
        return None
    times: dict[str, Any] = {
        "initial_delay_seconds": float(probe.get("initialDelaySeconds", 0)),
        "period_seconds": float(probe.get("periodSeconds", 10)),
        "timeout_seconds": float(probe.get("timeoutSeconds", 1)),
        "failure_threshold": int(probe.get("failureThreshold", 3)),
        "success_threshold": int(probe.get("successThreshold", 1)),
    }
    if (http := probe.get("httpGet")) is not None:
        return ProbeSpec(port=_port(http["port"], ports), path=http.get("path", "/"), **times)
    if (tcp := probe.get("tcpSocket")) is not None:
        return ProbeSpec(port=_port(tcp["port"], ports), tcp=True, **times)
    if (command := probe.get("exec")) is not None:
        return ProbeSpec(command=tuple(command["command"]), **times)
    raise Refused(f"a probe by {', '.join(sorted(probe))} is not run here: use httpGet or exec")


def _port(port: int | str, ports: dict[str, int]) -> int:
    return port if isinstance(port, int) else ports[port]
