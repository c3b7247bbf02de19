"""`.status`: what the operator observed. Everything in it can be observed again."""

from pydantic import Field

from distserve.api.base import Model


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


class RevisionStatus(Model):
    """Revisions in use."""

    current: str = Field(default="", max_length=16, description="The one that all units had last.")
    target: str = Field(default="", max_length=16, description="The one that units move to.")


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
    revision: RevisionStatus = Field(
        default_factory=RevisionStatus, description="Revisions in use."
    )
    url: str = Field(default="", max_length=1024, description="Where clients in the cluster go.")
    replicas: int = Field(default=0, ge=0, description="Ready units.")
    selector: str = Field(
        default="", max_length=1024, description="Pods behind /scale: exactly one per unit."
    )
