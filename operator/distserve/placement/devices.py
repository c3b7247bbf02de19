"""Devices of dynamic resource allocation (DRA) as amounts, so that packing knows no other kind.

    ResourceSlices -- devices of a node --DeviceClasses' selectors--> what each class has there
    ResourceClaims -- devices that are allocated ------------------> what of it is taken

A class counts as the resource `deviceclass.resource.kubernetes.io/NAME`, which is Kubernetes' own
name for it where a pod asks for devices as for an extended resource (KEP-5004). What a unit's pods
claim stands in an annotation of theirs and is counted with them, reserved or bound; here, of their
claims, only what an allocated device is for *other* classes.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any, NamedTuple

from distserve.placement.quantities import Amounts
from distserve.placement.selectors import Match, NotUnderstood, device_facts, selector

CLASS_RESOURCE = "deviceclass.resource.kubernetes.io/"
OWN_CLAIM = "distserve-"
"""How the claims of a unit's pods begin, in the pod's spec."""
_POD_CLAIM_NAME = "resource.kubernetes.io/pod-claim-name"
_KEEPS_OFF = ("NoSchedule", "NoExecute")


def class_resource(name: str) -> str:
    """What a DeviceClass's devices are counted as."""
    return f"{CLASS_RESOURCE}{name}"


class DeviceId(NamedTuple):
    driver: str
    pool: str
    device: str


class Pool(NamedTuple):
    driver: str
    name: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A ResourceSlice of one node's devices, kept small: most are looked at once."""

    node: str
    pool: Pool
    generation: int
    slices: int
    """Of the pool: with fewer, it is being published."""
    packed: bytes

    @property
    def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(zlib.decompress(self.packed))
        return found


@dataclass(frozen=True, slots=True)
class DeviceClass:
    matches: Callable[[Mapping[str, Any]], bool]
    unclear: str
    """Why its devices cannot be told: then each device counts as one of them."""


class Held(NamedTuple):
    """By a claim."""

    device: DeviceId
    counted_as: str
    """The class as which a unit's own pod has it counted already; empty for everybody else."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one node, by class resource."""

    allocatable: Amounts
    used: Amounts


NOTHING = Tally({}, {})


