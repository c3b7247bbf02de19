"""`spec.topology`: which nodes are near one another, and how near a unit's pods must be."""

from enum import StrEnum
from typing import Final

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.durations import Duration, parse_duration
from distserve.api.fabric import NODE
from distserve.api.quantities import ByteQuantity

MAX_LEVELS: Final = 8
DEFAULT_RELAX_AFTER: Final = "5m"
LONGEST_GANG_TIMEOUT: Final = "24h"
"""Pods that wait hold what a part of their unit has."""
SHORTEST_RESERVE_AFTER: Final = "1s"
"""Everybody waits before nodes are kept free of others."""
DEFAULT_PROVISION_TIMEOUT: Final = "15m"
DEFAULT_REPACK_IDLE_AFTER: Final = "5m"
"""As a HorizontalPodAutoscaler waits before it takes something down."""
ZONE: Final = "topology.kubernetes.io/zone"


class Enforcement(StrEnum):
    REQUIRED = "Required"
    """A unit waits until one domain has room for it."""
    PREFERRED = "Preferred"
    """After each relaxAfter the next wider level will do."""


class WhenNoFit(StrEnum):
    WAIT = "Wait"
    """A unit waits until there is room."""
    PROVISION = "Provision"
    """Its pods are made all the same, so that an autoscaler adds nodes for them."""


class Scheduler(StrEnum):
    KUEUE = "Kueue"
    """A LocalQueue of Kueue admits each unit whole, before it is placed."""
    VOLCANO = "Volcano"
    """A Queue of Volcano lets each unit in whole, before it is placed; Volcano binds its pods."""
    KAI = "KAI"
    """KAI binds each unit whole once it is placed, by the quota of its Queue."""
    GANG_SCHEDULING = "GangScheduling"
    """Nobody admits it: Kubernetes' own scheduler binds the pods of a placed unit all or none."""


POD_SCHEDULERS: Final[dict[Scheduler, str]] = {
    Scheduler.VOLCANO: "volcano",
    Scheduler.KAI: "kai-scheduler",
}
"""`schedulerName` of the engines' pods, where it is not Kubernetes' own that binds them."""


class Repack(StrEnum):
    NEVER = "Never"
    """A unit stays where it is, unless the annotation distserve.io/repack asks."""
    WHEN_IDLE = "WhenIdle"
    """A unit whose engines had no request for repackIdleAfter goes to a better domain."""


class Preset(StrEnum):
    NVIDIA = "NVIDIA"
    """NVIDIA's GPU feature discovery."""
    AWS = "AWS"
    GKE = "GKE"
    COREWEAVE = "CoreWeave"
    TOPOGRAPH = "Topograph"


PRESETS: Final[dict[Preset, dict[str, str]]] = {
    Preset.NVIDIA: {"nvlink": "nvidia.com/gpu.clique", "zone": ZONE},
    Preset.AWS: {
        "nvlink": "topology.k8s.aws/ultraserver-id",
        "leaf": "topology.k8s.aws/network-node-layer-3",
        "spine": "topology.k8s.aws/network-node-layer-2",
        "core": "topology.k8s.aws/network-node-layer-1",
        "zone": ZONE,
    },
    Preset.GKE: {
        "leaf": "cloud.google.com/gce-topology-subblock",
        "spine": "cloud.google.com/gce-topology-block",
        "zone": ZONE,
    },
    Preset.COREWEAVE: {"nvlink": "ds.coreweave.com/nvlink.domain", "zone": ZONE},
    Preset.TOPOGRAPH: {
        "nvlink": "accelerator.topograph.run/domain",
        "leaf": "fabric.topograph.run/tier-0",
        "spine": "fabric.topograph.run/tier-1",
        "zone": ZONE,
    },
}
"""Level -> node label, tightest first, as each of them labels nodes."""


class Level(Model):
    """Nodes that share a value of a label."""

    name: str = Field(
        min_length=1,
        max_length=32,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        description="What the level is called, such as nvlink. Required.",
    )
    node_label: str = Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        description="Label of the nodes; those that share its value are one domain, a node "
        "without it is one by itself. Required.",
    )


def _known(topology: "Topology") -> bool:
    names = [level.name for level in topology.resolved_levels]
    return topology.pack_within is None or topology.pack_within in names


def _levels_of_preset(preset: Preset) -> Rule:
    names = list(PRESETS[preset])
    return Rule(
        f"!has(self.preset) || self.preset != '{preset}' || !has(self.packWithin)"
        f" || self.packWithin in {names}",
        f"preset {preset} has the levels {', '.join(names)}: packWithin must be one of them",
        lambda self: self.preset != preset or _known(self),
    )


