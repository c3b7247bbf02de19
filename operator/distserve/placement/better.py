"""Whether a unit that runs would lie better elsewhere: asked when somebody wants it repacked."""

from collections.abc import Mapping, Sequence

from distserve.placement.decisions import Placed
from distserve.placement.domains import domain_of, share_together
from distserve.placement.inventory import Inventory
from distserve.placement.ladder import asked, common_domain
from distserve.placement.placing import place
from distserve.placement.requests import Level, UnitRequest
from distserve.placement.view import View


def better_place(
    inventory: Inventory, unit: UnitRequest, waiting: Sequence[UnitRequest], now: float
) -> Placed | None:
    """Where it would go if it came now, after all that wait; None where that is no better: not
    nearer together, nor in a domain that is fuller without it, so that larger gaps stay."""
    record = inventory.units.get(unit.id)
    here = {pod: seat.node for pod, seat in record.seats.items()} if record else {}
    if not here or any(node not in inventory.nodes for node in here.values()):
        return None
    without = inventory.without(unit.id)
    decisions = place(without, [*waiting, unit], now)
    there = next(one for one in decisions if one.unit == unit.id)
    if not isinstance(there, Placed):
        return None
    before, after = _distance(unit, here, without), _distance(unit, there.nodes, without)
    return there if after < before else None


def _distance(
    unit: UnitRequest, places: Mapping[str, str], without: Inventory
) -> tuple[int, float, int, int, int]:
    """Less is better: the level of the domain that has all of it, pairs of pods that are apart,
    what is free there without it, its nodes, and what is free on those."""
    nodes = without.nodes
    domain = common_domain(unit, places, nodes)
    names = [level.name for level in unit.levels]
    rank = names.index(domain.level) if domain else len(names)
    level = Level(domain.level, domain.node_label) if domain else None
    around = [name for name in nodes if level is None or domain_of(nodes[name], level) == domain]
    scarce = View(without).scarce(unit)
    free = sum(without.free(name).get(scarce, 0) for name in around)
    apart = 1.0 - share_together(places.values(), nodes, asked(unit))
    chosen = set(places.values())
    left = sum(without.free(name).get(scarce, 0) for name in chosen)
    return rank, apart, free, len(chosen), left
