"""DistServeDeployment: the resource that users write. CRD and reference are generated from here."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from distserve.api.accelerator import DEFAULT_PER_POD, Accelerator, AcceleratorType
from distserve.api.base import Model, Rule
from distserve.api.devices import Fabric
from distserve.api.durations import Duration
from distserve.api.fabric import RATED, tightest
from distserve.api.gateway import GatewaySpec
from distserve.api.kv_transfer import KvTransfer, MigratorPlacement, Transport
from distserve.api.model import ModelSpec
from distserve.api.operations import Disruption, Observability, Restart, Rollout
from distserve.api.planning import Planning, Workload
from distserve.api.roles import RoleSpec
from distserve.api.status import Status
from distserve.api.strategies import STRATEGIES, Role, StrategyName, StrategySpec
from distserve.api.topology import Topology

MAX_NAME = 30
MAX_INSTANCES = 4096
"""Of all units: each step towards a spec looks at every one of them."""
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DEFAULT_MEMORY_UTILIZATION = "0.9"


class Slo(Model):
    """What clients are promised. The gateway counts which requests got it."""

    ttft: Duration = Field(
        description="Longest time from a request's arrival to its first token. Unit: a duration "
        "such as 250ms. Required in slo."
    )
    tpot: Duration = Field(
        description="Longest mean time between the tokens after it. Unit: a duration such as "
        "100ms. Required in slo."
    )
    attainment_percent: int = Field(
        default=90,
        ge=1,
        le=100,
        description="Share of requests that should meet both. Unit: percent. Default: 90.",
    )


class Images(Model):
    """Container images. Default of each: the one that the renderer was set up with."""

    engine: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Image of the engines."
    )
    migrator: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Image of the KV migrators."
    )
    gateway: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Image of the gateways."
    )


class NetworkPolicySpec(Model):
    """Who may connect to whom."""

    enabled: bool = Field(
        default=True,
        description="Whether NetworkPolicies are made: engines are reached by the gateways, the "
        "operator and one another only. Default: true.",
    )


def _section_rules() -> Iterator[Rule]:
    for name, kind in STRATEGIES.items():
        for role in Role:
            yield (_needs if role in kind.roles else _leaves_out)(name, role)


def _needs(name: StrategyName, role: Role) -> Rule:
    return Rule(
        f"self.strategy.name != '{name}' || has(self.{role})",
        f"strategy {name} needs the section {role}: add `{role}: {{}}`",
        lambda spec: spec.strategy.name != name or role in spec.sections,
    )


def _leaves_out(name: StrategyName, role: Role) -> Rule:
    return Rule(
        f"self.strategy.name != '{name}' || !has(self.{role})",
        f"strategy {name} has no use for the section {role}: remove {role}",
        lambda spec: spec.strategy.name != name or role not in spec.sections,
    )


def _without_gpu_settings(spec: "Spec") -> bool:
    return spec.accelerator.type == "GPU" or all(
        section.accelerator_memory_utilization is None for section in spec.roles.values()
    )


def _leaves_numbers_to_the_plan(spec: "Spec") -> bool:
    return not spec.planning.automatic or all(
        section.instances_per_unit == section.parallelism.ranks == 1
        for section in spec.roles.values()
    )


def _fabric_is_known(spec: "Spec") -> bool:
    topology = spec.topology
    return not topology.fabric_required or (
        topology.pack_within is not None
        and spec.expected_bandwidth([topology.pack_within]) is not None
    )


class Spec(Model):
    """What is wanted."""

    rules = (
        *_section_rules(),
        Rule(
            "self.units * (" + " + ".join(
                f"(has(self.{r}) ? self.{r}.instancesPerUnit : 0)" for r in Role
            ) + f") <= {MAX_INSTANCES}",
            f"all units together have more than {MAX_INSTANCES} instances: lower units or "
            "instancesPerUnit, or write several deployments",
            lambda spec: spec.instances <= MAX_INSTANCES,
        ),
        Rule(
            "self.accelerator.type == 'GPU' || !(" + " || ".join(
                f"(has(self.{r}) && has(self.{r}.acceleratorMemoryUtilization))" for r in Role
            ) + ")",
            "acceleratorMemoryUtilization belongs to accelerator.type GPU: with type CPU set "
            "accelerator.kvCache instead",
            _without_gpu_settings,
        ),
        Rule(
            "self.strategy.name == 'Disaggregated' || !has(self.gateway)"
            " || !has(self.gateway.routing) || !has(self.gateway.routing.minRemotePrefillTokens)"
            " || self.gateway.routing.minRemotePrefillTokens == 0",
            "gateway.routing.minRemotePrefillTokens belongs to strategy Disaggregated: remove it",
            lambda spec: spec.strategy.name == "Disaggregated"
            or spec.gateway.routing.min_remote_prefill_tokens == 0,
        ),
        Rule(
            "self.accelerator.type == 'CPU' || has(self.accelerator.deviceClass)"
            " || !has(self.kvTransfer) || !has(self.kvTransfer.migratorPlacement)"
            " || self.kvTransfer.migratorPlacement != 'Sidecar'",
            "a migrator as sidecar cannot reach the engine's GPU: remove "
            "kvTransfer.migratorPlacement, or set accelerator.deviceClass or accelerator.type: CPU",
            lambda spec: spec.accelerator.shared
            or spec.kv_transfer.migrator_placement != MigratorPlacement.SIDECAR,
        ),
        Rule(
            "!has(self.images) || !has(self.images.migrator)"
            " || ((self.accelerator.type == 'CPU' || has(self.accelerator.deviceClass))"
            " && (!has(self.kvTransfer) || !has(self.kvTransfer.migratorPlacement)"
            " || self.kvTransfer.migratorPlacement != 'InEngineContainer'))",
            "images.migrator is that of a sidecar, and here the migrator runs in the engine's "
            "container: remove it",
            lambda spec: spec.images.migrator is None
            or spec.migrator_placement == MigratorPlacement.SIDECAR,
        ),
        Rule(
            "self.accelerator.type == 'GPU' || !has(self.fabric) || (!has(self.fabric.rdma)"
            " && !has(self.fabric.socketInterface)"
            " && (!has(self.fabric.computeDomain) || !self.fabric.computeDomain))",
            "fabric is for accelerators that use it: remove it, or set accelerator.type: GPU",
            lambda spec: spec.accelerator.type == "GPU" or spec.fabric == Fabric(),
        ),
        Rule(
            "has(self.accelerator.deviceClass) || !has(self.fabric) || !has(self.fabric.rdma)"
            " || !has(self.fabric.rdma.deviceClass)",
            "fabric.rdma.deviceClass pairs each device with a claimed accelerator: set "
            "accelerator.deviceClass, or give fabric.rdma.resourceName",
            lambda spec: spec.accelerator.device_class is not None
            or spec.fabric.rdma is None
            or spec.fabric.rdma.device_class is None,
        ),
        Rule(
            "!has(self.kvTransfer) || !has(self.kvTransfer.hostSharing)"
            " || !self.kvTransfer.hostSharing || (self.accelerator.type == 'CPU'"
            " && (!has(self.kvTransfer.transport) || self.kvTransfer.transport != 'TCP'))",
            "kvTransfer.hostSharing is for SharedMemory between engines with accelerator.type CPU: "
            "remove it, or set that type and transport Auto or SharedMemory",
            lambda spec: not spec.kv_transfer.host_sharing
            or (spec.accelerator.type == "CPU" and spec.kv_transfer.transport != Transport.TCP),
        ),
        Rule(
            "self.planning.mode != 'Auto' || (has(self.slo) && has(self.workload))",
            "planning.mode Auto needs slo and workload: add them, or set mode: Manual and give "
            "instancesPerUnit, parallelism and units",
            lambda spec: not spec.planning.automatic or None not in (spec.slo, spec.workload),
        ),
        Rule(
            "self.planning.mode != 'Auto' || self.units == 1"
            " || (has(self.planning.units) && self.planning.units == 'Spec')",
            "units come from the plan: leave units at 1, or set planning.units: Spec",
            lambda spec: not spec.planning.plans_units or spec.units == 1,
        ),
        Rule(
            "self.planning.mode != 'Auto' || (" + " && ".join(
                f"(!has(self.{r}) || (self.{r}.instancesPerUnit == 1"
                f" && self.{r}.parallelism.tensor == 1 && self.{r}.parallelism.pipeline == 1))"
                for r in Role
            ) + ")",
            "instancesPerUnit and parallelism come from the plan in planning.mode Auto: remove "
            "them, or set mode: Manual",
            _leaves_numbers_to_the_plan,
        ),
        Rule(
            "!has(self.topology) || !has(self.topology.fabricRequired)"
            " || !self.topology.fabricRequired || self.strategy.name == 'Disaggregated'",
            "topology.fabricRequired is about links between prefill and decode instances: remove "
            "it, or use strategy Disaggregated",
            lambda spec: not spec.topology.fabric_required or spec.strategy.name == "Disaggregated",
        ),
        Rule(
            "!has(self.topology) || !has(self.topology.fabricRequired)"
            " || !self.topology.fabricRequired || (has(self.topology.packWithin)"
            " && ((has(self.topology.expectedBandwidth)"
            " && self.topology.packWithin in self.topology.expectedBandwidth)"
            f" || (self.accelerator.type == 'GPU' && self.topology.packWithin in {list(RATED)})))",
            "topology.fabricRequired needs to know what to measure: set topology.packWithin and "
            "its level's topology.expectedBandwidth",
            _fabric_is_known,
        ),
    )  # fmt: skip

    model: ModelSpec = Field(description="What is served. Required.")
    accelerator: Accelerator = Field(
        default_factory=Accelerator, description="What a rank runs on."
    )
    strategy: StrategySpec = Field(
        default_factory=StrategySpec, description="How requests are scheduled over instances."
    )
    slo: Slo | None = Field(
        default=None,
        description="What clients are promised. Another one replaces the gateways, which count. "
        "Default: nothing is counted.",
    )
    workload: Workload | None = Field(
        default=None,
        description="The load to plan for; required by planning.mode Auto. Default: none.",
    )
    planning: Planning = Field(default_factory=Planning, description="Who decides the numbers.")
    units: int = Field(
        default=1,
        ge=0,
        le=10000,
        description="Copies of (all instancesPerUnit of all roles together), with at most "
        f"{MAX_INSTANCES} instances in all. The number that "
        "/scale changes. Unit: units. Default: 1.",
    )
    prefill: RoleSpec | None = Field(
        default=None, description="Prefill instances; required by Disaggregated."
    )
    decode: RoleSpec | None = Field(
        default=None, description="Decode instances; required by Disaggregated."
    )
    hybrid: RoleSpec | None = Field(
        default=None,
        description="Instances that do both; required by Colocated and ChunkedPrefill.",
    )
    kv_transfer: KvTransfer = Field(
        default_factory=KvTransfer, description="How KV cache moves between instances."
    )
    gateway: GatewaySpec = Field(default_factory=GatewaySpec, description="The OpenAI endpoint.")
    topology: Topology = Field(
        default_factory=Topology, description="How near a unit's pods must be to one another."
    )
    fabric: Fabric = Field(
        default_factory=Fabric,
        description="What a unit's pods get of the fabric besides accelerators.",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How units are replaced.")
    disruption: Disruption = Field(
        default_factory=Disruption, description="What voluntary disruptions may take."
    )
    restart: Restart = Field(
        default_factory=Restart, description="When pods that keep failing are given up."
    )
    network_policy: NetworkPolicySpec = Field(
        default_factory=NetworkPolicySpec, description="Who may connect to whom."
    )
    observability: Observability = Field(
        default_factory=Observability, description="Objects for the Prometheus operator."
    )
    images: Images = Field(default_factory=Images, description="Container images.")

    @property
    def roles(self) -> dict[Role, RoleSpec]:
        """The sections that are there, in the order prefill, decode, hybrid."""
        found = {role: getattr(self, role.value) for role in Role}
        return {role: section for role, section in found.items() if section is not None}

    @property
    def instances(self) -> int:
        """Of all units."""
        return self.units * sum(section.instances_per_unit for section in self.roles.values())

    @property
    def migrator_placement(self) -> MigratorPlacement:
        """Never Auto: what Auto stands for here."""
        asked = self.kv_transfer.migrator_placement
        if asked != MigratorPlacement.AUTO:
            return asked
        if self.accelerator.shared:
            return MigratorPlacement.SIDECAR
        return MigratorPlacement.IN_ENGINE_CONTAINER

    def pods(self, role: Role) -> int:
        """Of each instance."""
        parallelism = self.roles[role].parallelism
        if self.accelerator.type == AcceleratorType.CPU:
            return 1
        return parallelism.pods(self.accelerator.per_pod or DEFAULT_PER_POD)

    def expected_bandwidth(self, shared: Iterable[str]) -> tuple[str, int] | None:
        """What a pair should reach that shares these levels (tightest first), and of which level
        that is. Unit: bytes per second."""
        rated = self.accelerator.type == AcceleratorType.GPU
        return tightest(shared, self.topology.expected_bandwidth, rated)

    @property
    def sections(self) -> set[Role]:
        return set(self.roles)


class Metadata(Model):
    """The part of ObjectMeta that rendering uses; the rest is the API server's."""

    name: str = Field(
        max_length=MAX_NAME,
        pattern=NAME_PATTERN,
        description="DNS label that starts with a letter, at most 30 characters.",
    )
    namespace: str = Field(default="default", max_length=63, description="Default: default.")
    labels: dict[str, str] = Field(default_factory=dict, description="The user's own.")
    annotations: dict[str, str] = Field(default_factory=dict, description="The user's own.")
    uid: str = Field(default="", description="Set by the API server.")


class DistServeDeployment(Model):
    """An LLM service: instances of a model, their scheduling, and an OpenAI gateway."""

    api_version: Literal["distserve.io/v1alpha1"] = Field(
        default="distserve.io/v1alpha1", description="distserve.io/v1alpha1"
    )
    kind: Literal["DistServeDeployment"] = Field(
        default="DistServeDeployment", description="DistServeDeployment"
    )
    metadata: Metadata = Field(description="Name, namespace, labels and annotations.")
    spec: Spec = Field(description="What is wanted.")
    status: Status | None = Field(default=None, description="What is. Written by the operator.")

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace


def from_document(document: dict[str, Any]) -> DistServeDeployment:
    """What the API server serves, whose metadata has more than rendering needs.

    Raises pydantic.ValidationError.
    """
    metadata = document.get("metadata") or {}
    known = {k: v for k, v in metadata.items() if k in Metadata.model_fields}
    return DistServeDeployment.model_validate({**document, "metadata": known})