def _expectations_known(topology: "Topology") -> bool:
    names = {NODE, *(level.name for level in topology.resolved_levels)}
    return topology.expected_bandwidth.keys() <= names


def _expectations_of_preset(preset: Preset) -> Rule:
    names = [NODE, *PRESETS[preset]]
    return Rule(
        f"!has(self.preset) || self.preset != '{preset}' || !has(self.expectedBandwidth)"
        f" || self.expectedBandwidth.all(one, one in {names})",
        f"preset {preset} has the levels {', '.join(names)}: expectedBandwidth names others",
        lambda self: self.preset != preset or _expectations_known(self),
    )


class Topology(Model):
    """Which nodes are near one another, and how near a unit's pods must be."""

    rules = (
        Rule(
            "!has(self.levels) || self.levels.all(one,"
            " self.levels.exists_one(other, other.name == one.name))",
            "two levels have one name: name each level once",
            lambda self: len({level.name for level in self.levels}) == len(self.levels),
        ),
        Rule(
            "!has(self.preset) || !has(self.levels) || self.levels.size() == 0",
            "preset brings its own levels: remove levels, or preset",
            lambda self: self.preset is None or not self.levels,
        ),
        Rule(
            "!has(self.packWithin) || has(self.preset)"
            " || (has(self.levels) && self.levels.exists(one, one.name == self.packWithin))",
            "packWithin names no level: take the name of one of levels, or add it there",
            lambda self: self.preset is not None or _known(self),
        ),
        *(_levels_of_preset(preset) for preset in PRESETS),
        Rule(
            "!has(self.expectedBandwidth) || has(self.preset)"
            f" || self.expectedBandwidth.all(one, one == '{NODE}'"
            " || (has(self.levels) && self.levels.exists(level, level.name == one)))",
            f"expectedBandwidth names no level: take the names of levels, or {NODE} for pairs on "
            "one node",
            lambda self: self.preset is not None or _expectations_known(self),
        ),
        *(_expectations_of_preset(preset) for preset in PRESETS),
        Rule(
            "!has(self.enforcement) || self.enforcement == 'Required' || has(self.packWithin)",
            "enforcement Preferred says how packWithin is meant: add packWithin, or remove it",
            lambda self: self.enforcement == Enforcement.REQUIRED or self.pack_within is not None,
        ),
        Rule(
            "!has(self.relaxAfter) || self.enforcement == 'Preferred'",
            "relaxAfter belongs to enforcement Preferred: remove it, or set enforcement: Preferred",
            lambda self: self.relax_after is None or self.enforcement == Enforcement.PREFERRED,
        ),
        Rule(
            "!has(self.provisionTimeout) || self.whenNoFit == 'Provision'",
            "provisionTimeout belongs to whenNoFit Provision: remove it, or set whenNoFit: "
            "Provision",
            lambda self: self.provision_timeout is None or self.when_no_fit == WhenNoFit.PROVISION,
        ),
        Rule(
            "!has(self.repackIdleAfter) || (has(self.repack) && self.repack == 'WhenIdle')",
            "repackIdleAfter belongs to repack WhenIdle: remove it, or set repack: WhenIdle",
            lambda self: self.repack_idle_after is None or self.repack == Repack.WHEN_IDLE,
        ),
        Rule(
            "!has(self.gangTimeout)"
            f" || duration(self.gangTimeout) <= duration('{LONGEST_GANG_TIMEOUT}')",
            f"gangTimeout is more than {LONGEST_GANG_TIMEOUT}: lower it",
            lambda self: parse_duration(self.gang_timeout) <= parse_duration(LONGEST_GANG_TIMEOUT),
        ),
        Rule(
            "!has(self.reserveAfter)"
            f" || duration(self.reserveAfter) >= duration('{SHORTEST_RESERVE_AFTER}')",
            f"reserveAfter is less than {SHORTEST_RESERVE_AFTER}: raise it",
            lambda self: (
                parse_duration(self.reserve_after) >= parse_duration(SHORTEST_RESERVE_AFTER)
            ),
        ),
    )

    preset: Preset | None = Field(
        default=None,
        description="Levels by who labels the nodes, instead of levels: "
        + "; ".join(f"{p} has {', '.join(levels)}" for p, levels in PRESETS.items())
        + ". Default: none.",
    )
    levels: list[Level] = Field(
        default_factory=list,
        max_length=MAX_LEVELS,
        description="Levels of nearness, tightest first. Default: none, all nodes are alike.",
    )
    pack_within: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Name of the level of which a unit gets one domain for all its pods. Another "
        "one counts for units that are placed from then on. Default: none, a unit may lie "
        "anywhere.",
    )
    enforcement: Enforcement = Field(
        default=Enforcement.REQUIRED,
        description="Required: a unit waits until one domain of packWithin has room for it. "
        "Preferred: after relaxAfter the next wider level will do. Default: Required.",
    )
    relax_after: Duration | None = Field(
        default=None,
        description="Wait before each wider level; only with enforcement Preferred. Unit: a "
        f"duration. Default: {DEFAULT_RELAX_AFTER}.",
    )
    gang_timeout: Duration = Field(
        default="30s",
        description="How long a unit that does not serve may have pods without a node before it is "
        f"taken back whole and placed anew; at most {LONGEST_GANG_TIMEOUT}. Unit: a duration. "
        "Default: 30s.",
    )

    reserve_after: Duration = Field(
        default="10m",
        description="How long a unit waits for room before nodes that it would fit when they are "
        "empty are kept free of units behind it, so that smaller ones do not take each bit of "
        f"room that comes; at least {SHORTEST_RESERVE_AFTER}. Unit: a duration. Default: 10m.",
    )
    expected_bandwidth: dict[str, ByteQuantity] = Field(
        default_factory=dict,
        max_length=MAX_LEVELS + 1,
        description="What a pair of a prefill and a decode instance should measure, by the "
        f"tightest level that both share, or {NODE} for one node. Unit: bytes per second, "
        "as a quantity such as 40G. Default: with accelerator.type GPU half of what hardware of "
        "the presets' levels is rated at (docs/placement.md), else nothing is expected.",
    )
    fabric_required: bool = Field(
        default=False,
        description="Whether an instance is ready only once its links measured what is expected. "
        "Default: false, slow links are told and serve.",
    )

    scheduler: Scheduler | None = Field(
        default=None,
        description="Who admits a unit before it is placed. Kueue: each unit is one Workload of "
        "the LocalQueue that the label kueue.x-k8s.io/queue-name of this object names; none of "
        "its pods exist until that is admitted. Volcano: each unit is one PodGroup of the Queue "
        "that the annotation scheduling.volcano.sh/queue-name names, else of default; none of its "
        "pods exist until that is let in, and Volcano binds all of them or none. KAI: each unit is "
        "one PodGroup of the Queue that the label kai.scheduler/queue names; a unit that is placed "
        "and gets no quota is taken back after gangTimeout, and made again after a pause that "
        "doubles each time. GangScheduling: "
        "nobody; each unit that is placed is one PodGroup of Kubernetes' own, whose scheduler "
        "binds all of its pods or none (Kubernetes 1.36 with the feature gates GenericWorkload and "
        "GangScheduling). Default: nobody, units wait for room alone.",
    )

    when_no_fit: WhenNoFit = Field(
        default=WhenNoFit.WAIT,
        description="Wait: nothing of a unit exists until there is room for it. Provision: its "
        "pods are made all the same, tied to one domain of packWithin, so that cluster-autoscaler "
        "or Karpenter adds nodes for them. Default: Wait.",
    )
    provision_timeout: Duration | None = Field(
        default=None,
        description="How long its pods wait for nodes before they are taken back whole, to be made "
        "again after a pause that doubles each time; only with whenNoFit Provision. Unit: a "
        f"duration. Default: {DEFAULT_PROVISION_TIMEOUT}.",
    )

    repack: Repack | None = Field(
        default=None,  # and none in the CRD: a former operator refuses fields that it does not know
        description="Whether a unit that lies badly is moved without being asked. WhenIdle: once "
        "its engines had no request for repackIdleAfter it goes to a better domain, if there is "
        "one, by the rollout's rules; never back to one that it left. Default: Never, only the "
        "annotation distserve.io/repack moves units.",
    )
    repack_idle_after: Duration | None = Field(
        default=None,
        description="For how long all engines of a unit have had no request before it may be "
        "moved; only with repack WhenIdle. Unit: a duration. "
        f"Default: {DEFAULT_REPACK_IDLE_AFTER}.",
    )

    @property
    def has_quota(self) -> bool:
        """A unit needs more than room."""
        return self.scheduler not in (None, Scheduler.GANG_SCHEDULING)

    @property
    def repack_idle_seconds(self) -> float:
        return parse_duration(self.repack_idle_after or DEFAULT_REPACK_IDLE_AFTER)

    @property
    def provision_seconds(self) -> float:
        return parse_duration(self.provision_timeout or DEFAULT_PROVISION_TIMEOUT)

    @property
    def resolved_levels(self) -> list[Level]:
        """`levels`, or those of the preset; tightest first."""
        if self.preset is None:
            return self.levels
        return [Level(name=name, node_label=key) for name, key in PRESETS[self.preset].items()]

    @property
    def relax_after_seconds(self) -> float:
        return parse_duration(self.relax_after or DEFAULT_RELAX_AFTER)
