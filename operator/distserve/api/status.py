"""`.status`: what the operator observed. Everything in it can be observed again."""

from typing import Annotated

from pydantic import Field

from distserve.api.base import Model
from distserve.api.planning import PlanningMode


class StatusCondition(Model):
    """One condition, as in metav1.Condition."""

    type: str = Field(max_length=64, description="Name of the condition.")
    status: str = Field(pattern="^(True|False|Unknown)$", max_length=7, description="Whether.")
    reason: str = Field(max_length=128, description="CamelCase word for programs.")
    message: str = Field(max_length=32768, description="What to do about it.")
    last_transition_time: str = Field(
        description="When status last changed.", json_schema_extra={"format": "date-time"}
    )
    observed_generation: int = Field(default=0, ge=0, description="Generation it speaks of.")


class RoleStatus(Model):
    """Instances of one role."""

    name: str = Field(max_length=16, description="prefill, decode or hybrid.")
    desired: int = Field(ge=0, description="Instances that should be.")
    ready: int = Field(ge=0, description="Instances that are ready.")
    updated: int = Field(ge=0, description="Instances of the target revision.")


class DomainStatus(Model):
    """The fabric domain that holds a unit."""

    level: str = Field(max_length=32, description="Name of the topology level.")
    value: str = Field(max_length=253, description="Value of the level's node label.")


class FabricStatus(Model):
    """The slowest link of a unit, of those that were measured."""

    reader: str = Field(max_length=63, description="Pod that reads the KV cache.")
    source: str = Field(max_length=63, description="Pod from which it reads.")
    transport: str = Field(max_length=32, description="The one really used.")
    level: str = Field(
        default="", max_length=32, description="Tightest level of the topology that both share."
    )
    bandwidth: str = Field(
        max_length=32, description="Measured. Unit: bytes per second, as a quantity."
    )
    expected: str = Field(
        default="", max_length=32, description="The same, expected; absent where nothing is."
    )
    latency: str = Field(max_length=32, description="Measured. Unit: a duration.")


class UnitStatus(Model):
    """One unit: as many instances of each role as instancesPerUnit says."""

    name: str = Field(max_length=16, description="Its name in pods' names and labels.")
    revision: str = Field(default="", max_length=16, description="Revision of its pods.")
    domain: DomainStatus | None = Field(
        default=None, description="Where it lies; absent where levels are not asked for."
    )
    nodes: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=1024, description="Nodes of its pods, in their order."
    )
    ready: bool = Field(default=False, description="Whether all its instances are ready.")
    fingerprint: str = Field(
        default="",
        max_length=256,
        description="What its engines computed from model, types and KV layout: instances exchange "
        "KV only where it is equal. Several are joined by a comma, three at most.",
    )
    fabric: FabricStatus | None = Field(
        default=None, description="Its slowest link; absent until measured."
    )


class ProvisioningStatus(Model):
    """Attempts to have nodes added for a unit, or to get quota, that came to nothing."""

    unit: str = Field(max_length=16, description="Its name.")
    attempts: int = Field(ge=1, description="How many.")
    retry_time: str = Field(
        description="When the next one begins.", json_schema_extra={"format": "date-time"}
    )
    avoid: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list,
        max_length=16,
        description="Domains that had room for a part of it and did not grow: not tried again.",
    )
    lacked: str = Field(
        default="",
        max_length=1024,
        description="What its queue said, where quota was lacking (scheduler KAI) and no node.",
    )


class RefusalStatus(Model):
    """Domains with room in which the scheduler found no nodes for a unit's pods."""

    unit: str = Field(max_length=16, description="Its name.")
    attempts: int = Field(ge=1, description="How often it was taken back.")
    last_time: str = Field(
        description="When it was last.", json_schema_extra={"format": "date-time"}
    )
    domains: list[Annotated[str, Field(max_length=320)]] = Field(
        max_length=8,
        description="Where, the last one last: tried again when no other domain has room, after a "
        "pause that doubles each time.",
    )
    said: str = Field(default="", max_length=1024, description="The scheduler's words of the last.")
    inputs_hash: str = Field(
        default="",
        max_length=64,
        description="Hash of what the unit was made from: all this is forgotten when that changes.",
    )


