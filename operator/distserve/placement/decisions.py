"""What placement answers: where a unit goes whole, or what it waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from distserve.placement.requests import Domain, UnitId


class Reason(StrEnum):
    """Reasons of the condition `Placed=False`."""

    NO_ROOM = "NoRoom"
    """It would fit if others left."""
    HELD_FOR_ANOTHER = "HeldForAnother"
    """There is room, but a unit before it has waited too long for it."""
    UNIT_LARGER_THAN_DOMAIN = "UnitLargerThanDomain"
    """It would not fit if all others left."""
    SPLIT = "DomainSplit"
    """Its pods run, but no longer in one domain: labels changed under them."""
    NO_MATCHING_NODES = "NoMatchingNodes"
    """No usable node satisfies selectors, affinity and taints of one of its instances."""


@dataclass(frozen=True)
class Placed:
    unit: UnitId
    domain: Domain | None
    """None: the whole cluster."""
    nodes: Mapping[str, str]
    """Pod name -> node name."""
    packed: float = 1.0
    """Share of the pairs of its pods that lie in one domain of the level asked for, 0..1."""


@dataclass(frozen=True)
class Waiting:
    unit: UnitId
    reason: Reason
    message: str
    """What is short, where, and what to do."""
    holds: tuple[str, ...] = ()
    """Nodes kept free for it from now on, since it waited longer than reserveAfter."""


Decision = Placed | Waiting
