"""Where each unit goes, whole: the inventory of the cluster and one pass over what waits."""

from distserve.placement.decisions import Decision, Placed, Reason, Waiting
from distserve.placement.domains import domain_of
from distserve.placement.inventory import Inventory, inventory_of
from distserve.placement.placing import place
from distserve.placement.requests import (
    Domain,
    Enforcement,
    InstanceRequest,
    Level,
    UnitId,
    UnitRequest,
)

__all__ = [
    "Decision",
    "Domain",
    "Enforcement",
    "InstanceRequest",
    "Inventory",
    "Level",
    "Placed",
    "Reason",
    "UnitId",
    "UnitRequest",
    "Waiting",
    "domain_of",
    "inventory_of",
    "place",
]
