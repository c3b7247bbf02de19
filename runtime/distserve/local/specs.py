"""What of the rendered objects a runner needs, as nouns. Whatever it cannot run is refused here."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from distserve.api import labels
from distserve.local.errors import Refused

Object = dict[str, Any]

_CONTAINER: Final = {
    "name", "image", "imagePullPolicy", "command", "args", "env", "ports", "resources",
    "resizePolicy", "lifecycle", "startupProbe", "readinessProbe", "livenessProbe",
    "restartPolicy", "securityContext", "volumeMounts", "stdin", "stdinOnce", "tty",
    "terminationMessagePath", "terminationMessagePolicy",
}  # fmt: skip
"""Fields that are read, or say nothing to a process: whatever else is set is refused."""
_MOUNT: Final = {
    "name", "mountPath", "subPath", "readOnly", "recursiveReadOnly", "mountPropagation",
}  # fmt: skip
_TIMES: Final = {
    "initialDelaySeconds": "initial_delay_seconds",
    "periodSeconds": "period_seconds",
    "timeoutSeconds": "timeout_seconds",
    "failureThreshold": "failure_threshold",
    "successThreshold": "success_threshold",
}
"""Of a probe: field -> attribute of ProbeSpec."""


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
            try:
                pods.extend(_pod(found, index) for index in range(found["spec"]["replicas"]))
            except KeyError as lacking:  # An API server would say which; here podTemplate is short.
                raise Refused(
                    f"{found['metadata']['name']}: a {lacking.args[0]} is lacking in its pods; "
                    "add it to podTemplate"
                ) from lacking
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
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    return PodSpec(
        name=name,
        namespace=controller["metadata"]["namespace"],
        labels=template["metadata"]["labels"],
        containers=tuple(_container(c, volumes) for c in spec["containers"]),
        sidecars=tuple(_container(c, volumes) for c in spec.get("initContainers", [])),
        volumes=tuple(spec.get("volumes", [])),
        grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
    )


def _container(container: Object, volumes: Collection[str]) -> ContainerSpec:
    """`volumes` are the names of its pod's."""
    where = f"container {container['name']!r}"
    if not container.get("command"):
        raise Refused(
            f"{where} has no command: without its image there is nothing "
            "to run; give it one in podTemplate"
        )
    _refuse_unread(container, _CONTAINER, where)
    ports = {p["name"]: p["containerPort"] for p in container.get("ports", []) if "name" in p}

    def probe(name: str) -> ProbeSpec | None:
        return _probe(container.get(name), ports, f"{where}: {name}")

    return ContainerSpec(
        name=container["name"],
        command=(*container["command"], *container.get("args", [])),
        environment=tuple(container.get("env", [])),
        mounts=_mounts(container.get("volumeMounts", []), volumes, where),
        startup=probe("startupProbe"),
        readiness=probe("readinessProbe"),
        liveness=probe("livenessProbe"),
        pre_stop=_pre_stop(container.get("lifecycle", {}), where),
        memory_request=str(container.get("resources", {}).get("requests", {}).get("memory", 0)),
        ports=ports,
    )


def _mounts(mounts: list[Object], volumes: Collection[str], where: str) -> tuple[Object, ...]:
    for mount in mounts:
        _refuse_unread(mount, _MOUNT, f"{where}: volumeMounts")
        if mount["name"] not in volumes:
            raise Refused(
                f"{where} mounts a volume {mount['name']!r} that its pod has not; "
                "add it to podTemplate.spec.volumes"
            )
    return tuple(mounts)


def _pre_stop(hooks: Object, where: str) -> tuple[str, ...]:
    """A hook that only sleeps waits for the cluster's endpoints; here they change at once."""
    _refuse_unread(hooks, {"preStop"}, f"{where}: lifecycle")
    hook = hooks.get("preStop", {})
    _refuse_unread(hook, {"exec", "sleep"}, f"{where}: preStop")
    return tuple(hook.get("exec", {}).get("command", []))


def _probe(probe: Object | None, ports: dict[str, int], where: str) -> ProbeSpec | None:
    if probe is None:
        return None
    _refuse_unread(probe, {"httpGet", "tcpSocket", "exec", *_TIMES}, where)
    times: dict[str, Any] = {ours: probe[name] for name, ours in _TIMES.items() if name in probe}
    if (http := probe.get("httpGet")) is not None:
        _refuse_unread(http, {"path", "port", "scheme"}, f"{where}: httpGet")
        if http.get("scheme", "HTTP") != "HTTP":
            raise Refused(f"{where}: scheme {http['scheme']} is not asked here; use HTTP or exec")
        port = _port(http["port"], ports, where)
        return ProbeSpec(port=port, path=http.get("path", "/"), **times)
    if (tcp := probe.get("tcpSocket")) is not None:
        _refuse_unread(tcp, {"port"}, f"{where}: tcpSocket")
        return ProbeSpec(port=_port(tcp["port"], ports, where), tcp=True, **times)
    if (command := probe.get("exec")) is not None:
        return ProbeSpec(command=tuple(command["command"]), **times)
    raise Refused(f"{where} says nothing to try: use httpGet, tcpSocket or exec")


def _port(port: int | str, ports: dict[str, int], where: str) -> int:
    if isinstance(port, int):
        return port
    if port not in ports:
        raise Refused(f"{where}: no port of the container is named {port!r}; name one, or a number")
    return ports[port]


def _refuse_unread(found: Object, known: Collection[str], where: str) -> None:
    """Raises Refused for what a cluster would heed and nobody does here."""
    if unread := sorted(key for key in found if found[key] and key not in known):
        raise Refused(
            f"{where}: {unread[0]} is heeded by a cluster only; remove it from podTemplate to run "
            "it here"
        )