class RepackingStatus(Model):
    """Moves of a unit with topology.repack WhenIdle."""

    unit: str = Field(max_length=16, description="Its name.")
    leaving: bool = Field(
        default=False, description="Whether it is being moved: left ends with where it is."
    )
    left: list[Annotated[str, Field(max_length=320)]] = Field(
        default_factory=list,
        max_length=16,
        description="Domains that it left for better ones, or sets of nodes inside of one: it is "
        "never moved back.",
    )


class RevisionStatus(Model):
    """Revisions in use."""

    current: str = Field(default="", max_length=16, description="The one that all units had last.")
    target: str = Field(default="", max_length=16, description="The one that units move to.")


class RolePlan(Model):
    """Instances of one role in a planned unit."""

    instances: int = Field(ge=1, description="Instances in each unit.")
    tensor: int = Field(ge=1, description="Tensor parallel degree of each. Unit: ranks.")
    pipeline: int = Field(ge=1, description="Pipeline parallel degree of each. Unit: ranks.")
    pods: int | None = Field(
        default=None, ge=2, description="Pods of each, where they are more than one."
    )


class UnitPlan(Model):
    """The roles of one planned unit."""

    prefill: RolePlan | None = Field(default=None, description="Prefill instances.")
    decode: RolePlan | None = Field(default=None, description="Decode instances.")
    hybrid: RolePlan | None = Field(default=None, description="Instances that do both.")


class PlanStatus(Model):
    """The numbers in use, where a plan decides them."""

    mode: PlanningMode = Field(description="Who decided.")
    inputs_hash: str = Field(max_length=64, description="Hash of all that the plan depends on.")
    unit: UnitPlan = Field(description="One unit.")
    units: int = Field(ge=0, description="Copies of it.")
    accelerators: int = Field(ge=0, description="Accelerators of all units.")
    goodput: str = Field(
        max_length=32,
        description="Highest rate that meets the SLO. Unit: requests per second per accelerator.",
    )
    hardware_profile: str = Field(
        # A profile of one's own is NAME/KEY of a ConfigMap, 253 characters each.
        max_length=512,
        description="Name of the step times that it rests on.",
    )
    estimated: bool = Field(
        description="Whether those were computed from data sheets and not measured."
    )


class Status(Model):
    """What is."""

    observed_generation: int = Field(default=0, ge=0, description="Generation that was acted on.")
    conditions: list[StatusCondition] = Field(
        default_factory=list,
        max_length=32,
        description="What is true of the deployment.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    roles: list[RoleStatus] = Field(
        default_factory=list,
        max_length=8,
        description="Instances by role.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    units: list[UnitStatus] = Field(
        default_factory=list,
        max_length=10000,
        description="Units that are there.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    provisioning: list[ProvisioningStatus] = Field(
        default_factory=list,
        max_length=10000,
        description="Units without a place, for which no nodes were added in time.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["unit"]},
    )
    refusals: list[RefusalStatus] = Field(
        default_factory=list,
        max_length=10000,
        description="Units that had a place in which their pods found no nodes.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["unit"]},
    )
    repacking: list[RepackingStatus] = Field(
        default_factory=list,
        max_length=10000,
        description="Units that were moved since they were idle.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["unit"]},
    )
    plan: PlanStatus | None = Field(
        default=None, description="The numbers in use with planning.mode Auto."
    )
    migrator_placement: str = Field(
        default="",
        max_length=32,
        description="Where the migrators run: Sidecar or InEngineContainer. Empty without them.",
    )
    revision: RevisionStatus = Field(
        default_factory=RevisionStatus, description="Revisions in use."
    )
    url: str = Field(default="", max_length=1024, description="Where clients in the cluster go.")
    replicas: int = Field(default=0, ge=0, description="Ready units.")
    selector: str = Field(
        default="", max_length=1024, description="Pods behind /scale: exactly one per unit."
    )
