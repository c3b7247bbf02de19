"""The cluster as placement sees it, kept by the operator's watches so that no pass lists anything.

    a unit's place for a pod:  reserved --bound--> the pod's own node and requests
                                  ^----pod gone----'         until release(unit)

So between decision and binding, and between a pod's end and its replacement, the room is counted
once, as long as the unit is reserved. A pod that ends while its successor's room is reserved on
another node counts there as well: that room is not free although the name is still taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from distserve.placement.devices import Devices
from distserve.placement.nodes import Node, node_from
from distserve.placement.pods import Pod, larger, pod_from
from distserve.placement.quantities import Amounts
from distserve.placement.requests import UnitId, UnitRequest

ByNode = dict[str, dict[str, int]]
"""Amounts by node name."""


class Seat(NamedTuple):
    """The room that one pod of a unit takes or will take."""

    node: str
    amounts: Amounts


class Offer(NamedTuple):
    """A node that has some of a resource, whoever may use it, and how much when it is empty."""

    node: Node
    amount: int


@dataclass(slots=True)
class UnitRecord:
    """What is known of one unit's pods, by pod name."""

    reserved: dict[str, Seat]
    bound: dict[str, Pod]

    def seat(self, pod: str) -> Seat | None:
        """Where it is; of one that ends, where its successor is to be."""
        found = self.bound.get(pod)
        if found is None or (found.terminating and pod in self.reserved):
            return self.reserved.get(pod)
        return Seat(found.node, found.amounts)

    @property
    def seats(self) -> dict[str, Seat]:
        names = {**self.reserved, **self.bound}
        return {name: seat for name in names if (seat := self.seat(name))}

    @property
    def taken(self) -> ByNode:
        """All that is counted for it: what runs, and what ends or comes."""
        found = self.changing
        for pod in self.bound.values():
            if not pod.terminating:
                _add(found, pod.node, pod.amounts)
        return found

    @property
    def changing(self) -> ByNode:
        """What ends is the room of what comes there, so on each node the larger of both counts. On
        different nodes both do: pods keep their names, and who comes waits for who ends."""
        ending = self.ending
        coming: ByNode = {}
        for name, seat in self.reserved.items():
            pod = self.bound.get(name)
            if pod is None or pod.terminating:
                _add(coming, seat.node, seat.amounts)
        nodes = {**ending, **coming}
        return {node: larger(ending.get(node, {}), coming.get(node, {})) for node in nodes}

    @property
    def ending(self) -> ByNode:
        found: ByNode = {}
        for pod in self.bound.values():
            if pod.terminating:
                _add(found, pod.node, pod.amounts)
        return found


