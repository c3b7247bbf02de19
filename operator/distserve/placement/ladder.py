"""Which levels will do for a unit, and for how long it must wait for the looser ones."""

from collections.abc import Mapping, Sequence

from distserve.placement.domains import domain_of
from distserve.placement.nodes import Node
from distserve.placement.requests import Domain, Enforcement, Level, UnitRequest


def ladder(unit: UnitRequest) -> Sequence[Level | None]:
    """Levels of which one domain may ever do, best first. None: the cluster."""
    if unit.within is not None:
        return [Level(unit.within.level, unit.within.node_label)]
    if unit.pack_within is None:
        return [None]
    names = [level.name for level in unit.levels]
    start = names.index(unit.pack_within)
    if unit.enforcement is Enforcement.REQUIRED:
        return [unit.levels[start]]
    return [*unit.levels[start:], None]


def ladder_now(unit: UnitRequest, now: float) -> Sequence[Level | None]:
    """Those that will do after this wait: one more for each relaxAfter."""
    levels = ladder(unit)
    if unit.relax_after_seconds <= 0:
        return levels
    return levels[: 1 + int(unit.waited(now) // unit.relax_after_seconds)]


def tighter(unit: UnitRequest, promised: Level | None) -> Sequence[Level]:
    """Levels below the promised one, tightest first: where it can, a unit lies in one of theirs."""
    if promised is None:
        return unit.levels
    names = [level.name for level in unit.levels]
    return unit.levels[: names.index(promised.name)] if promised.name in names else ()


def asked(unit: UnitRequest) -> Level | None:
    """The level of which the unit should lie in one domain."""
    return next((level for level in unit.levels if level.name == unit.pack_within), None)


def spread_over(unit: UnitRequest, promised: Level | None) -> Level | None:
    """The level whose domains fail apart: the loosest, where it is looser than the promised one."""
    loosest = unit.levels[-1] if unit.levels else None
    return loosest if promised not in (None, loosest) else None


def common_domain(
    unit: UnitRequest, places: Mapping[str, str], nodes: Mapping[str, Node]
) -> Domain | None:
    """The best domain on the unit's ladder that has all its pods."""
    for level in ladder(unit):
        if level is not None:
            found = {domain_of(nodes[name], level) for name in places.values()}
            if len(found) == 1 and (unit.within is None or found == {unit.within}):
                return found.pop()
    return None


def fulfils(unit: UnitRequest, places: Mapping[str, str], nodes: Mapping[str, Node]) -> bool:
    """Whether pods at these places are where the unit may ever be."""
    return None in ladder(unit) or common_domain(unit, places, nodes) is not None
