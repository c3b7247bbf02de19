"""What is remembered of units that were moved since they were idle: it ends that moving.

A unit leaves each place once: where it was is written down before it goes, and it is not taken
back there. That stands in the status, so a new leader goes on with a move that was begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from distserve.api.status import RepackingStatus
from distserve.operator.model import Object, Observed, Placement

MOST_LEFT: Final = 16
"""Places. Who left so many stays where it is."""


@dataclass(frozen=True)
class Moved:
    """Of one unit."""

    left: tuple[str, ...] = ()
    """Domains, or sets of nodes inside of one: oldest first."""
    leaving: bool = False
    """It is on its way from the last of these."""

    def begun(self, place: Placement, better: Placement) -> Moved:
        domain, nodes = place.names
        name = nodes if domain == better.names[0] else domain
        return Moved((*(one for one in self.left if one != name), name), leaving=True)

    @property
    def gone(self) -> Moved:
        return replace(self, leaving=False)

    @property
    def stayed(self) -> Moved:
        """It did not leave, after all."""
        return Moved(self.left[:-1]) if self.leaving else self

    def leaves(self, place: Placement) -> bool:
        """Whether this is where it is on its way from."""
        return self.leaving and bool(self.left) and self.left[-1] in place.names


def moved_of(observed: Observed, units: int) -> dict[str, Moved]:
    """As the status has it, of the units that there are to be; what cannot be read is as if it had
    not been."""
    found = {}
    for one in (observed.document.get("status") or {}).get("repacking") or ():
        try:
            known = RepackingStatus.model_validate(one)
        except ValueError:
            continue
        found[known.unit] = Moved(tuple(known.left), known.leaving)
    names = {f"u{number}" for number in range(units)}
    return {unit: one for unit, one in found.items() if unit in names}


def moved_status(moved: Mapping[str, Moved]) -> list[Object]:
    return [
        {
            "unit": unit,
            **({"leaving": True} if one.leaving else {}),
            **({"left": list(one.left)} if one.left else {}),
        }
        for unit, one in sorted(moved.items())
        if one.left
    ]
