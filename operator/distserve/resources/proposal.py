"""A smaller unit for a deployment whose unit fits no fabric domain: what `distserve plan` proposes.

Pure: whether a unit fits is asked of whoever has the inventory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from distserve.api.deployment import DistServeDeployment
from distserve.api.status import RolePlan
from distserve.api.strategies import Role
from distserve.resources.revisions import Revision

MOST_TRIED = 64
"""Of the unit's parts, the best first."""


@dataclass(frozen=True)
class Proposal:
    instances: Mapping[str, int]
    """Role -> instancesPerUnit."""
    units: int
    """As many as have together no fewer instances of any role than was asked."""
    accelerators: int
    """Of one unit."""

    def __str__(self) -> str:
        parts = ", ".join(f"{role}.instancesPerUnit: {n}" for role, n in self.instances.items())
        return f"{parts}, units: {self.units} ({self.accelerators} accelerators a unit)"


def smaller_unit(
    deployment: DistServeDeployment,
    revision: Revision,
    most_accelerators: float,
    fits: Callable[[Revision], bool],
) -> Proposal | None:
    """The part of the unit that fits and, in so many units that no role has fewer instances than
    before, takes the fewest accelerators; then the largest. None: no part fits."""
    shape = revision.unit
    parts: dict[Role, RolePlan] = {
        role: part for role in deployment.spec.roles if (part := getattr(shape, role.value))
    }
    asked = {role: part.instances for role, part in parts.items()}
    each = {role: part.tensor * part.pipeline for role, part in parts.items()}

    def accelerators(counts: Mapping[Role, int]) -> int:
        return sum(each[role] * n for role, n in counts.items())

    def times(counts: Mapping[Role, int]) -> int:
        return max(math.ceil(asked[role] / n) for role, n in counts.items())

    def cost(counts: Mapping[Role, int]) -> tuple[int, int]:
        return times(counts) * accelerators(counts), -accelerators(counts)

    smaller = (
        dict(zip(asked, found, strict=True))
        for found in product(*(range(1, count + 1) for count in asked.values()))
    )
    possible = [one for one in smaller if one != asked and accelerators(one) <= most_accelerators]
    for counts in sorted(possible, key=cost)[:MOST_TRIED]:
        if fits(_with(revision, counts)):
            instances = {role.value: n for role, n in counts.items()}
            return Proposal(instances, deployment.spec.units * times(counts), accelerators(counts))
    return None


def _with(revision: Revision, counts: Mapping[Role, int]) -> Revision:
    """The revision with other numbers of instances; its templates serve any number."""
    parts = {
        role.value: getattr(revision.unit, role.value).model_copy(update={"instances": n})
        for role, n in counts.items()
    }
    return replace(revision, unit=revision.unit.model_copy(update=parts))
