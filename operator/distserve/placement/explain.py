"""Why a unit waits, for its user: what is short, where, and what to do."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distserve.placement.decisions import Reason
from distserve.placement.domains import Group
from distserve.placement.matching import misfit
from distserve.placement.packing import Allowed, Budget, Part, give_back, pack, parts_of
from distserve.placement.quantities import PODS, Amounts, describe, number
from distserve.placement.requests import (
    Domain,
    Enforcement,
    InstanceRequest,
    Level,
    UnitRequest,
)
from distserve.placement.room import Room
from distserve.placement.view import View


@dataclass(frozen=True)
class Finding:
    reason: Reason
    message: str


@dataclass
class Explainer:
    """Asked once for each unit that a pass leaves waiting."""

    view: View
    room: Room
    emptied: Room
    budget: Budget

    def finding(
        self,
        unit: UnitRequest,
        level: Level | None,
        groups: Sequence[Group],
        pins: dict[str, str],
        allowed: Allowed,
    ) -> Finding:
        """`groups` are the level's domains that might do, `allowed` leaves out held nodes."""
        about = f"unit {unit.id.unit}"
        for instance in unit.instances:
            if not self.view.allowed(instance) and not set(instance.pod_names) <= set(pins):
                return Finding(Reason.NO_MATCHING_NODES, f"{about}: {self._no_node(instance)}")
        homes = {self.view.domain(node, level) for node in pins.values()}
        if len(homes) > 1 and level:
            return Finding(Reason.SPLIT, f"{about}: {_split(level, homes)}")
        parts = parts_of(unit, allowed, pins)
        free_of_holds = parts_of(unit, self.view.allowed, pins)
        groups = [g for g in groups if _has_nodes_for(g, free_of_holds)]
        if not pins and (larger := self._larger(unit, level)):
            return Finding(Reason.UNIT_LARGER_THAN_DOMAIN, f"{about} {larger}")
        if not groups:
            return Finding(Reason.NO_ROOM, f"{about}: {self._no_domain(unit, level, homes)}")
        held = self._fitting(free_of_holds, groups, self.room, self.view.scarce(unit))
        if held is not None:
            return Finding(
                Reason.HELD_FOR_ANOTHER,
                f"{about} would fit {_in(held, level)}, but nodes there are kept for a unit before "
                "it that has waited longer than reserveAfter. It follows when that one is placed; "
                "to go first it needs a higher priorityClassName",
            )
        return Finding(Reason.NO_ROOM, f"{about} {self._short(unit, level, groups, parts)}")

    def _fitting(
        self, parts: Sequence[Part], groups: Iterable[Group], room: Room, scarce: str
    ) -> Group | None:
        for group in groups:
            seats = pack(parts, group, room, scarce, self.budget)
            if seats is not None:
                give_back(seats, parts, room)
                return group
        return None

    def _no_node(self, instance: InstanceRequest) -> str:
        nodes = self.view.inventory.nodes
        if not nodes:
            return "the cluster has no nodes"
        whys = Counter(misfit(instance, node) or "" for node in nodes.values())
        counted = ", ".join(f"{count} {why}" for why, count in whys.most_common())
        return (
            f"{instance.name} may use none of the {_count(len(nodes), 'node')} ({counted}). "
            "Change its podTemplate's nodeSelector, affinity or tolerations, or those nodes"
        )

    def _larger(self, unit: UnitRequest, level: Level | None) -> str | None:
        """What is missing even with all nodes well and nothing else running; None: it would fit."""
        groups = [
            group
            for group in self.view.groups(level, usable=False)
            if unit.within in (None, group.domain)
        ]
        parts = parts_of(unit, self.view.allowed_when_well)
        scarce = self.view.scarce(unit)
        groups.sort(key=lambda group: -self.emptied.shelf(group, scarce).total)
        if not groups or self._fitting(parts, groups, self.emptied, scarce):
            return None
        short, group = _least_short(unit.total, parts, groups, self.emptied)
        cure = "Make the unit smaller (parallelism, instancesPerUnit)"
        if level:
            cure += ", choose a looser topology.packWithin"
        cure += " or add larger nodes" if not short else " or add nodes there"
        if short:
            return f"needs {_gap(short, level, groups, group)} at most, if all else left. {cure}"
        return f"{self._no_seat(parts, group, level, self.emptied, 'at most')}. {cure}"

    def _short(
        self, unit: UnitRequest, level: Level | None, groups: Sequence[Group], parts: list[Part]
    ) -> str:
        need: Counter[str] = Counter()
        for part in parts:
            need.update({name: count * len(part.pods) for name, count in part.each.items()})
        short, group = _least_short(need, parts, groups, self.room)
        note = self._unwell(group)
        cure = "Free that much there or add nodes"
        if level and unit.enforcement is Enforcement.REQUIRED and not unit.within:
            cure += "; topology.enforcement: Preferred lets it use a looser level"
        if short:
            return f"needs {_gap(short, level, groups, group)} free{note}. {cure}"
        return f"{self._no_seat(parts, group, level, self.room, 'free')}{note}. {cure}"

    def _no_seat(
        self, parts: Sequence[Part], group: Group, level: Level | None, room: Room, word: str
    ) -> str:
        """The sums would do, the nodes do not."""
        where = _in(group, level)
        for part in sorted(parts, key=lambda p: -max(p.each.values())):
            nodes = [node for node in group.nodes if node in part.allowed]
            for name, count in sorted(part.each.items(), key=lambda item: item[0] == PODS):
                most = max(nodes, key=lambda node: room.free(node).get(name, 0))
                have = max(room.free(most).get(name, 0), 0)
                if have < count:
                    return (
                        f"needs {describe(name, count)} on one node for {part.pods[0].pod}; "
                        f"the most {where} is {number(name, have)} {word} ({most})"
                    )
        return f"has enough {where} in sum, but its pods do not fit on the nodes side by side"

    def _unwell(self, group: Group) -> str:
        """The domain's nodes that cannot be used now."""
        domain = group.domain
        level = Level(domain.level, domain.node_label) if domain else None
        nodes = [
            node
            for node in self.view.inventory.nodes.values()
            if not node.usable and self.view.domain(node.name, level) == domain
        ]
        counts = {
            "cordoned": sum(node.ready for node in nodes),
            "not ready": sum(not node.ready for node in nodes),
        }
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"; nodes there that cannot be used: {found}" if found else ""

    def _no_domain(self, unit: UnitRequest, level: Level | None, homes: set[Domain | None]) -> str:
        home = unit.within or next(iter(homes), None)
        if home:
            return (
                f"{home.level} domain {home.value}, where it belongs, has no usable node for it. "
                "Bring its nodes back, or delete the unit's StatefulSets to have it placed anew"
            )
        where = f"{level.name} domain" if level else "cluster"
        return (
            f"no {where} has usable nodes for all of its instances. "
            "Make their podTemplates' selectors agree, or bring nodes back"
        )


