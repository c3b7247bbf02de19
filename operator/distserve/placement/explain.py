"""Why a unit waits, for its user: what is short, where, and what to do."""

from distserve.placement.requests import UnitRequest


def no_room(unit: UnitRequest) -> str:
    return f"unit {unit.id.unit} does not fit anywhere now"
