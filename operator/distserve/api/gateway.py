"""`spec.gateway`: the OpenAI endpoint in front of the instances."""

from enum import StrEnum

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.durations import Duration, parse_duration
from distserve.api.roles import PodTemplate

LONGEST_REQUEST = "24h"
"""Engines take nothing that may run for longer."""


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class RoutingPolicy(StrEnum):
    ROUND_ROBIN = "RoundRobin"
    """In turn."""
    LEAST_OUTSTANDING = "LeastOutstanding"
    """The one with the least work left."""
    POWER_OF_TWO_CHOICES = "PowerOfTwoChoices"
    """The better of two drawn at random."""
    PREFIX_AWARE = "PrefixAware"
    """The one that has most of the prompt in its prefix cache."""


class ServiceSpec(Model):
    """The Service that clients reach."""

    type: ServiceType = Field(
        default=ServiceType.CLUSTER_IP,
        description="Type of the Service. Default: ClusterIP.",
    )
    port: int = Field(
        default=8000, ge=1, le=65535, description="Port of the Service. Default: 8000."
    )


class Routing(Model):
    """How an instance is chosen for a request."""

    policy: RoutingPolicy = Field(
        default=RoutingPolicy.LEAST_OUTSTANDING,
        description="RoundRobin: in turn. LeastOutstanding: least work left. PowerOfTwoChoices: "
        "the better of two drawn at random. PrefixAware: most of the prompt cached. "
        "Default: LeastOutstanding.",
    )
    min_remote_prefill_tokens: int = Field(
        default=0,
        ge=0,
        le=16777216,
        description="Prompts with fewer uncached tokens are prefilled by the decode instance "
        "itself, without a transfer. Unit: tokens. Default: 0, all are prefilled remotely.",
    )


class GatewaySpec(Model):
    """The gateway's replicas and bounds."""

    rules = (
        Rule(
            "!has(self.requestTimeout)"
            f" || duration(self.requestTimeout) <= duration('{LONGEST_REQUEST}')",
            f"requestTimeout is more than the {LONGEST_REQUEST} that engines take: lower it",
            lambda self: parse_duration(self.request_timeout) <= parse_duration(LONGEST_REQUEST),
        ),
    )

    replicas: int = Field(
        default=2, ge=1, le=100, description="Gateway pods. Unit: pods. Default: 2."
    )
    autoscaled: bool = Field(
        default=False,
        description="Whether somebody else says how many gateways there are, such as a "
        "HorizontalPodAutoscaler on the Deployment NAME-gateway: replicas then counts when that is "
        "made, and no more. Default: false.",
    )
    service: ServiceSpec = Field(
        default_factory=ServiceSpec, description="The Service that clients reach."
    )
    routing: Routing = Field(
        default_factory=Routing,
        description="How an instance is chosen for a request. Another way replaces the gateways.",
    )
    max_waiting_requests: int = Field(
        default=512,
        ge=1,
        le=1000000,
        description="Requests that may wait in all gateways together; more are answered with 429 "
        "and Retry-After. Another number replaces the gateways. Unit: requests. Default: 512.",
    )
    request_timeout: Duration = Field(
        default="10m",
        description="Longest time of a request, from its arrival to its last token; at most "
        f"{LONGEST_REQUEST}. Another time replaces the gateways. Unit: a duration such as 30s. "
        "Default: 10m.",
    )
    pod_template: PodTemplate = Field(default_factory=dict)
