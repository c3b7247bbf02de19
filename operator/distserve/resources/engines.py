"""The pod of an instance: the engine's container and the KV migrator beside it."""

from typing import Final

from distserve.api import labels
from distserve.api.accelerator import DEFAULT_KV_CACHE, DEFAULT_RESOURCE_NAME
from distserve.api.deployment import DistServeDeployment
from distserve.api.quantities import format_bytes, parse_bytes
from distserve.api.strategies import Role
from distserve.api.topology import POD_SCHEDULERS, Scheduler
from distserve.resources import fabric, migrators, naming, parts, processes, sources
from distserve.resources.merge import merge_pod_template
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings

ENGINE: Final = "engine"

LOADING_SECONDS: Final = 3600
"""An engine that is not up by then is restarted: big models load for long from slow disks."""
ENGINE_MEMORY: Final = 1 << 30
"""Asked for besides the KV cache. Weights are not known here: podTemplate asks for more."""


def engine_template(
    deployment: DistServeDeployment, role: Role, revision: str, settings: RenderSettings
) -> Object:
    """Pod template of all instances of a role, with the user's podTemplate. Raises MergeError.

    `instances.stateful_set` adds the labels that tell them apart.
    """
    pod = _pod(deployment, role, revision, settings)
    fabric.add(pod, deployment, role, settings)
    return merge_pod_template(
        pod,
        deployment.spec.roles[role].pod_template,
        f"spec.{role}.podTemplate",
    )


def _pod(
    deployment: DistServeDeployment, role: Role, revision: str, settings: RenderSettings
) -> Object:
    spec: Object = {
        "serviceAccountName": naming.engine_name(deployment),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": parts.grace_seconds(deployment),
        "securityContext": parts.pod_security(),
        "containers": [_engine(deployment, role, revision, settings)],
        "volumes": _volumes(deployment, role),
    }
    before = sources.fetch_containers(deployment, revision, settings)
    if migrators.is_sidecar(deployment, role):
        before.append(migrators.sidecar(deployment, settings))
    if before:
        spec["initContainers"] = before
    scheduler = deployment.spec.topology.scheduler
    if scheduler is not None and scheduler in POD_SCHEDULERS:
        spec["schedulerName"] = POD_SCHEDULERS[scheduler]
    if scheduler == Scheduler.GANG_SCHEDULING:
        spec["schedulingGroup"] = {}  # Each unit has its own: `gangs`.
    if deployment.spec.topology.fabric_required and processes.migrates(role):
        spec["readinessGates"] = [{"conditionType": labels.FABRIC_VERIFIED}]
    return {
        "metadata": {
            "labels": naming.role_labels(deployment, role, revision),
            "annotations": {"kubectl.kubernetes.io/default-container": ENGINE},
        },
        "spec": spec,
    }


def _engine(
    deployment: DistServeDeployment, role: Role, revision: str, settings: RenderSettings
) -> Object:
    threads = str(deployment.spec.accelerator.cpus_per_rank or 1)
    mounts = [parts.key_mount(), parts.scratch_mount()]
    if processes.migrates(role):
        mounts.append(migrators.run_mount())
    mounts += sources.model_mounts(deployment.spec.model.source)
    environment = parts.instance_environment()
    if deployment.spec.pods(role) > 1:
        environment += parts.rank_environment()
    ports = [parts.container_port("engine", processes.ENGINE_PORT)]
    model = sources.model_argument(deployment, revision)
    command = ["distserve", "engine"]
    arguments = processes.engine_arguments(deployment, role, revision, model)
    if migrators.is_in_engine_container(deployment, role):
        ports += migrators.migrator_ports()
        command, arguments = migrators.instance_command(
            arguments, processes.migrator_arguments(deployment)
        )
    return {
        "name": ENGINE,
        "image": deployment.spec.images.engine or settings.images.engine,
        "command": command,
        "args": arguments,
        "env": environment + parts.environment(OMP_NUM_THREADS=threads),
        "ports": ports,
        "resources": _engine_resources(deployment, role),
        "startupProbe": parts.http_probe(
            "/healthz", "engine", period_seconds=1, failures=LOADING_SECONDS
        ),
        "readinessProbe": parts.http_probe("/readyz", "engine", period_seconds=1, failures=3),
        "livenessProbe": parts.http_probe(
            "/healthz", "engine", period_seconds=10, failures=6, timeout_seconds=5
        ),
        "lifecycle": {"preStop": {"exec": {"command": processes.drain_command(deployment)}}},
        "terminationMessagePolicy": parts.LAST_WORDS,
        "securityContext": parts.container_security(),
        "volumeMounts": mounts,
    }


def _engine_resources(deployment: DistServeDeployment, role: Role) -> Object:
    accelerator, ranks = deployment.spec.accelerator, deployment.spec.roles[role].parallelism.ranks
    if accelerator.type == "CPU":
        pools = parse_bytes(accelerator.kv_cache or DEFAULT_KV_CACHE) * ranks
        cpus = str((accelerator.cpus_per_rank or 1) * ranks)
        return {"requests": {"cpu": cpus, "memory": format_bytes(ENGINE_MEMORY + pools)}}
    each = ranks // deployment.spec.pods(role)
    requests = {"cpu": str(each), "memory": format_bytes(ENGINE_MEMORY)}
    if accelerator.device_class is not None:
        return {"requests": requests}
    accelerators = {accelerator.resource_name or DEFAULT_RESOURCE_NAME: str(each)}
    return {"requests": requests | accelerators, "limits": accelerators}


def _volumes(deployment: DistServeDeployment, role: Role) -> list[Object]:
    volumes = [parts.key_volume(deployment), parts.scratch_volume()]
    if processes.migrates(role):
        volumes.append({"name": "run", "emptyDir": {}})
    return volumes + sources.model_volumes(deployment)