class Inventory:
    """Nodes, what their pods take, and what was decided for pods that are not bound yet.

    Every method may be called again with the same thing: nothing is counted twice.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._pods: dict[str, Pod] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._units: dict[UnitId, UnitRecord] = {}
        self._used: ByNode = {}
        """Also of nodes that are not known (yet, or any more)."""
        self._permanent: ByNode = {}
        self.devices = Devices()
        """Those that are claimed: DRA's slices, classes and claims are put there."""

    # What the watches tell

    def put_node(self, document: Mapping[str, Any]) -> None:
        """A Node was added or changed. Raises ValueError for a quantity that is none."""
        node = node_from(document)
        self._nodes[node.name] = node

    def drop_node(self, name: str) -> None:
        self._nodes.pop(name, None)

    def put_pod(self, document: Mapping[str, Any]) -> None:
        """A Pod was added or changed. Raises ValueError for a quantity that is none."""
        pod = pod_from(document)
        metadata = document["metadata"]
        self.drop_pod(metadata["uid"])
        if pod is None:
            return
        name = (pod.namespace, pod.name)
        if name in self._uids:  # Another of its name: it is gone, only the news is late.
            self.drop_pod(self._uids[name])
        self._uids[name] = pod.uid
        self._pods[pod.uid] = pod
        if pod.permanent:
            _add(self._permanent, pod.node, pod.amounts)
        if pod.unit is None:
            _add(self._used, pod.node, pod.amounts)
            return
        record = self._record(pod.unit)
        self._count(record, -1)
        record.bound[pod.name] = pod
        self._count(record)

    def drop_pod(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        del self._uids[(pod.namespace, pod.name)]
        if pod.permanent:
            _add(self._permanent, pod.node, pod.amounts, -1)
        if pod.unit is None:
            _add(self._used, pod.node, pod.amounts, -1)
            return
        record = self._units[pod.unit]
        self._count(record, -1)
        del record.bound[pod.name]
        self._count(record)
        self._forget_if_empty(pod.unit)

    # What was decided

    def reserve(self, unit: UnitRequest, nodes: Mapping[str, str]) -> None:
        """Counts the unit's pods on these nodes until each is bound, and again while it is not.

        `nodes` is Placed.nodes, or what a deployment's own StatefulSets say after a restart: pods
        without an entry are not counted. Replaces what was reserved for the unit before.
        """
        self.release(unit.id)
        record = self._record(unit.id)
        self._count(record, -1)
        for instance in unit.instances:
            for pod in instance.pod_names:
                if pod in nodes:
                    record.reserved[pod] = Seat(nodes[pod], instance.amounts)
        self._count(record)
        self._forget_if_empty(unit.id)

    def release(self, unit: UnitId) -> None:
        """The unit was deleted or is to be placed anew; bound pods count until they are gone."""
        if (record := self._units.get(unit)) is not None:
            self.forgo(unit, list(record.reserved))

    def forgo(self, unit: UnitId, pods: Iterable[str]) -> None:
        """No room is kept any more for these pods of a known unit; bound ones count until they are
        gone."""
        record = self._units[unit]
        self._count(record, -1)
        for pod in pods:
            record.reserved.pop(pod, None)
        self._count(record)
        self._forget_if_empty(unit)

    # What a pass reads

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def units(self) -> Mapping[UnitId, UnitRecord]:
        """Units with reserved or bound pods."""
        return self._units

    def allocatable(self, node: str) -> Amounts:
        """Of a known node, its devices by class among them."""
        devices = self.devices.of_node(node).allocatable
        found = self._nodes[node].allocatable
        return {**found, **devices} if devices else found

    def offers(self, resource: str) -> list[Offer]:
        """Of all known nodes, devices by class among the resources."""
        found = (Offer(n, self.allocatable(n.name).get(resource, 0)) for n in self._nodes.values())
        return [offer for offer in found if offer.amount]

    def free(self, node: str) -> dict[str, int]:
        """Of a known node. Below zero where somebody took what was decided for another."""
        used, claimed = self._used.get(node, {}), self.devices.of_node(node).used
        return {
            name: count - used.get(name, 0) - claimed.get(name, 0)
            for name, count in self.allocatable(node).items()
        }

    def free_when_empty(self, node: str) -> dict[str, int]:
        """What would be free if only pods that belong to the node itself were there."""
        kept = self._permanent.get(node, {})
        return {name: count - kept.get(name, 0) for name, count in self.allocatable(node).items()}

    def emptied(self) -> "Inventory":
        """The same nodes, with nothing but the pods that belong to them."""
        found = Inventory()
        found._nodes = dict(self._nodes)
        found.devices = self.devices.unheld()
        found._used = {node: dict(amounts) for node, amounts in self._permanent.items()}
        found._permanent = {node: dict(amounts) for node, amounts in self._permanent.items()}
        return found

    def without(self, unit: UnitId) -> "Inventory":
        """As if the unit were gone, with its pods; to be read, not to be kept up to date."""
        found = Inventory()
        found._nodes, found._permanent, found.devices = self._nodes, self._permanent, self.devices
        found._units = {known: record for known, record in self._units.items() if known != unit}
        found._used = {node: dict(amounts) for node, amounts in self._used.items()}
        if unit in self._units:
            found._count(self._units[unit], -1)
        return found

    def vacate(self, unit: UnitId) -> None:
        """As if the unit were gone, with its pods."""
        self.release(unit)
        record = self._units.get(unit)
        for pod in list(record.bound.values()) if record else ():
            self.drop_pod(pod.uid)

    def pods_on(self, node: str) -> Iterator[Pod]:
        """Bound there; a walk over all pods, for messages and tests."""
        return (pod for pod in self._pods.values() if pod.node == node)

    def _record(self, unit: UnitId) -> UnitRecord:
        return self._units.setdefault(unit, UnitRecord({}, {}))

    def _forget_if_empty(self, unit: UnitId) -> None:
        record = self._units[unit]
        if not record.reserved and not record.bound:
            del self._units[unit]

    def _count(self, record: UnitRecord, sign: int = 1) -> None:
        for node, amounts in record.taken.items():
            _add(self._used, node, amounts, sign)


def inventory_of(
    nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]] = ()
) -> Inventory:
    """From lists, as files and tests have them."""
    found = Inventory()
    for document in nodes:
        found.put_node(document)
    for document in pods:
        found.put_pod(document)
    return found


def _add(counts: ByNode, node: str, amounts: Amounts, sign: int = 1) -> None:
    used = counts.setdefault(node, {})
    for name, count in amounts.items():
        used[name] = used.get(name, 0) + sign * count
        if not used[name]:
            del used[name]
    if not used:
        del counts[node]
