"""Why a unit waits, for its user: what is short, where, and what to do."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distserve.placement.decisions import Reason
from distserve.placement.domains import Group, Layer
from distserve.placement.matching import misfit
from distserve.placement.nodes import Node
from distserve.placement.packing import Budget, Part, parts_of
from distserve.placement.quantities import describe, number
from distserve.placement.requests import (
    Domain,
    Enforcement,
    InstanceRequest,
    Level,
    UnitRequest,
)
from distserve.placement.room import Room
from distserve.placement.shortage import Lack, fitting_group, least_lack
from distserve.placement.view import View


@dataclass(frozen=True)
class Finding:
    reason: Reason
    message: str


@dataclass(frozen=True)
class Facts:
    """The same for all units alike."""

    groups: int
    """Domains with usable nodes for all of the unit's instances."""
    larger: Lack | None = None
    """Even if all nodes were well and all else left."""
    held: Group | None = None
    """Has room, on nodes that are kept for another."""
    lack: Lack | None = None


@dataclass
class Explainer:
    """Asked when a pass has decided: what it knows of the room stays true."""

    view: View
    room: Room
    emptied: Room
    budget: Budget
    _known: dict[object, Facts] = field(default_factory=dict)

    def finding(
        self,
        unit: UnitRequest,
        level: Level | None,
        layer: Layer,
        pins: Mapping[str, str],
    ) -> Finding:
        """`layer` has the level's domains that might do."""
        about = f"unit {unit.id.unit}"
        for instance in unit.instances:
            if not self.view.allowed(instance) and not set(instance.pod_names) <= set(pins):
                return Finding(Reason.NO_MATCHING_NODES, f"{about}: {self._no_node(instance)}")
        homes = {self.view.domain(node, level) for node in pins.values()}
        if len(homes) > 1 and level:
            return Finding(Reason.SPLIT, f"{about}: {_split(level, homes)}")
        key = (self.view.shape(unit), level, unit.within, tuple(pins.items()))
        facts = self._known.get(key)
        if facts is None:
            facts = self._known[key] = self._facts(unit, level, layer, pins)
        parts = parts_of(unit, self.view.allowed, pins)
        if facts.larger:
            cure = _cure_for_larger(level, facts.larger)
            message = (
                f"{about} {_lack(facts.larger, parts, level, facts.groups, 'when empty')}{cure}"
            )
            return Finding(Reason.UNIT_LARGER_THAN_DOMAIN, message)
        if facts.held:
            return Finding(
                Reason.HELD_FOR_ANOTHER,
                f"{about} would fit {_in(facts.held, level)}, but nodes there are kept for a unit "
                "before it that has waited longer than reserveAfter. It follows when that one is "
                "placed; to go first it needs a higher priorityClassName",
            )
        if facts.lack:
            note, cure = self._unwell(facts.lack.group, unit), _cure_for_room(unit, level)
            lack = _lack(facts.lack, parts, level, facts.groups, "free")
            return Finding(Reason.NO_ROOM, f"{about} {lack}{note}{cure}")
        home = unit.within or next(iter(homes), None)
        if home:
            return Finding(Reason.NO_ROOM, f"{about}: {_no_node_at(home)}")
        return Finding(Reason.NO_MATCHING_NODES, f"{about}: {_no_domain(level)}")

    def _facts(
        self,
        unit: UnitRequest,
        level: Level | None,
        layer: Layer,
        pins: Mapping[str, str],
    ) -> Facts:
        scarce = self.view.scarce(unit)
        # Where it does not fit even so, the held nodes are not what it waits for.
        parts = parts_of(unit, self.view.allowed, pins)
        groups = [group for group in layer.groups if _has_nodes_for(group, parts)]
        whole = parts_of(unit, self.view.allowed_when_well)
        every = [
            group
            for group in self.view.layer(level, usable=False).groups
            if unit.within in (None, group.domain) and _has_nodes_for(group, whole)
        ]
        if not pins and every:
            every.sort(key=lambda group: -self.emptied.shelf(group, scarce).total)
            if not fitting_group(whole, every, self.emptied, scarce, self.budget):
                return Facts(len(every), larger=least_lack(whole, every, self.emptied, scarce))
        if not groups:
            return Facts(0)
        held = fitting_group(parts, groups, self.room, scarce, self.budget)
        if held:
            return Facts(len(groups), held=held)
        return Facts(len(groups), lack=least_lack(parts, groups, self.room, scarce))

    def _no_node(self, instance: InstanceRequest) -> str:
        nodes = self.view.inventory.nodes
        if not nodes:
            return "the cluster has no nodes"
        whys = Counter(misfit(instance, node) or "" for node in nodes.values())
        counted = ", ".join(f"{count} {why}" for why, count in whys.most_common())
        noun = "node" if len(nodes) == 1 else "nodes"
        return (
            f"{instance.name} may use none of the {len(nodes)} {noun} ({counted}). "
            "Change its podTemplate's nodeSelector, affinity or tolerations, or those nodes"
        )

    def _unwell(self, group: Group, unit: UnitRequest) -> str:
        """The domain's nodes that cannot be used now, but could if they were well."""
        domain = group.domain
        level = Level(domain.level, domain.node_label) if domain else None
        found: Counter[str] = Counter()
        for node in self.view.inventory.nodes.values():
            if self.view.domain(node.name, level) == domain:
                whys = (_ails(instance, node) for instance in unit.instances)
                found.update([why for why in whys if why][:1])
        counted = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
        return f" (not counting nodes there: {counted})" if counted else ""


