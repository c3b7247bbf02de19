"""What was worked out about a deployment on the way to its decision: read by `writes`, `report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from distserve.operator.fabric import Fabric
from distserve.operator.health import LiveUnit
from distserve.operator.places import Places
from distserve.operator.plans import Numbers
from distserve.operator.progress import Progress
from distserve.operator.repacking import Repacking
from distserve.operator.rollout import Rules, Step, UnitState
from distserve.operator.wanted import Wanted
from distserve.resources.revisions import Revision


@dataclass(frozen=True)
class Course:
    wanted: Wanted
    numbers: Numbers
    live: Mapping[str, LiveUnit]
    states: Mapping[int, UnitState]
    rules: Rules
    step: Step
    places: Places
    progress: Progress
    fabric: Fabric
    repacking: Repacking

    @cached_property
    def made(self) -> Mapping[str, Revision]:
        """Units whose objects are written, in order, and the revision that each has or gets. The
        others that there are to be are left as they are."""
        placed = self.places.found.keys() - self.places.given_up
        known = {
            f"u{number}": self.wanted.revision(name)
            for number, name in sorted(self.step.revisions.items())
            if f"u{number}" in placed
        }
        return {unit: found for unit, found in known.items() if found is not None}