def _has_nodes_for(group: Group, parts: Iterable[Part]) -> bool:
    return all(any(node in part.allowed for node in group.nodes) for part in parts)


@dataclass(frozen=True)
class Shortage:
    resource: str
    need: int
    have: int

    @property
    def share(self) -> float:
        return 1 - self.have / self.need


def _least_short(
    need: Amounts, parts: Sequence[Part], groups: Sequence[Group], room: Room
) -> tuple[list[Shortage], Group]:
    """What is missing in the group where least is, biggest first."""
    names = set().union(*(part.allowed for part in parts))

    def shortages(group: Group) -> list[Shortage]:
        nodes = [room.free(node) for node in group.nodes if node in names]
        found = [
            Shortage(name, count, sum(max(free.get(name, 0), 0) for free in nodes))
            for name, count in need.items()
        ]
        return sorted((s for s in found if s.have < s.need), key=lambda s: (-s.share, s.resource))

    return min(
        ((shortages(group), group) for group in groups),
        key=lambda pair: (pair[0][0].share if pair[0] else 0.0, pair[1].nodes[0]),
    )


def _gap(
    short: Sequence[Shortage], level: Level | None, groups: Sequence[Group], group: Group
) -> str:
    """`3 nvidia.com/gpu in one nvlink domain; the roomiest of 4 (c1.0) has 2`"""
    needs = " and ".join(describe(one.resource, one.need) for one in short)
    haves = " and ".join(number(one.resource, one.have) for one in short)
    if level is None or group.domain is None:
        return f"{needs}; the cluster has {haves}"
    if len(groups) == 1:
        return f"{needs} in {level.name} domain {group.domain.value}, which has {haves}"
    return (
        f"{needs} in one {level.name} domain; "
        f"the roomiest of {len(groups)} ({group.domain.value}) has {haves}"
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


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
