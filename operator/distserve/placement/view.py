"""What does not change during a pass: domains, who may go where, what is scarce."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from distserve.placement.domains import Group, Layer, domain_of, layer_of
from distserve.placement.inventory import Inventory
from distserve.placement.matching import constraints_key, misfit
from distserve.placement.quantities import PODS, Amounts
from distserve.placement.requests import CLUSTER, Domain, InstanceRequest, Level, UnitRequest


@dataclass(frozen=True, eq=False)
class Refused:
    """Domains that refused some units. Made once a pass for all of whom they are the same."""

    domains: tuple[frozenset[str], ...]
    """Nodes of each, in the order of the requests, of those that are still there."""

    def away(self, tried: int) -> frozenset[str]:
        """Nodes that are left out when the first `tried` are let in again."""
        return self._away[tried]

    @cached_property
    def _away(self) -> list[frozenset[str]]:
        count = len(self.domains)
        return [frozenset[str]().union(*self.domains[tried:]) for tried in range(count + 1)]


NOWHERE = Refused(())


@dataclass
class View:
    inventory: Inventory
    _layers: dict[tuple[Level | None, bool], Layer] = field(default_factory=dict)
    _outer: dict[tuple[Layer, Level], list[Domain | None]] = field(default_factory=dict)
    _inside: dict[tuple[Group, tuple[Level, ...]], list[Layer]] = field(default_factory=dict)
    _group_of: dict[Level | None, dict[str, Group]] = field(default_factory=dict)
    _allowed: dict[tuple[str, bool], frozenset[str]] = field(default_factory=dict)
    _keys: dict[int, tuple[InstanceRequest, str]] = field(default_factory=dict)
    _named: dict[Level, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    _refused: dict[object, Refused] = field(default_factory=dict)
    _refusals: dict[tuple[Refused, Level], Counter[Domain | None]] = field(default_factory=dict)

    @cached_property
    def totals(self) -> Amounts:
        found: Counter[str] = Counter()
        for node in self.inventory.nodes:
            found.update(self.inventory.allocatable(node))
        return found

    def layer(self, level: Level | None, usable: bool = True) -> Layer:
        """Domains with their usable nodes, or with all."""
        found = self._layers.get((level, usable))
        if found is None:
            every = sorted(self.inventory.nodes.values(), key=lambda node: node.name)
            nodes = (node for node in every if node.usable or not usable)
            found = self._layers[(level, usable)] = layer_of(nodes, level)
        return found

    def domain(self, node: str, level: Level | None) -> Domain | None:
        return domain_of(self.inventory.nodes[node], level) if level else None

    def outer(self, layer: Layer, level: Level | None) -> Sequence[Domain | None]:
        """The domain of a looser level that each of these groups lies in."""
        if level is None:
            return [None] * len(layer.groups)
        found = self._outer.get((layer, level))
        if found is None:
            found = [self.domain(group.nodes[0], level) for group in layer.groups]
            self._outer[(layer, level)] = found
        return found

    def inside(self, group: Group, levels: Sequence[Level]) -> Sequence[Layer]:
        """The domains of these levels that the group consists of."""
        key = (group, tuple(levels))
        found = self._inside.get(key)
        if found is None:
            nodes = [self.inventory.nodes[name] for name in group.nodes]
            found = self._inside[key] = [layer_of(nodes, level) for level in levels]
        return found

    def group_of(self, node: str, level: Level | None) -> Group:
        """Of a usable node."""
        found = self._group_of.get(level)
        if found is None:
            found = {name: group for group in self.layer(level).groups for name in group.nodes}
            self._group_of[level] = found
        return found[node]

    def refused(self, unit: UnitRequest) -> Refused:
        if not unit.refused:
            return NOWHERE
        key = (unit.refused, unit.levels)
        found = self._refused.get(key)
        if found is None:
            sets = (self._nodes_of(name, unit.levels) for name in unit.refused)
            found = self._refused[key] = Refused(tuple(nodes for nodes in sets if nodes))
        return found

    def refusals(self, refused: Refused, level: Level | None) -> Counter[Domain | None]:
        """How many of them have nodes in each domain of the level."""
        if level is None or not refused.domains:
            return Counter()
        found = self._refusals.get((refused, level))
        if found is None:
            found = self._refusals[(refused, level)] = self.counts(refused.domains, level)
        return found

    def counts(
        self, some: Collection[Collection[str]], level: Level | None
    ) -> Counter[Domain | None]:
        """How many of these sets of nodes have one in each domain."""
        found: Counter[Domain | None] = Counter()
        if level is not None:
            nodes = self.inventory.nodes
            for names in some:
                found.update({domain_of(nodes[name], level) for name in names})
        return found

    def _nodes_of(self, name: str, levels: Sequence[Level]) -> frozenset[str]:
        if name == CLUSTER:
            return frozenset(self.inventory.nodes)
        return frozenset[str]().union(*(self._by_name(one).get(name, ()) for one in levels))

    def _by_name(self, level: Level) -> Mapping[str, frozenset[str]]:
        """Nodes of each domain, usable or not. Without the level's label one may be named alike."""
        found = self._named.get(level)
        if found is None:
            names: dict[str, set[str]] = defaultdict(set)
            for group in self.layer(level, usable=False).groups:
                names[str(group.domain)].update(group.nodes)
            found = {name: frozenset(nodes) for name, nodes in names.items()}
            self._named[level] = found
        return found

    def constraints(self, instance: InstanceRequest) -> str:
        # By identity: an instance's mappings have no hash, and it lives as long as the pass.
        found = self._keys.get(id(instance))
        if found is None:
            found = self._keys[id(instance)] = (instance, constraints_key(instance))
        return found[1]

    def allowed(self, instance: InstanceRequest) -> frozenset[str]:
        """Nodes that the instance's own constraints leave, whatever runs there."""
        return self._matching(instance, when_well=False)

    def allowed_when_well(self, instance: InstanceRequest) -> frozenset[str]:
        """As if all nodes were ready and none cordoned."""
        return self._matching(instance, when_well=True)

    def _matching(self, instance: InstanceRequest, when_well: bool) -> frozenset[str]:
        key = (self.constraints(instance), when_well)
        found = self._allowed.get(key)
        if found is None:
            nodes = self.inventory.nodes.values()
            found = frozenset(n.name for n in nodes if misfit(instance, n, when_well) is None)
            self._allowed[key] = found
        return found

    def scarce(self, unit: UnitRequest) -> str:
        """The resource of which the unit takes the largest share of the cluster."""
        return self._largest_share(unit)[1]

    def share(self, unit: UnitRequest) -> float:
        """Of the cluster, of that resource: how large the unit is."""
        return self._largest_share(unit)[0]

    def _largest_share(self, unit: UnitRequest) -> tuple[float, str]:
        totals = self.totals
        shares = (
            (count / totals[name] if totals.get(name) else float("inf"), name)
            for name, count in unit.total.items()
        )
        return max(shares, default=(0.0, PODS))

    def shape(self, unit: UnitRequest) -> object:
        """Equal for units that fit or do not fit alike."""
        return tuple(
            (one.pods, tuple(sorted(one.amounts.items())), self.constraints(one))
            for one in unit.instances
        )
