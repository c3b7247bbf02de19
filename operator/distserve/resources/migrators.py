"""The KV migrator of an instance: a native sidecar, or a process in the engine's container.

A device plugin gives a GPU to one container, and the migrator reads the engine's GPU memory: there
`distserve instance` runs both; a claim (DRA) is shared by two. Command line, ports and socket are
the same in either shape.
"""

from typing import Final

from distserve.api.accelerator import DEFAULT_KV_CACHE
from distserve.api.deployment import DistServeDeployment
from distserve.api.kv_transfer import MigratorPlacement
from distserve.api.quantities import format_bytes, parse_bytes
from distserve.api.strategies import Role
from distserve.resources import parts, processes
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings

MIGRATOR: Final = "kv-migrator"
MEMORY: Final = 128 << 20
CPU: Final = "100m"


def is_sidecar(deployment: DistServeDeployment, role: Role) -> bool:
    return processes.migrates(role) and _placed(deployment) == MigratorPlacement.SIDECAR


def is_in_engine_container(deployment: DistServeDeployment, role: Role) -> bool:
    return processes.migrates(role) and _placed(deployment) == MigratorPlacement.IN_ENGINE_CONTAINER


def _placed(deployment: DistServeDeployment) -> MigratorPlacement:
    return deployment.spec.migrator_placement


def migrator_ports() -> list[Object]:
    return [
        parts.container_port("migrator", processes.MIGRATOR_PORT),
        parts.container_port("metrics", processes.MIGRATOR_METRICS_PORT),
    ]


def instance_command(engine: list[str], migrator: list[str]) -> tuple[list[str], list[str]]:
    """Command and arguments of both in one container."""
    return ["distserve", "instance"], ["--", *engine, "--", *migrator]


def sidecar(deployment: DistServeDeployment, settings: RenderSettings) -> Object:
    """It starts before the engine and ends after it, so it needs no preStop.

    Its startup probe asks for the process alone: waiting for the engine would wait forever.
    """
    cache = deployment.spec.accelerator.kv_cache or DEFAULT_KV_CACHE
    pool = parse_bytes(cache) if deployment.spec.accelerator.type == "CPU" else 0
    return {
        "name": MIGRATOR,
        "image": deployment.spec.images.migrator or settings.images.migrator,
        "restartPolicy": "Always",
        "command": ["distserve", "migrator"],
        "args": processes.migrator_arguments(deployment),
        "env": parts.environment(),
        "ports": migrator_ports(),
        "resources": {
            "requests": {"cpu": CPU, "memory": format_bytes(MEMORY)},
            # The engine allocates the pool, yet its pages are the migrator's once that restarts.
            "limits": {"memory": format_bytes(4 * MEMORY + pool)},
        },
        "startupProbe": parts.http_probe("/healthz", "metrics", period_seconds=1, failures=120),
        "readinessProbe": parts.http_probe("/readyz", "metrics", period_seconds=1, failures=3),
        "livenessProbe": parts.http_probe(
            "/healthz", "metrics", period_seconds=10, failures=6, timeout_seconds=5
        ),
        "terminationMessagePolicy": parts.LAST_WORDS,
        "securityContext": parts.container_security(),
        "volumeMounts": [parts.key_mount(), parts.scratch_mount(), run_mount()],
    }


def run_mount() -> Object:
    """Where the engine finds its migrator's socket."""
    return {"name": "run", "mountPath": processes.RUN_FOLDER}
