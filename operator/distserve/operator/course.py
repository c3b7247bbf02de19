"""What was worked out about a deployment on the way to its decision: read by `writes`, `report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distserve.operator.fabric import Fabric
from distserve.operator.health import LiveUnit
from distserve.operator.places import Places
from distserve.operator.plans import Numbers
from distserve.operator.progress import Progress
from distserve.operator.repacking import Repacking
from distserve.operator.rollout import Rules, Step, UnitState
from distserve.operator.wanted import Wanted


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
