"""What the watches have shown, kept small: a reconcile reads this and not the API server.

Filled from three sides, in any order: watches, the answers to our own writes, and the comparison
with a listing (`resync`), which finds what a watch did not tell.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from distserve.api.accelerator import DEFAULT_RESOURCE_NAME, AcceleratorType
from distserve.operator.flavors import Offered
from distserve.operator.kinds import (
    CHILDREN,
    DEPLOYMENTS,
    DEVICES,
    NAMESPACES,
    NODES,
    OFFERED,
    OPTIONAL_CHILDREN,
    PODS,
    PRIORITY_CLASSES,
    WATCHED,
    Kind,
)
from distserve.operator.model import Features, Key, Object, Observed, Pod, Ref
from distserve.operator.records import (
    conditions_of,
    owner,
    pack,
    pod_key,
    pod_record,
    unpack,
    version,
)
from distserve.placement.devices import class_resource
from distserve.placement.inventory import Inventory, Offer

log = logging.getLogger(__name__)

_CHILD_KINDS = frozenset((*CHILDREN, *OPTIONAL_CHILDREN))

Name = tuple[str, str]
"""(namespace, name); the namespace is empty where the kind has none."""


class Seen(NamedTuple):
    uid: str
    version: int


class PriorityClass(NamedTuple):
    value: int
    default: bool
    """For pods that name none."""


class Child(NamedTuple):
    owner_uid: str
    text: bytes


class Store:
    """`put` and `drop` may be called again with the same object, or with an older one."""

    def __init__(self) -> None:
        self.features = Features()
        """Of the cluster; `features_of` adds the namespace's labels."""
        self.inventory = Inventory()
        """Nodes and what all pods take of them."""
        self._seen: dict[Kind, dict[Name, Seen]] = {kind: {} for kind in WATCHED}
        self._ended: dict[str, str] = {}
        """By uid, since when it is gone, of what a watch has not shown the end yet."""
        self._deployments: dict[Key, bytes] = {}
        self._conditions: dict[Key, tuple[tuple[str, str, str], ...]] = {}
        self._children: dict[Key, dict[Ref, Child]] = {}
        """By the deployment's name: one that was deleted and made anew has two uids here."""
        self._child_keys: dict[tuple[str, Ref], Key] = {}
        self._pods: dict[Key, dict[str, Pod]] = {}
        self._pod_keys: dict[Name, Key] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._priority_classes: dict[str, PriorityClass] = {}
        self._offers: dict[str, tuple[Offer, ...]] = {}
        """By resource, what each node has of it: read by each reconcile, changed seldom."""
        self._offered = Offered()

    @property
    def keys(self) -> list[Key]:
        return list(self._deployments)

    def conditions(self) -> Counter[tuple[str, str, str]]:
        """How many deployments have a condition of this type with this status and reason."""
        return Counter(one for conditions in self._conditions.values() for one in conditions)

    def seen(self, kind: Kind) -> Mapping[Name, Seen]:
        """Every object of the kind that is there, as far as is known."""
        return self._seen[kind]

    def watches(self, kind: Kind) -> bool:
        return kind in self._seen

    def features_of(self, namespace: str) -> Features:
        """With the namespace's labels and the priority classes."""
        classes = self._priority_classes
        # Of several defaults the API server takes the least.
        default = min((one.value for one in classes.values() if one.default), default=0)
        return replace(
            self.features,
            namespace_labels=self._namespaces.get(namespace, {}),
            priorities={"": default} | {name: one.value for name, one in classes.items()},
            flavors=self._offered.flavors,
            queue_priorities=self._offered.priorities,
            volcano_queues=self._offered.queues,
            kai_queues=self._offered.kai_queues,
        )

    def observe(self, key: Key, now: float) -> Observed | None:
        """None: there is no such deployment."""
        text = self._deployments.get(key)
        if text is None:
            return None
        uid = self._seen[DEPLOYMENTS][key].uid
        children = {
            ref: unpack(child.text)
            for ref, child in self._children.get(key, {}).items()
            if child.owner_uid == uid
        }
        document = unpack(text)
        pods = tuple(pod for _, pod in sorted(self._pods.get(key, {}).items()))
        return Observed(
            document=document,
            children=children,
            pods=pods,
            features=self.features_of(key.namespace),
            now=now,
            accelerators=self._accelerators(document),
            nodes={pod.node: self.inventory.nodes.get(pod.node) for pod in pods if pod.node},
        )

    def put(self, kind: Kind, document: Object) -> set[Key]:
        """An object was seen; returns the deployments for which that may mean something.

        The answer to an own write does not make its watch event old: somebody else's change may
        have been in it.
        """
        metadata = document["metadata"]
        if since := self._ended.get(metadata["uid"]):  # Told late: it was so before its end.
            document = {**document, "metadata": {"deletionTimestamp": since, **metadata}}
        name = (metadata.get("namespace", ""), metadata["name"])
        found, known = Seen(metadata["uid"], version(document)), self._seen[kind].get(name)
        if known is not None and known.version > found.version:
            return set()
        self._seen[kind][name] = found
        if kind == DEPLOYMENTS:
            self._deployments[Key(*name)] = pack(document)
            self._conditions[Key(*name)] = conditions_of(document)
            return {Key(*name)}
        if kind == PODS:
            return self._put_pod(name, document)
        if kind == NODES:
            return self._put_node(name[1], document)
        if kind == NAMESPACES:
            return self._put_namespace(name[1], metadata.get("labels") or {})
        if kind == PRIORITY_CLASSES:
            return self._put_priority_class(name[1], document)
        if kind in DEVICES:
            self._put_devices(kind, document)
            return set()
        if kind in OFFERED:
            return set(self._deployments) if self._offered.put(kind, document) else set()
        return self._put_child(name, Ref(kind.api_version, kind.kind, name[1]), document)

    def going(self, kind: Kind, name: Name, uid: str, answer: Object, since: str) -> None:
        """The answer to an own Delete: what it was about goes, until a watch shows its end. That
        may have come before the answer: what is not here any more does not come back by it."""
        known = self._seen[kind].get(name)
        if known is None or known.uid != uid:
            return
        document = answer
        if answer.get("kind") == "Status":  # Nothing of it is told.
            ref = Ref(kind.api_version, kind.kind, name[1])
            key = self._child_keys.get((name[0], ref))
            if key is None:
                return
            document = unpack(self._children[key][ref].text)
        if "deletionTimestamp" not in document["metadata"]:  # It went at once.
            self._ended[uid] = since
        self.put(kind, document)

    def drop(self, kind: Kind, name: Name, uid: str) -> set[Key]:
        """It is gone. Does nothing when another of its name is there already."""
        self._ended.pop(uid, None)
        known = self._seen[kind].get(name)
        if known is None or known.uid != uid:
            return set()
        del self._seen[kind][name]
        if kind == DEPLOYMENTS:
            del self._deployments[Key(*name)], self._conditions[Key(*name)]
            return {Key(*name)}
        if kind == PODS:
            self.inventory.drop_pod(uid)
            return self._forget_pod(name)
        if kind == NODES:
            self.inventory.drop_node(name[1])
            self._offers.clear()
            return self._keys_on(name[1])
        if kind == NAMESPACES:
            self._namespaces.pop(name[1], None)
            return set()
        if kind == PRIORITY_CLASSES:
            del self._priority_classes[name[1]]
            return set(self._deployments)
        if kind in DEVICES:
            self.inventory.devices.drop(kind.kind, name[1], uid)
            self._offers.clear()
            return set()
        if kind in OFFERED:
            self._offered.drop(kind, name[1])
            return set()
        return self._forget_child(name[0], Ref(kind.api_version, kind.kind, name[1]))

    def _accelerators(self, document: Object) -> tuple[Offer, ...]:
        wanted = document["spec"].get("accelerator") or {}
        if wanted.get("type") == AcceleratorType.CPU:
            return ()
        resource = wanted.get("resourceName") or DEFAULT_RESOURCE_NAME
        if claimed := wanted.get("deviceClass"):
            resource = class_resource(claimed)
        if resource not in self._offers:
            self._offers[resource] = tuple(self.inventory.offers(resource))
        return self._offers[resource]

    def _put_devices(self, kind: Kind, document: Object) -> None:
        self._offers.clear()
        try:
            self.inventory.devices.put(kind.kind, document)
        except (KeyError, ValueError) as error:
            name = document["metadata"]["name"]
            log.warning("%s %s is not counted: %s", kind.kind, name, error)

    def _put_child(self, name: Name, ref: Ref, document: Object) -> set[Key]:
        touched = self._forget_child(name[0], ref)
        if (found := owner(document)) is not None:
            key, uid = found
            self._children.setdefault(key, {})[ref] = Child(uid, pack(document))
            self._child_keys[name[0], ref] = key
            touched.add(key)
        return touched

    def _forget_child(self, namespace: str, ref: Ref) -> set[Key]:
        key = self._child_keys.pop((namespace, ref), None)
        if key is None:
            return set()
        del self._children[key][ref]
        if not self._children[key]:
            del self._children[key]
        return {key}

    def _put_pod(self, name: Name, document: Object) -> set[Key]:
        try:
            self.inventory.put_pod(document)
        except ValueError as error:
            log.warning("pod %s/%s is not counted: %s", *name, error)
        before = self._pods.get(self._pod_keys.get(name, Key("", "")), {}).get(name[1])
        key = pod_key(document)
        record = pod_record(document) if key is not None else None
        if record == before and key == self._pod_keys.get(name):
            return set()  # Most changes of a pod are of no interest.
        touched = self._forget_pod(name)
        if key is not None and record is not None:
            self._pods.setdefault(key, {})[name[1]] = record
            self._pod_keys[name] = key
            touched.add(key)
        return touched

    def _forget_pod(self, name: Name) -> set[Key]:
        key = self._pod_keys.pop(name, None)
        if key is None:
            return set()
        del self._pods[key][name[1]]
        if not self._pods[key]:
            del self._pods[key]
        return {key}

    def _put_node(self, name: str, document: Object) -> set[Key]:
        before = self.inventory.nodes.get(name)
        try:
            self.inventory.put_node(document)
        except ValueError as error:
            log.warning("node %s is not counted: %s", name, error)
        if self.inventory.nodes.get(name) == before:
            return set()
        self._offers.clear()
        return self._keys_on(name)

    def _keys_on(self, node: str) -> set[Key]:
        """A walk over all pods: nodes change seldom."""
        return {
            key
            for key, pods in self._pods.items()
            if any(pod.node == node for pod in pods.values())
        }

    def _put_priority_class(self, name: str, document: Object) -> set[Key]:
        """Values do not change, but a class may come after the deployment that names it."""
        found = PriorityClass(int(document["value"]), bool(document.get("globalDefault")))
        before, self._priority_classes[name] = self._priority_classes.get(name), found
        return set() if before == found else set(self._deployments)

    def _put_namespace(self, name: str, labels: Mapping[str, str]) -> set[Key]:
        before, self._namespaces[name] = self._namespaces.get(name), labels
        if before is None or before == labels:
            return set()
        return {key for key in self._deployments if key.namespace == name}