@dataclass
class Devices:
    """Each method may be called again with the same thing."""

    _slices: dict[str, Slice] = field(default_factory=dict)
    _classes: dict[str, DeviceClass] = field(default_factory=dict)
    _claims: dict[str, tuple[Held, ...]] = field(default_factory=dict)
    _of_node: dict[str, set[str]] = field(default_factory=dict)
    _nodes_of_pool: dict[Pool, str] = field(default_factory=dict)
    _holders: dict[DeviceId, str] = field(default_factory=dict)
    _tallies: dict[str, Tally] = field(default_factory=dict)

    def put(self, kind: str, document: Mapping[str, Any]) -> None:
        """A DeviceClass, ResourceSlice or ResourceClaim, added or changed. Raises ValueError for a
        quantity that is none, KeyError for what is no such object."""
        puts = {
            "DeviceClass": self.put_class,
            "ResourceSlice": self.put_slice,
            "ResourceClaim": self.put_claim,
        }
        puts[kind](document)

    def drop(self, kind: str, name: str, uid: str) -> None:
        """One of them is gone."""
        if kind == "DeviceClass":
            self.drop_class(name)
        elif kind == "ResourceSlice":
            self.drop_slice(name)
        else:
            self.drop_claim(uid)

    def put_slice(self, document: Mapping[str, Any]) -> None:
        """A ResourceSlice. Devices that belong to no single node are not counted."""
        name, spec = document["metadata"]["name"], document["spec"]
        self.drop_slice(name)
        node = spec.get("nodeName")
        if not node:
            return
        found = spec["pool"]
        pool = Pool(intern(spec["driver"]), intern(found["name"]))
        packed = zlib.compress(json.dumps(spec.get("devices") or []).encode())
        self._slices[name] = Slice(
            intern(node), pool, found["generation"], found["resourceSliceCount"], packed
        )
        self._of_node.setdefault(node, set()).add(name)
        self._nodes_of_pool[pool] = node
        self._tallies.pop(node, None)

    def drop_slice(self, name: str) -> None:
        known = self._slices.pop(name, None)
        if known is None:
            return
        self._of_node[known.node].discard(name)
        if not self._of_node[known.node]:
            del self._of_node[known.node]
        self._tallies.pop(known.node, None)

    def put_class(self, document: Mapping[str, Any]) -> None:
        """A DeviceClass."""
        selectors = (document.get("spec") or {}).get("selectors") or ()
        self._classes[document["metadata"]["name"]] = _class_of(selectors)
        self._tallies.clear()

    def drop_class(self, name: str) -> None:
        if self._classes.pop(name, None) is not None:
            self._tallies.clear()

    def put_claim(self, document: Mapping[str, Any]) -> None:
        """A ResourceClaim, allocated or not."""
        uid = document["metadata"]["uid"]
        self.drop_claim(uid)
        if held := tuple(_held(document)):
            self._claims[uid] = held
            for one in held:
                self._holders[one.device] = one.counted_as
                self._tell(one.device)

    def drop_claim(self, uid: str) -> None:
        for one in self._claims.pop(uid, ()):
            self._holders.pop(one.device, None)
            self._tell(one.device)

    def of_node(self, node: str) -> Tally:
        if node not in self._of_node:
            return NOTHING
        found = self._tallies.get(node)
        if found is None:
            found = self._tallies[node] = self._tally(node)
        return found

    def unheld(self) -> "Devices":
        """The same devices without claims."""
        return Devices(
            _slices=self._slices,
            _classes=self._classes,
            _of_node=self._of_node,
            _nodes_of_pool=self._nodes_of_pool,
        )

    @property
    def notes(self) -> list[str]:
        """What is counted otherwise than it is, in a sentence each."""
        return [
            f"DeviceClass {name} counts every device of a node: {found.unclear}"
            for name, found in sorted(self._classes.items())
            if found.unclear and self._slices
        ]

    def _tell(self, device: DeviceId) -> None:
        node = self._nodes_of_pool.get(Pool(device.driver, device.pool))
        if node is not None:
            self._tallies.pop(node, None)

    def _tally(self, node: str) -> Tally:
        allocatable: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for one in _published([self._slices[name] for name in sorted(self._of_node[node])]):
            for device in one.devices:
                if _keeps_off(device):
                    continue
                facts = device_facts(one.pool.driver, device)
                id = DeviceId(one.pool.driver, one.pool.name, device["name"])
                counted_as = self._holders.get(id)
                for name, found in self._classes.items():
                    if found.matches(facts):
                        allocatable[class_resource(name)] += 1
                        if counted_as is not None and name != counted_as:
                            used[class_resource(name)] += 1
        return Tally(dict(allocatable), dict(used))


def _published(slices: Iterable[Slice]) -> list[Slice]:
    """Those of each pool's newest generation, where it has all of them: as the scheduler looks."""
    pools: dict[Pool, list[Slice]] = {}
    for one in slices:
        pools.setdefault(one.pool, []).append(one)
    found: list[Slice] = []
    for members in pools.values():
        newest = max(one.generation for one in members)
        current = [one for one in members if one.generation == newest]
        if len(current) == current[0].slices:
            found += current
    return found


def _keeps_off(device: Mapping[str, Any]) -> bool:
    """Tainted, or shared by claims: neither is one whole device for one of them."""
    taints = device.get("taints") or ()
    return bool(device.get("allowMultipleAllocations")) or any(
        one.get("effect") in _KEEPS_OFF for one in taints
    )


def _class_of(selectors: Iterable[Mapping[str, Any]]) -> DeviceClass:
    """Every selector must hold. Without any, all devices are of the class."""
    all_of: list[Match] = []
    for one in selectors:
        try:
            all_of.append(selector((one.get("cel") or {}).get("expression") or ""))
        except NotUnderstood as error:
            return DeviceClass(lambda device: True, f"its selector is not understood: {error}")
    return DeviceClass(lambda device: all(match(device) for match in all_of), "")


def _held(document: Mapping[str, Any]) -> Iterable[Held]:
    allocation = (document.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    asked = ((document.get("spec") or {}).get("devices") or {}).get("requests") or ()
    classes = {one["name"]: (one.get("exactly") or {}).get("deviceClassName", "") for one in asked}
    annotations = document["metadata"].get("annotations") or {}
    own = annotations.get(_POD_CLAIM_NAME, "").startswith(OWN_CLAIM)
    for one in results:
        if not one.get("adminAccess"):
            device = DeviceId(intern(one["driver"]), intern(one["pool"]), intern(one["device"]))
            yield Held(device, intern(classes.get(one["request"], "")) if own else "")
