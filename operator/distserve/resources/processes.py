"""Command lines, ports and paths of the processes: the rendering side of docs/processes.md."""

import json
from typing import Final

from distserve.api.accelerator import DEFAULT_KV_CACHE
from distserve.api.deployment import DEFAULT_MEMORY_UTILIZATION, DistServeDeployment
from distserve.api.strategies import Role
from distserve.resources.naming import gateway_name, headless_service_name

ENGINE_PORT: Final = 8100
MIGRATOR_PORT: Final = 8101
MIGRATOR_METRICS_PORT: Final = 8102
GATEWAY_PORT: Final = 8000

RUN_FOLDER: Final = "/run/distserve"
KEY_FOLDER: Final = "/etc/distserve/key"
KEY_FILE: Final = f"{KEY_FOLDER}/key"
MIGRATOR_SOCKET: Final = f"{RUN_FOLDER}/migrator.sock"
PEER_SOCKET: Final = f"{RUN_FOLDER}/peer.sock"
HOST_FOLDER: Final = "/run/distserve-host"
"""Of the node, with kvTransfer.hostSharing."""


def migrates(role: Role) -> bool:
    """Whether instances of a role exchange KV with others, and so have a migrator."""
    return role is not Role.HYBRID


def engine_arguments(
    deployment: DistServeDeployment, role: Role, revision: str, model: str
) -> list[str]:
    """The same for all instances of a role: what differs comes from the pod's own fields."""
    spec, section = deployment.spec, deployment.spec.roles[role]
    flags = {
        "model": model,
        "served-name": spec.model.id,
        "role": role.value,
        "strategy": spec.strategy.name.value,
        "strategy-options": json.dumps(spec.strategy.options, sort_keys=True),
        "instance": "$(POD_NAME)",
        "unit": "$(POD_UNIT)",
        "domain": "$(POD_DOMAIN)",
        "revision": revision,
        "host": "$(POD_IP)",
        "port": str(ENGINE_PORT),
        "dtype": spec.model.dtype.value,
        "block-tokens": str(spec.kv_transfer.block_tokens),
        "max-num-seqs": str(section.scheduling.max_num_seqs),
        "max-num-batched-tokens": str(section.scheduling.max_num_batched_tokens),
        "lease": spec.kv_transfer.lease,
        "key-file": KEY_FILE,
    }
    if spec.model.max_model_len is not None:
        flags["max-model-len"] = str(spec.model.max_model_len)
    if migrates(role):
        flags["migrator-socket"] = MIGRATOR_SOCKET
    if spec.accelerator.type == "CPU":
        flags["kv-cache"] = spec.accelerator.kv_cache or DEFAULT_KV_CACHE
    else:
        flags["accelerator-memory-utilization"] = (
            section.accelerator_memory_utilization or DEFAULT_MEMORY_UTILIZATION
        )
    if section.parallelism.ranks > 1:
        flags["tensor"] = str(section.parallelism.tensor)
        flags["pipeline"] = str(section.parallelism.pipeline)
    if (pods := spec.pods(role)) > 1:
        service = f"{headless_service_name(deployment)}.{deployment.namespace}.svc"
        flags |= {"pods": str(pods), "pod-index": "$(POD_INDEX)"}
        flags["first-pod"] = f"$(POD_INSTANCE)-0.{service}"
    return _arguments(flags)


def migrator_arguments(deployment: DistServeDeployment) -> list[str]:
    return _arguments(
        {
            "instance": "$(POD_NAME)",
            "host": "$(POD_IP)",
            "port": str(MIGRATOR_PORT),
            "metrics-port": str(MIGRATOR_METRICS_PORT),
            "socket": MIGRATOR_SOCKET,
            "peer-socket": _peer_socket(deployment),
            "transport": deployment.spec.kv_transfer.transport.value,
            "key-file": KEY_FILE,
        }
    )


def _peer_socket(deployment: DistServeDeployment) -> str:
    """A migrator tells its peers this path: in a shared folder it is its own."""
    if deployment.spec.kv_transfer.host_sharing:
        return f"{HOST_FOLDER}/$(POD_NAME).sock"
    return PEER_SOCKET


def gateway_arguments(deployment: DistServeDeployment) -> list[str]:
    """The same for any number of gateways: each finds the others by itself."""
    spec, gateway = deployment.spec, deployment.spec.gateway
    services = f"{headless_service_name(deployment)},{gateway_name(deployment)}"
    flags = {
        "host": "$(POD_IP)",
        "port": str(GATEWAY_PORT),
        "model": spec.model.id,
        "strategy": spec.strategy.name.value,
        "discovery": f"endpointslices:{deployment.namespace}/{services}",
        "key-file": KEY_FILE,
        "routing-policy": gateway.routing.policy.value,
        "min-remote-prefill-tokens": str(gateway.routing.min_remote_prefill_tokens),
        "max-waiting-requests": str(gateway.max_waiting_requests),
        "request-timeout": gateway.request_timeout,
        "drain-deadline": spec.rollout.drain_deadline,
    }
    if spec.slo is not None:
        flags["slo-ttft"] = spec.slo.ttft
        flags["slo-tpot"] = spec.slo.tpot
        flags["attainment-percent"] = str(spec.slo.attainment_percent)
    return _arguments(flags)


def drain_command(deployment: DistServeDeployment) -> list[str]:
    """Of a preStop hook, where the kubelet expands no `$(POD_IP)`: hence the shell."""
    deadline = deployment.spec.rollout.drain_deadline
    return [
        "sh",
        "-c",
        f'exec distserve drain --url "http://$POD_IP:{ENGINE_PORT}" --key-file {KEY_FILE}'
        f" --drain-deadline {deadline}",
    ]


def _arguments(flags: dict[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]
