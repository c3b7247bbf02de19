"""Conditions of a deployment: what is true of it, each with a reason and a message that helps.

The docstrings under the members are the reference page's.
"""

from enum import StrEnum


class Condition(StrEnum):
    """Type of a condition in `.status.conditions`. Positive when True, except where said."""

    ACCEPTED = "Accepted"
    """The spec is understood and supported here. False names the field and the cure."""
    PLANNED = "Planned"
    """A plan exists that meets the SLO on paper. False says what comes nearest."""
    PLACED = "Placed"
    """Every unit has its nodes. False says what is missing where."""
    FABRIC_VERIFIED = "FabricVerified"
    """The links between prefill and decode instances measured what is expected. False names the
    slowest one, with both numbers; Unknown until measured."""
    PREFILL_READY = "PrefillReady"
    """Every prefill instance is ready."""
    DECODE_READY = "DecodeReady"
    """Every decode instance is ready."""
    HYBRID_READY = "HybridReady"
    """Every hybrid instance is ready."""
    GATEWAY_READY = "GatewayReady"
    """At least one gateway is ready."""
    PROGRESSING = "Progressing"
    """A rollout is under way."""
    DEGRADED = "Degraded"
    """Serves, but with less than was asked for. True is bad."""
    FAILED = "Failed"
    """Ended until the spec changes. True is bad."""
    READY = "Ready"
    """Summary: clients get answers now."""


class AcceptedReason(StrEnum):
    """Reasons of `Accepted`."""

    SUPPORTED = "Supported"
    """The engine build and the cluster can run it."""
    INVALID = "Invalid"
    """The spec breaks a rule that the API server did not check, since its CRD is another."""
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    """A podTemplate takes away what the processes need, or cannot be read."""
    REFUSED_BY_API_SERVER = "RefusedByApiServer"
    """The API server takes an object as rendered not: its words are in the message."""
    NOT_SUPPORTED_BY_ENGINE = "NotSupportedByEngine"
    """The spec is valid, but this engine build cannot run it yet."""
    NOT_SUPPORTED_BY_CLUSTER = "NotSupportedByCluster"
    """The spec is valid, but the cluster or the namespace lacks what it needs."""
    NAME_TAKEN = "NameTaken"
    """An object of somebody else has the name of one of ours; it is not touched."""
    OPERATOR_FAULT = "OperatorFault"
    """The operator trips over the deployment, which is its fault: its log has the traceback."""


class PlannedReason(StrEnum):
    """Reasons of `Planned`."""

    MANUAL = "Manual"
    """The numbers are the spec's."""
    MEETS_SLO = "MeetsSlo"
    """The plan in use meets the SLO on paper."""
    PLANNING = "Planning"
    """A plan is being made; one in use stays in use."""
    SLO_NOT_REACHABLE = "SloNotReachable"
    """Nothing meets the SLO with what may be used: the nearest miss is in the message."""
    NO_PROFILE = "NoProfile"
    """Step times of this model on this hardware are not known."""
    INVALID_REQUEST = "InvalidRequest"
    """Something that planning needs is missing or wrong."""
    PLANNING_FAILED = "PlanningFailed"
    """Planning took too long or ended with an error; it is tried again."""


class PlacedReason(StrEnum):
    """Reasons of `Placed`."""

    PLACED = "Placed"
    """Every unit has its nodes."""
    NOTHING_TO_PLACE = "NothingToPlace"
    """No units are asked for."""
    PLACING = "Placing"
    """A place is being looked for."""
    NO_ROOM = "NoRoom"
    """It would fit if others left."""
    HELD_FOR_ANOTHER = "HeldForAnother"
    """There is room, but a unit before it has waited too long for it."""
    UNIT_LARGER_THAN_DOMAIN = "UnitLargerThanDomain"
    """It would not fit if all others left."""
    NO_MATCHING_NODES = "NoMatchingNodes"
    """No usable node satisfies selectors, affinity and taints of one of its instances."""
    QUEUED_BY_KUEUE = "QueuedByKueue"
    """Its LocalQueue has not admitted it (scheduler: Kueue): Kueue's words are in the message."""
    EVICTED_BY_KUEUE = "EvictedByKueue"
    """Kueue takes its quota back: the unit goes whole, and queues again."""
    QUEUED_BY_VOLCANO = "QueuedByVolcano"
    """Its Queue has not let it in (scheduler: Volcano): the message says where to see why."""
    QUEUED_BY_KAI = "QueuedByKAI"
    """KAI has not bound its pods, or has no quota for them (scheduler: KAI): KAI's words are in the
    message."""
    PROVISIONING = "Provisioning"
    """Its pods wait for nodes that an autoscaler is to add (whenNoFit: Provision)."""
    PROVISIONING_TIMED_OUT = "ProvisioningTimedOut"
    """None were added in time: it was taken back, and is tried again after a pause."""
    UNSCHEDULABLE = "Unschedulable"
    """It had a place, but the scheduler finds no node for one of its pods."""
    DOMAIN_SPLIT = "DomainSplit"
    """A node of it left its domain, since the node's label changed; the pods run on."""
    NOT_PLANNED = "NotPlanned"
    """Its size is not known before there is a plan."""


