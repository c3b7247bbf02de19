"""Conditions of a deployment: what is true of it, each with a reason and a message that helps."""

from enum import StrEnum


class Condition(StrEnum):
    """Type of a condition in `.status.conditions`. Positive when True, except where said."""

    ACCEPTED = "Accepted"
    """The spec is understood and supported here. False names the field and the cure."""
    PLANNED = "Planned"
    """A plan exists that meets the SLO on paper. False says what comes nearest."""
    PLACED = "Placed"
    """Every unit has its nodes. False says what is missing where."""
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
    """The engine build can run it."""
    NOT_SUPPORTED_BY_ENGINE = "NotSupportedByEngine"
    """The spec is valid, but this engine build cannot run it yet."""
