"""`spec.accelerator`: what a rank runs on."""

from enum import StrEnum

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.devices import DEVICE_CLASS
from distserve.api.quantities import ByteQuantity

DEFAULT_KV_CACHE = "512Mi"
DEFAULT_RESOURCE_NAME = "nvidia.com/gpu"
DEFAULT_PER_POD = 8
"""As many accelerators as most nodes have."""
MOST_CLAIMED = 16
"""Accelerators of one claim, a network device beside each: 32 are the most that a claim can hold
(resource.k8s.io/v1, AllocationResultsMaxSize)."""


class AcceleratorType(StrEnum):
    GPU = "GPU"
    CPU = "CPU"


class Accelerator(Model):
    """What a rank runs on."""

    rules = (
        Rule(
            "self.type == 'CPU' || (!has(self.cpusPerRank) && !has(self.kvCache))",
            "cpusPerRank and kvCache belong to type CPU: remove them, or set type: CPU",
            lambda self: self.type == "CPU" or (self.cpus_per_rank, self.kv_cache) == (None, None),
        ),
        Rule(
            "self.type == 'GPU' || !has(self.resourceName)",
            "resourceName belongs to type GPU: remove it, or set type: GPU",
            lambda self: self.type == "GPU" or self.resource_name is None,
        ),
        Rule(
            "self.type == 'GPU' || !has(self.perPod)",
            "perPod belongs to type GPU: remove it, or set type: GPU",
            lambda self: self.type == "GPU" or self.per_pod is None,
        ),
        Rule(
            "!has(self.deviceClass) || (self.type == 'GPU' && !has(self.resourceName))",
            "deviceClass takes the place of resourceName and belongs to type GPU: remove one of "
            "them, or set type: GPU",
            lambda self: (
                self.device_class is None or (self.type == "GPU" and self.resource_name is None)
            ),
        ),
        Rule(
            f"!has(self.deviceClass) || !has(self.perPod) || self.perPod <= {MOST_CLAIMED}",
            f"perPod is at most {MOST_CLAIMED} with deviceClass, since a claim holds 32 devices: "
            "lower it",
            lambda self: self.device_class is None or (self.per_pod or 0) <= MOST_CLAIMED,
        ),
    )

    type: AcceleratorType = Field(
        default=AcceleratorType.GPU,
        description="GPU, or CPU for small models and tests. Default: GPU.",
    )
    resource_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Extended resource that a rank asks for; only with type GPU. "
        f"Default: {DEFAULT_RESOURCE_NAME}.",
    )
    device_class: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        pattern=DEVICE_CLASS,
        description="DeviceClass of a DRA driver, such as gpu.nvidia.com: each rank claims one of "
        "its devices instead of an extended resource, and the migrator shares the claim; only with "
        "type GPU. Default: none.",
    )
    per_pod: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Most accelerators of one pod, as a node has them: an instance of more ranks "
        "has several pods, all alike, as few as can be; only with type GPU. Unit: ranks. "
        f"Default: {DEFAULT_PER_POD}.",
    )
    cpus_per_rank: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPUs that a rank asks for, and its threads; only with type CPU. Unit: CPUs. "
        "Default: 1.",
    )
    kv_cache: ByteQuantity | None = Field(
        default=None,
        description="Memory of a rank's KV cache; only with type CPU. Unit: bytes, as a quantity "
        f"such as 64Mi. Default: {DEFAULT_KV_CACHE}.",
    )

    @property
    def shared(self) -> bool:
        """Whether two containers of a pod can reach it."""
        return self.type == AcceleratorType.CPU or self.device_class is not None