class FabricVerifiedReason(StrEnum):
    """Reasons of `FabricVerified`."""

    AS_EXPECTED = "AsExpected"
    """Every link that was measured gives what is expected of its level."""
    SLOW_FABRIC = "SlowFabric"
    """A link gives less: the slowest one is in the message."""
    NOT_MEASURED = "NotMeasured"
    """No pair has met yet, or none could be asked: the message says why."""
    FINGERPRINT_MISMATCH = "FingerprintMismatch"
    """A pair can exchange no KV, since its engines loaded different things."""
    NO_EXPECTATION = "NoExpectation"
    """It was measured, and nothing says what it should be."""


class RoleReadyReason(StrEnum):
    """Reasons of `PrefillReady`, `DecodeReady` and `HybridReady`."""

    ALL_READY = "AllReady"
    """All instances are ready."""
    INSTANCES_NOT_READY = "InstancesNotReady"
    """Some are not: the message counts them."""
    SCALED_TO_ZERO = "ScaledToZero"
    """No units are asked for."""


class GatewayReadyReason(StrEnum):
    """Reasons of `GatewayReady`."""

    AVAILABLE = "Available"
    """At least one gateway pod is ready."""
    NO_READY_POD = "NoReadyPod"
    """None is."""


class ProgressingReason(StrEnum):
    """Reasons of `Progressing`."""

    UP_TO_DATE = "UpToDate"
    """All units have the target revision."""
    STARTING = "Starting"
    """The first units of a deployment are coming up."""
    ROLLING_OUT = "RollingOut"
    """Units are being replaced: step k of n."""
    SCALING = "Scaling"
    """Units are being added or removed."""
    PAUSED = "Paused"
    """rollout.paused holds a rollout that is not at its end."""
    NO_ROOM_FOR_SURGE = "NoRoomForSurge"
    """The next new unit finds no room, and rollout.whenFull says Wait."""
    DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    """No step for longer than rollout.progressDeadline."""


class DegradedReason(StrEnum):
    """Reasons of `Degraded`."""

    AS_ASKED = "AsAsked"
    """All that was asked for is ready."""
    STARTING = "Starting"
    """It has not served yet: what is missing is on its way."""
    UNITS_NOT_READY = "UnitsNotReady"
    """Fewer units serve than were asked for."""
    GATEWAYS_NOT_READY = "GatewaysNotReady"
    """Fewer gateways are ready than were asked for."""


class FailedReason(StrEnum):
    """Reasons of `Failed`."""

    WITHIN_BUDGET = "WithinBudget"
    """No instance restarted more often than restart.budget allows."""
    RESTART_BUDGET_SPENT = "RestartBudgetSpent"
    """An instance keeps failing: its last words are in the message."""


class ReadyReason(StrEnum):
    """Reasons of `Ready`."""

    SERVING = "Serving"
    """A gateway and a whole unit are ready."""
    NOT_ACCEPTED = "NotAccepted"
    """See Accepted."""
    NOT_PLANNED = "NotPlanned"
    """See Planned."""
    NOT_PLACED = "NotPlaced"
    """See Placed."""
    FABRIC_NOT_VERIFIED = "FabricNotVerified"
    """topology.fabricRequired holds the instances: see FabricVerified."""
    FINGERPRINT_MISMATCH = "FingerprintMismatch"
    """Instances of both roles are ready, and no two of them can exchange KV: see FabricVerified."""
    NO_READY_UNIT = "NoReadyUnit"
    """No unit has all its instances ready."""
    NO_READY_GATEWAY = "NoReadyGateway"
    """See GatewayReady."""
    SCALED_TO_ZERO = "ScaledToZero"
    """No units are asked for."""
    FAILED = "Failed"
    """See Failed."""


REASONS: dict[Condition, type[StrEnum]] = {
    Condition.ACCEPTED: AcceptedReason,
    Condition.PLANNED: PlannedReason,
    Condition.PLACED: PlacedReason,
    Condition.FABRIC_VERIFIED: FabricVerifiedReason,
    Condition.PREFILL_READY: RoleReadyReason,
    Condition.DECODE_READY: RoleReadyReason,
    Condition.HYBRID_READY: RoleReadyReason,
    Condition.GATEWAY_READY: GatewayReadyReason,
    Condition.PROGRESSING: ProgressingReason,
    Condition.DEGRADED: DegradedReason,
    Condition.FAILED: FailedReason,
    Condition.READY: ReadyReason,
}
