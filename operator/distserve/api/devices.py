"""`spec.fabric`: what a unit's pods get of the fabric besides accelerators, and only when asked."""

from typing import Final

from pydantic import Field

from distserve.api.base import Model, Rule

MAX_RDMA_DEVICES: Final = 64
EXTENDED_RESOURCE: Final = (
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
DEVICE_CLASS: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
"""A DNS subdomain, as DeviceClasses are named."""


class Rdma(Model):
    """Network devices for remote memory access."""

    rules = (
        Rule(
            "has(self.resourceName) != has(self.deviceClass)",
            "exactly one of resourceName and deviceClass says who hands out the devices: add one, "
            "or remove one",
            lambda self: (self.resource_name is None) != (self.device_class is None),
        ),
        Rule(
            "!has(self.count) || has(self.resourceName)",
            "count belongs to resourceName; of deviceClass each rank gets one device: remove count",
            lambda self: self.count is None or self.resource_name is not None,
        ),
    )

    resource_name: str | None = Field(
        default=None,
        max_length=317,
        pattern=EXTENDED_RESOURCE,
        description="Extended resource of a device plugin, such as rdma/hca_shared_devices_a. "
        "Default: none.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=MAX_RDMA_DEVICES,
        description="Devices of resourceName that each container which moves data asks for: the "
        "engine's, and the migrator's where it is a sidecar. Unit: devices. Default: 1.",
    )
    device_class: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        pattern=DEVICE_CLASS,
        description="DeviceClass of a DRA driver; each rank gets one device under the PCIe root of "
        "its accelerator. Only with accelerator.deviceClass. Default: none.",
    )
    ipc_lock: bool = Field(
        default=False,
        description="Whether engine and migrator get the capability IPC_LOCK, which registers more "
        "memory than the node's limit on locked memory. They then run as user 0, since a "
        "capability that is added reaches no other user; only in namespaces of pod security level "
        "privileged. Default: false.",
    )


class Fabric(Model):
    """What a unit's pods get of the fabric besides accelerators."""

    rdma: Rdma | None = Field(
        default=None,
        description="Network devices for remote memory access. Default: none.",
    )
    compute_domain: bool = Field(
        default=False,
        description="Whether each unit gets a ComputeDomain of NVIDIA's DRA driver, by which GPUs "
        "of different nodes and pods reach each other's memory over NVLink (IMEX). Such a node "
        "holds one pod of one ComputeDomain. Only with accelerator.type GPU. Default: false.",
    )
    socket_interface: str | None = Field(
        default=None,
        min_length=1,
        max_length=15,
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$",
        description="Network interface in the pods, such as eth0, that NCCL, Gloo and UCX use for "
        "sockets. Only with accelerator.type GPU. Default: each chooses one itself.",
    )
