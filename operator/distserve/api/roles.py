"""`spec.prefill`, `spec.decode`, `spec.hybrid`: how many instances of which shape."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from distserve.api.base import Model

MAX_INSTANCES_PER_UNIT = 64


def _without_patch_directives(template: dict[str, Any]) -> dict[str, Any]:
    def look(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if str(key).startswith("$"):
                    raise ValueError(f"{key} is not supported: see the merge rules in the docs")
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(template)
    return template


PodTemplate = Annotated[
    dict[str, Any],
    Field(
        description="Parts of a PodTemplateSpec that are merged into the rendered one, see "
        "Merging podTemplate. Default: nothing.",
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
            "additionalProperties": None,
        },
    ),
    AfterValidator(_without_patch_directives),
]


class SchedulingPolicy(StrEnum):
    FCFS = "FCFS"
    """First come, first served."""


class Parallelism(Model):
    """How one copy of the model is spread over accelerators."""

    tensor: int = Field(
        default=1, ge=1, le=64, description="Tensor parallel degree. Unit: ranks. Default: 1."
    )
    pipeline: int = Field(
        default=1, ge=1, le=64, description="Pipeline parallel degree. Unit: ranks. Default: 1."
    )

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    def pods(self, most: int) -> int:
        """The fewest pods with at most so many ranks each, all alike: a pod has whole stages, or a
        stage has whole pods."""
        fits = (
            each
            for each in range(min(most, self.ranks), 0, -1)
            if self.ranks % each == 0 and (each % self.tensor == 0 or self.tensor % each == 0)
        )
        return self.ranks // next(fits)


class Scheduling(Model):
    """Bounds on what one step of an instance takes in."""

    policy: SchedulingPolicy = Field(
        default=SchedulingPolicy.FCFS,
        description="Order of waiting requests. FCFS: first come, first served. Default: FCFS.",
    )
    max_num_seqs: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Most sequences that run at once. Unit: sequences. Default: 256.",
    )
    max_num_batched_tokens: int = Field(
        default=8192,
        ge=16,
        le=4194304,
        description="Most tokens of one step. Unit: tokens. Default: 8192.",
    )


class RoleSpec(Model):
    """Instances of one role."""

    instances_per_unit: int = Field(
        default=1,
        ge=1,
        le=MAX_INSTANCES_PER_UNIT,
        description="Copies of the model with this role in each unit. Another number is made in "
        "all units at once. Unit: instances. Default: 1.",
    )
    parallelism: Parallelism = Field(
        default_factory=Parallelism, description="Ranks of each instance."
    )
    scheduling: Scheduling = Field(
        default_factory=Scheduling,
        description="Bounds on what one step takes in. Others start the engines anew.",
    )
    accelerator_memory_utilization: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^(0\.[0-9]{1,4}|1(\.0)?)$",
        description="Share of the accelerator's memory for weights, activations and KV cache, as "
        'a string. Only with accelerator.type GPU. Default: "0.9".',
    )
    pod_template: PodTemplate = Field(default_factory=dict)