def _ails(instance: InstanceRequest, node: Node) -> str | None:
    """What keeps the instance off this node until the node is well."""
    why = misfit(instance, node)
    return why if why and misfit(instance, node, when_well=True) is None else None


def _has_nodes_for(group: Group, parts: Iterable[Part]) -> bool:
    return all(any(node in part.allowed for node in group.nodes) for part in parts)


def _lack(lack: Lack, parts: Sequence[Part], level: Level | None, groups: int, word: str) -> str:
    """`needs 3 nvidia.com/gpu in one nvlink domain; the roomiest of 4 (c1.0) has 2 free`"""
    domain = lack.group.domain
    if lack.node:
        short, pod = lack.node.short, parts[lack.node.part].pods[0].pod
        return (
            f"needs {describe(short.resource, short.need)} on one node for {pod}; the most "
            f"{_in(lack.group, level)} is {number(short.resource, short.have)} {word} "
            f"({lack.node.node})"
        )
    if not lack.sums:
        return f"does not fit {_in(lack.group, level)}: enough {word} in sum, not side by side"
    needs = " and ".join(describe(one.resource, one.need) for one in lack.sums)
    haves = " and ".join(number(one.resource, one.have) for one in lack.sums)
    if level is None or domain is None:
        return f"needs {needs}; the cluster has {haves} {word}"
    if groups == 1:
        return f"needs {needs} in {level.name} domain {domain.value}, which has {haves} {word}"
    return (
        f"needs {needs} in one {level.name} domain; "
        f"the roomiest of {groups} ({domain.value}) has {haves} {word}"
    )


def _cure_for_larger(level: Level | None, lack: Lack) -> str:
    looser = ", choose a looser topology.packWithin" if level else ""
    nodes = "add nodes there" if lack.sums else "add larger nodes"
    return f". Make the unit smaller (parallelism, instancesPerUnit){looser} or {nodes}"


def _cure_for_room(unit: UnitRequest, level: Level | None) -> str:
    cure = ". Free that much there or add nodes"
    if level and unit.enforcement is Enforcement.REQUIRED and not unit.within:
        cure += "; topology.enforcement: Preferred lets it use a looser level"
    return cure


def _no_node_at(home: Domain) -> str:
    return (
        f"{home.level} domain {home.value}, where it belongs, has no usable node for it. "
        "Bring its nodes back, or delete the unit's StatefulSets to have it placed anew"
    )


def _no_domain(level: Level | None) -> str:
    where = f"{level.name} domain" if level else "cluster"
    return (
        f"no {where} has usable nodes for all of its instances. "
        "Make their podTemplates' selectors agree, or bring nodes back"
    )


def _in(group: Group, level: Level | None) -> str:
    if level is None or group.domain is None:
        return "in the cluster"
    return f"in {level.name} domain {group.domain.value}"


def _split(level: Level, homes: set[Domain | None]) -> str:
    values = ", ".join(sorted(home.value for home in homes if home))
    return (
        f"its pods run in {len(homes)} {level.name} domains ({values}), since nodes' labels "
        "changed. They keep running; delete the unit's StatefulSets to have it placed whole again"
    )
