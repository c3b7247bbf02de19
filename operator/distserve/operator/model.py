"""What a reconcile sees and what it decides: the seam between watching, deciding and acting.

    watch events -> Store -> Observed -> decide(observed, answers) -> Decision -> Cluster
                                             ^                           |
                                             +------- questions ---------+

Deciding is pure. What it cannot know (a plan, a place, what the API server says of a pod) it asks;
the reconciler answers what can be answered at once and calls it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from distserve.api.planning import ConfigMapKey
from distserve.operator.errors import ClusterError
from distserve.operator.flavors import Flavor, KaiQueue, VolcanoQueue
from distserve.operator.idle import Idle, IdleQuestion
from distserve.operator.pairs import LinksQuestion, UnitLinks
from distserve.placement.inventory import Offer
from distserve.placement.nodes import Node
from distserve.placement.requests import CLUSTER
from distserve.planner.errors import PlannerError
from distserve.planner.plan import Plan, PlanRequest

Object = dict[str, Any]
"""A Kubernetes object as the API server serves it, without managedFields."""


class Key(NamedTuple):
    """A deployment."""

    namespace: str
    name: str


class Ref(NamedTuple):
    """An object in the deployment's namespace."""

    api_version: str
    kind: str
    name: str

    @classmethod
    def of(cls, found: Object) -> Ref:
        return cls(found["apiVersion"], found["kind"], found["metadata"]["name"])


@dataclass(frozen=True)
class Pod:
    """What decisions need of a pod."""

    name: str
    uid: str
    instance: str
    """Empty for a gateway's."""
    unit: str
    revision: str
    node: str
    """Empty until it is bound."""
    ready: bool
    terminating: bool
    created: float
    """Seconds since the epoch, as all times here."""
    unschedulable: str = ""
    """What the scheduler says of it, while it finds no node."""
    restarts: int = 0
    """Of the container that restarted most."""
    engine_restarts: int = 0
    """Of the engine's container."""
    ran_seconds: float = 0.0
    """How long that container's run before the present one lasted."""
    waiting: str = ""
    """Reason of a container that cannot start: ImagePullBackOff, CrashLoopBackOff..."""
    message: str = ""
    """The kubelet's words to that, or how the container ended last."""
    starting_since: float | None = None
    """When it got its node, while none of its containers was made: images or volumes lack."""
    controller: str = ""
    """Kind and name of what made it, as StatefulSet/tiny-u0-decode-0."""
    forced: bool = False
    """Its end was asked for without grace: no more can be done about it."""
    host: str = ""
    """Its address."""
    containers_ready: bool = False
    """Its probes pass; with a readiness gate that is not yet ready."""
    fabric_gate: bool | None = None
    """Whether its gate distserve.io/fabric-verified is open. None: it has none."""
    key: str = ""
    """Name of the Secret with its deployment's key."""


@dataclass(frozen=True)
class Features:
    """What the cluster and the namespace offer."""

    served: frozenset[str] = frozenset()
    """Kinds that not every cluster has, as `monitoring.coreos.com/v1/PodMonitor`."""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    kubernetes: tuple[int, int] = (1, 34)
    priorities: Mapping[str, int] = field(default_factory=dict)
    """Value of each PriorityClass; under the empty name that of pods which name none."""
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    """Kueue's, by name."""
    queue_priorities: Mapping[str, int] = field(default_factory=dict)
    """Value of each WorkloadPriorityClass of Kueue."""
    volcano_queues: Mapping[str, VolcanoQueue] = field(default_factory=dict)
    """By name."""
    kai_queues: Mapping[str, KaiQueue] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True)
class Observed:
    """The world as far as it concerns one deployment."""

    document: Object
    children: Mapping[Ref, Object]
    """Live objects that this deployment controls, pods left out."""
    pods: tuple[Pod, ...]
    features: Features
    now: float
    accelerators: tuple[Offer, ...] = ()
    """Nodes that offer the deployment's resource, and how many each has in all: a plan counts on
    those that its pods may use. Not what is free now: a plan must not change with the load."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """Those that the deployment's pods are bound to. None: it is not seen (any more)."""


@dataclass(frozen=True)
class Placement:
    """Where a unit goes: kept in an annotation of its StatefulSets, so that it is never asked
    twice."""

    level: str
    """Name of the topology level; empty where the whole cluster is the domain."""
    label: str
    """The level's node label; empty where the level has none and nodes are named."""
    value: str
    nodes: Mapping[str, tuple[str, ...]]
    """Instance -> the nodes that its pods should prefer."""
    avoid: tuple[str, ...] = ()
    """Of an open place: domains that it is not to be in."""
    repack: str = ""
    """Value of the annotation distserve.io/repack that it was chosen for, or looked at for."""

    @property
    def open(self) -> bool:
        """No domain was chosen: whoever adds nodes and the scheduler are to find one."""
        return not self.value and not self.nodes

    @property
    def names(self) -> tuple[str, str]:
        """What it can be told by later: its domain, and its nodes."""
        chosen = sorted({node for nodes in self.nodes.values() for node in nodes})
        digest = hashlib.sha256(",".join(chosen).encode()).hexdigest()[:8]
        domain = f"{self.level} {self.value}" if self.value else CLUSTER
        return domain, f"nodes {digest}"


