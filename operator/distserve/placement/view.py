"""What does not change during a pass: domains, who may go where, what is scarce."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from distserve.placement.domains import Group, groups
from distserve.placement.inventory import Inventory
from distserve.placement.matching import constraints_key, misfit
from distserve.placement.quantities import PODS, Amounts
from distserve.placement.requests import Enforcement, InstanceRequest, Level, UnitRequest


@dataclass
class View:
    inventory: Inventory
    _groups: dict[Level | None, list[Group]] = field(default_factory=dict)
    _allowed: dict[str, frozenset[str]] = field(default_factory=dict)
    _keys: dict[int, tuple[InstanceRequest, str]] = field(default_factory=dict)

    @cached_property
    def totals(self) -> Amounts:
        found: Counter[str] = Counter()
        for node in self.inventory.nodes.values():
            found.update(node.allocatable)
        return found

    def groups(self, level: Level | None) -> list[Group]:
        """Domains with their usable nodes. For no level: one group, the whole cluster."""
        found = self._groups.get(level)
        if found is None:
            usable = (node for node in self.inventory.nodes.values() if node.usable)
            found = self._groups[level] = groups(usable, level)
        return found

    def constraints(self, instance: InstanceRequest) -> str:
        # By identity: an instance's mappings have no hash, and it lives as long as the pass.
        found = self._keys.get(id(instance))
        if found is None:
            found = self._keys[id(instance)] = (instance, constraints_key(instance))
        return found[1]

    def allowed(self, instance: InstanceRequest) -> Collection[str]:
        """Nodes that the instance's own constraints leave, whatever runs there."""
        key = self.constraints(instance)
        found = self._allowed.get(key)
        if found is None:
            nodes = self.inventory.nodes.values()
            found = frozenset(node.name for node in nodes if misfit(instance, node) is None)
            self._allowed[key] = found
        return found

    def scarce(self, unit: UnitRequest) -> str:
        """The resource of which the unit takes the largest share of the cluster."""

        def share(name: str) -> tuple[float, str]:
            total = self.totals.get(name, 0)
            return (unit.total[name] / total if total else float("inf"), name)

        return max(unit.total, key=share, default=PODS)


def promised_levels(unit: UnitRequest, now: float) -> list[Level | None]:
    """Levels of which one domain will do for the unit now, best first. None: the cluster."""
    if unit.within is not None:
        return [Level(unit.within.level, unit.within.node_label)]
    if unit.pack_within is None:
        return [None]
    ladder = [*ladder_from(unit, unit.pack_within), None]
    if unit.enforcement is Enforcement.REQUIRED:
        return ladder[:1]
    if unit.relax_after_seconds <= 0:
        return ladder
    return ladder[: 1 + int(unit.waited(now) // unit.relax_after_seconds)]


def ladder_from(unit: UnitRequest, name: str) -> list[Level]:
    names = [level.name for level in unit.levels]
    return list(unit.levels[names.index(name) :])


def tighter_levels(unit: UnitRequest, promised: Level | None) -> list[Level]:
    """Those below the promised one, tightest first: the unit lies in one of theirs where it can."""
    if promised is None:
        return list(unit.levels)
    names = [level.name for level in unit.levels]
    return list(unit.levels[: names.index(promised.name)]) if promised.name in names else []


def asked_level(unit: UnitRequest) -> Level | None:
    """The level that the unit should lie in one domain of."""
    return next((level for level in unit.levels if level.name == unit.pack_within), None)
