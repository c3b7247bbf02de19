"""`spec.planning` and `spec.workload`: who decides the numbers, and for what load."""

from enum import StrEnum

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.quantities import Quantity

MAX_TOKENS = 16777216
MAX_P90_PERCENT = 227
"""A lognormal distribution's 90th percentile is at most this share of its mean."""


class PlanningMode(StrEnum):
    AUTO = "Auto"
    """The planner's numbers, from SLO and workload."""
    MANUAL = "Manual"
    """The numbers of the spec as they are."""


class UnitsFrom(StrEnum):
    PLANNED = "Planned"
    """As many units as the plan has."""
    SPEC = "Spec"
    """`spec.units`, which /scale changes."""


class ConfigMapKey(Model):
    """One text of a ConfigMap in the deployment's namespace."""

    config_map_name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
        description="Name of the ConfigMap. Required.",
    )
    key: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key in its `data`. Required.",
    )

    def __str__(self) -> str:
        return f"{self.config_map_name}/{self.key}"


class Planning(Model):
    """Who decides the numbers: instancesPerUnit, parallelism and units."""

    rules = (
        Rule(
            "self.mode == 'Auto' || !has(self.units) || self.units == 'Spec'",
            "planning.units Planned belongs to mode Auto: remove it, or set mode: Auto",
            lambda self: self.mode == "Auto" or self.units in (None, "Spec"),
        ),
        Rule(
            "!has(self.hardwareProfile) || !has(self.hardwareProfileFrom)",
            "hardwareProfile and hardwareProfileFrom exclude each other: remove one",
            lambda self: None in (self.hardware_profile, self.hardware_profile_from),
        ),
    )

    mode: PlanningMode = Field(
        default=PlanningMode.MANUAL,
        description="Manual: the spec's numbers as they are. Auto: instancesPerUnit, parallelism "
        "and units come from a plan that meets slo under workload. Default: Manual.",
    )
    max_accelerators: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Most accelerators that a plan takes, assumed in nodes of 8 where the nodes "
        "are not known. Required where a plan is made without nodes. Unit: accelerators. "
        "Default: what the nodes have.",
    )
    hardware_profile: str | None = Field(
        default=None,
        max_length=63,
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        description="Name of the step times and the memory that a plan rests on. Default: "
        "a100-80g with accelerator.type GPU; none is shipped for CPU.",
    )
    hardware_profile_from: ConfigMapKey | None = Field(
        default=None,
        description="Step times and memory of one's own, as JSON in a ConfigMap, instead of "
        "hardwareProfile. The format is in docs/planner.md. Default: none.",
    )
    estimate: bool = Field(
        default=False,
        description="Whether a plan may rest on step times computed from data sheets where none "
        "were measured. A model that hardwareProfileFrom lacks is not estimated. Default: false.",
    )
    units: UnitsFrom | None = Field(
        default=None,
        description="Planned: as many units as the plan has, spec.units stays 1. Spec: "
        "spec.units. Default: Planned with mode Auto, Spec with mode Manual.",
    )

    @property
    def automatic(self) -> bool:
        return self.mode == PlanningMode.AUTO

    @property
    def plans_units(self) -> bool:
        return self.automatic and self.units != UnitsFrom.SPEC


class LengthSummary(Model):
    """Lengths of prompts or outputs, as a lognormal distribution."""

    rules = (
        Rule(
            f"self.p90 >= self.mean && self.p90 * 100 <= self.mean * {MAX_P90_PERCENT}",
            f"p90 must be between mean and {MAX_P90_PERCENT / 100} times it: no lognormal "
            "distribution has another, give `distserve plan --requests` for such lengths",
            lambda self: self.mean * 100 <= self.p90 * 100 <= self.mean * MAX_P90_PERCENT,
        ),
    )

    mean: int = Field(ge=1, le=MAX_TOKENS, description="Mean length. Unit: tokens. Required.")
    p90: int = Field(
        ge=1, le=MAX_TOKENS, description="90th percentile of the lengths. Unit: tokens. Required."
    )


class Lengths(Model):
    """How long requests are."""

    prompt_tokens: LengthSummary = Field(description="Prompts. Required in lengths.")
    output_tokens: LengthSummary = Field(description="Outputs. Required in lengths.")


class Workload(Model):
    """The load that the deployment is planned for."""

    rules = (
        Rule(
            "has(self.lengths) != has(self.trace)",
            "workload needs lengths or trace, and not both",
            lambda self: (self.lengths is None) != (self.trace is None),
        ),
    )

    requests_per_second: Quantity | None = Field(
        default=None,
        description='Rate that all units together serve, such as "4.5". Unit: requests per '
        "second. Default: the most that maxAccelerators can serve.",
    )
    lengths: Lengths | None = Field(
        default=None,
        description="How long requests are, in figures. Default: none, trace is required.",
    )
    trace: ConfigMapKey | None = Field(
        default=None,
        description="Requests that were seen, in a ConfigMap: csv with prompt_len,output_len, or "
        "JSON where the key ends in .json or .jsonl. Their lengths count; they arrive as a Poisson "
        "process of requestsPerSecond. Default: none, lengths is required.",
    )