@dataclass(frozen=True)
class NoPlace:
    """Why a unit waits."""

    reason: str
    message: str


@dataclass(frozen=True)
class PlanQuestion:
    """Make this plan, keyed by `request.inputs_hash`."""

    request: PlanRequest


@dataclass(frozen=True)
class PlacementQuestion:
    """Find a place for these units (of this deployment, rendered as `distserve.placement` needs
    it); units that are not named are no longer waited for."""

    units: tuple[Any, ...]  # distserve.placement's UnitRequest


@dataclass(frozen=True)
class BetterQuestion:
    """Would this unit, that runs, lie better elsewhere? None: room is kept for no such one."""

    unit: Any | None  # distserve.placement's UnitRequest
    never: frozenset[str] = frozenset()
    """`Placement.names` that it is not to go to."""
    beside: Any | None = None
    """An extra unit, a UnitRequest as well: where that finds no room besides, nothing is better."""


@dataclass(frozen=True)
class DryRunQuestion:
    """Would the API server take these objects? Asked once per revision."""

    revision: str
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class TextsQuestion:
    """What do these ConfigMaps of the deployment's namespace hold? They are the user's."""

    keys: tuple[ConfigMapKey, ...]


@dataclass(frozen=True)
class KeyQuestion:
    """Is the Secret with the deployment's key there? Asked while pods do not start. Somebody else's
    of that name is told as foreign."""

    secret: str


@dataclass(frozen=True)
class NodesQuestion:
    """How are these nodes? Asked before pods there end by force."""

    names: tuple[str, ...]


Question = (
    PlanQuestion
    | PlacementQuestion
    | BetterQuestion
    | DryRunQuestion
    | TextsQuestion
    | KeyQuestion
    | NodesQuestion
    | LinksQuestion
    | IdleQuestion
)


@dataclass(frozen=True)
class Pending:
    """The answer is being worked out; the deployment's key is queued again when it is there."""


@dataclass(frozen=True)
class Answers:
    """What was asked so far. An absent key: not asked yet."""

    plans: Mapping[str, Plan | PlannerError | Pending] = field(default_factory=dict)
    """By `PlanRequest.inputs_hash`."""
    placements: Mapping[str, Placement | NoPlace | Pending] = field(default_factory=dict)
    """By unit."""
    better: Mapping[str, Placement | Pending | None] = field(default_factory=dict)
    """By unit; None: it lies best where it is."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """By revision: the API server's words, empty when it takes all."""
    texts: Mapping[ConfigMapKey, str | None] = field(default_factory=dict)
    """None: there is no such ConfigMap or key."""
    key_lost: bool | None = None
    """None: not asked."""
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    """None: there is no such node."""
    links: Mapping[str, UnitLinks] = field(default_factory=dict)
    """By unit, what is known by now."""
    idle: Idle | None = None
    """None: no unit is, as far as is known."""
    foreign: frozenset[Ref] = frozenset()
    """Objects that have our names and are not ours: they are never touched."""
    failed: ClusterError | None = None
    """What writing ended with before all was done, or asking about it without an answer."""


@dataclass(frozen=True)
class Apply:
    """Server-side apply. Without `uid` the object is to be new: where one of that name is there
    that is not ours, whoever acts leaves it alone and tells it as foreign. With it, the live object
    must have it."""

    object: Object
    uid: str = ""
    create_only: bool = False
    """Never applied again: the deployment's key, ControllerRevisions."""
    subresource: str = ""
    """Of somebody else's object, always with `uid`: what of it is ours to say."""


@dataclass(frozen=True)
class Delete:
    """Delete with a uid precondition."""

    ref: Ref
    uid: str
    grace_seconds: int | None = None


@dataclass(frozen=True)
class Event:
    """Told to users once, when something changes."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    of: str = ""
    """What happened, where the words may differ: what was done about it may be decided again for
    the rest before the watches show it."""


@dataclass(frozen=True)
class Decision:
    """What is to be done, in the order of `stages`. Doing a part of it and deciding again is always
    right."""

    questions: tuple[Question, ...] = ()
    """While there are any, the rest is what can be done without their answers."""
    actions: tuple[Apply | Delete, ...] = ()
    status: Object | None = None
    """The whole new status, or None where it is already so."""
    events: tuple[Event, ...] = ()
    again_seconds: float | None = None
    """Decide again after this long even if nothing changes: a timeout runs."""
    whole: Mapping[str, bool] | None = None
    """Of each unit that there is to be, whether all its instances are ready. None: it is not known
    which there are to be."""
    standing: Mapping[str, bool] = field(default_factory=dict)
    """The same of each unit that there is, where it is not known which there are to be."""
    fault: Exception | None = None
    """Deciding tripped over this: raised when the rest is done."""
