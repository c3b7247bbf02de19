"""`spec.kvTransfer`: how KV cache moves between instances."""

from enum import StrEnum

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.durations import Duration, parse_duration

LEASES_BELOW = "24h"
"""Migrators take no lease of a day or more."""


class Transport(StrEnum):
    AUTO = "Auto"
    SHARED_MEMORY = "SharedMemory"
    TCP = "TCP"


class MigratorPlacement(StrEnum):
    AUTO = "Auto"
    SIDECAR = "Sidecar"
    IN_ENGINE_CONTAINER = "InEngineContainer"


class KvTransfer(Model):
    """How KV cache moves between instances."""

    rules = (
        Rule(
            f"!has(self.lease) || duration(self.lease) < duration('{LEASES_BELOW}')",
            f"lease is not below {LEASES_BELOW}: lower it",
            lambda self: is_lease(parse_duration(self.lease)),
        ),
    )

    transport: Transport = Field(
        default=Transport.AUTO,
        description="Auto takes the fastest one that a pair of instances proves to have. "
        "SharedMemory works between processes of one machine (`distserve up`), TCP everywhere. "
        "Default: Auto.",
    )
    block_tokens: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Tokens in a block of KV cache. Unit: tokens. Default: 16.",
    )
    lease: Duration = Field(
        default="30s",
        description="How long a prefill instance keeps KV for a decode instance that is not "
        f"heard of; below {LEASES_BELOW}. Unit: a duration. Default: 30s.",
    )
    migrator_placement: MigratorPlacement = Field(
        default=MigratorPlacement.AUTO,
        description="Where the migrator runs. Sidecar: a container of its own beside the engine. "
        "InEngineContainer: a process beside it, since a device plugin gives a GPU to one "
        "container. Auto: Sidecar with accelerator.type CPU or accelerator.deviceClass, else "
        "InEngineContainer. Default: Auto.",
    )
    host_sharing: bool = Field(
        default=False,
        description="Whether instances on one node share memory through a folder of the node, so "
        "that KV moves between their pods by SharedMemory; only with accelerator.type CPU, and in "
        "namespaces of pod security level privileged. Default: false.",
    )


def is_lease(seconds: float) -> bool:
    """Whether migrators take it."""
    return 0 < seconds < parse_duration(LEASES_BELOW)
