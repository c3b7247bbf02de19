"""How a running deployment is kept: rollouts, disruptions, restarts, and who watches it."""

from enum import StrEnum
from typing import Final

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.durations import Duration

DEFAULT_NODE_LOST_AFTER: Final = "30s"


class WhenFull(StrEnum):
    WAIT = "Wait"
    """Until there is room for one more unit."""
    REPLACE_ONE = "ReplaceOne"
    """One old unit is drained and deleted to make room for a new one."""


class Rollout(Model):
    """How units are replaced by those of a new revision."""

    rules = (
        Rule(
            "!has(self.maxSurgeUnits) || self.maxSurgeUnits > 0 || self.maxUnavailableUnits > 0",
            "maxSurgeUnits and maxUnavailableUnits are both 0, so no unit could ever be replaced: "
            "set one of them to 1",
            lambda self: self.max_surge_units + self.max_unavailable_units > 0,
        ),
    )

    max_surge_units: int = Field(
        default=1,
        ge=0,
        le=10000,
        description="Units that a rollout may have above spec.units. Unit: units. Default: 1.",
    )
    max_unavailable_units: int = Field(
        default=0,
        ge=0,
        le=10000,
        description="Units that may be missing while a rollout lasts. Unit: units. Default: 0.",
    )
    when_full: WhenFull = Field(
        default=WhenFull.WAIT,
        description="What happens when no room is left for a surge unit. Wait: the rollout waits. "
        "ReplaceOne: one old unit is drained and makes room. Default: Wait.",
    )
    drain_deadline: Duration = Field(
        default="60s",
        description="How long an instance or a gateway that has to end may take to finish its "
        "requests. Unit: a duration. Default: 60s.",
    )
    progress_deadline: Duration = Field(
        default="20m",
        description="How long a rollout may go without a step before it is said to be stuck. "
        "Unit: a duration. Default: 20m.",
    )
    paused: bool = Field(
        default=False,
        description="Whether a rollout of units stands still: what changes their pods, or how many "
        "instances they have, waits until it is false again. Gateways follow at once. "
        "Default: false.",
    )


class Disruption(Model):
    """What voluntary disruptions, such as draining a node, may take."""

    min_available_units: int = Field(
        default=1,
        ge=0,
        le=10000,
        description="Units that evictions leave whole: ready ones, and where there are enough, "
        "those without a cordoned node. With units not above it no ready pod can be evicted. Unit: "
        "units. Default: 1.",
    )


class Restart(Model):
    """When pods that keep failing are given up, and when those on a lost node are."""

    budget: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Restarts of a container since its pod was made. After one more, if it ran for "
        "less than `within` again, the deployment is Failed. Unit: restarts. Default: 5.",
    )
    within: Duration = Field(
        default="10m",
        description="A container that ran for this long before it ended is not given up, however "
        "often it was restarted: Kubernetes tells the number of restarts and the last run's "
        "length, not when each was. Unit: a duration. Default: 10m.",
    )
    node_lost_after: Duration = Field(
        default=DEFAULT_NODE_LOST_AFTER,
        description="How long a node may be unreachable or not ready before its pods are ended and "
        "made again elsewhere, without a sign of life from it. Engines' pods keep what they were "
        "made with, so a longer time counts for new ones only; gateways are replaced. Unit: a "
        "duration. Default: 30s.",
    )


class Observability(Model):
    """Objects for the Prometheus operator; made only where the cluster serves their kinds."""

    pod_monitor: bool = Field(
        default=True,
        description="Whether a PodMonitor is made, so that Prometheus scrapes gateways, engines "
        "and migrators. With networkPolicy.enabled its namespace needs the label "
        "distserve.io/scrape=true. Default: true.",
    )
    prometheus_rule: bool = Field(
        default=True,
        description="Whether a PrometheusRule is made: attainment of the SLO, and alerts. "
        "Default: true.",
    )
