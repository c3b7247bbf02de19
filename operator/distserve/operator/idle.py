"""Units without requests: what is asked about them, and what came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distserve.operator.pairs import Member


@dataclass(frozen=True)
class IdleQuestion:
    """Is one of these units idle? Units that are not named are not looked at any more."""

    secret: str
    """With the deployment's key."""
    units: Mapping[str, tuple[Member, ...]]
    """Of each of its instances."""
    after_seconds: float
    """So long without a request is idle."""


@dataclass(frozen=True)
class Idle:
    """A unit that was asked a moment ago, and has been idle for long enough."""

    unit: str
    seconds: float
    """For how long none of its engines had a request."""
