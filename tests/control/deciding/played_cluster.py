"""A little Kubernetes in memory: API server, controllers, scheduler, kubelet of one namespace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from distserve.api import labels
from distserve.operator.conditions import timestamp
from distserve.operator.keys import key_of
from distserve.operator.model import Apply, Delete, Object, Observed, Pod, Ref
from distserve.placement.nodes import Node

NODE = "node-a"


def copied(found: Any) -> Any:
    """Of what is JSON. It is done most often here, and copy.deepcopy takes ten times as long."""
    return msgspec.json.decode(msgspec.json.encode(found))


def node(name: str, **facts: Any) -> Node:
    return replace(Node(name, {}, {}, (), cordoned=False, ready=True), **facts)


@dataclass
class PlayedCluster:
    """`step` is what everybody but the operator does."""

    objects: dict[Ref, Object] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    broken: Callable[[Pod], bool] = lambda pod: False
    """Pods that never get ready."""
    unschedulable: Callable[[Pod], bool] = lambda pod: False
    foreign: set[Ref] = field(default_factory=set)
    late: Observed | None = None
    """What the operator still sees instead."""
    keys: int = 0
    serial: int = 0
    nodes: dict[str, Node] = field(default_factory=lambda: {NODE: node(NODE)})
    """As the API server has them."""
    silent: set[str] = field(default_factory=set)
    """Nodes whose kubelet ends no pod any more."""

    def named(self, kind: str) -> dict[str, Object]:
        return {ref.name: found for ref, found in self.objects.items() if ref.kind == kind}

    def step(self) -> None:
        """Controllers and kubelet do one thing each; a second goes by."""
        self.now += 1.0
        self._end_pods()
        self._make_pods()
        for name, pod in list(self.pods.items()):
            if pod.terminating or pod.ready:
                continue
            if self.unschedulable(pod) and not pod.node:
                self.pods[name] = replace(pod, unschedulable="0/1 nodes are available")
            elif not pod.node:
                self._schedule(pod)
            elif pod.node in self.silent:
                continue
            elif pod.key not in self.named("Secret"):
                continue  # Its volume is awaited.
            elif not self.broken(pod):
                ready = pod.fabric_gate is not False
                self.pods[name] = replace(
                    pod, ready=ready, containers_ready=True, host="10.0.0.1", starting_since=None
                )
        for found in self.objects.values():
            if found["kind"] == "StatefulSet":
                mine = [p for p in self.pods.values() if p.instance == found["metadata"]["name"]]
                found["status"] = {
                    "replicas": len(mine),
                    "readyReplicas": sum(p.ready for p in mine),
                }

    def _apply(self, action: Apply) -> None:
        wanted = copied(action.object)
        if action.subresource:
            return self._open_gate(action)
        ref = Ref(wanted["apiVersion"], wanted["kind"], wanted["metadata"]["name"])
        live = self.objects.get(ref)
        assert ref not in self.foreign
        if ref.kind == "Secret" and live is None:
            self.keys += 1
        if live is None:
            if action.uid:
                return  # it is not there any more: a conflict
            wanted["metadata"]["uid"] = self._uid()
            wanted["metadata"]["creationTimestamp"] = timestamp(self.now)
            self.objects[ref] = wanted
            return
        if action.create_only:
            return
        if action.uid not in ("", live["metadata"]["uid"]):
            return  # another one: a conflict
        if not action.uid:
            assert self.late is not None, "an apply that did not see the object"
            return  # it is ours, and is seen from now on: a conflict
        assert not self._binds_otherwise(wanted), "which no API server changes"
        for name in ("uid", "creationTimestamp"):
            wanted["metadata"][name] = live["metadata"][name]
        if "status" in live:
            wanted["status"] = live["status"]
        self.objects[ref] = wanted

    def _binds_otherwise(self, wanted: Object) -> bool:
        live = self.objects.get(Ref.of(wanted), wanted)
        return bool(live.get("roleRef") != wanted.get("roleRef"))

    def _open_gate(self, action: Apply) -> None:
        """The one thing that is written to pods' status."""
        (condition,) = action.object["status"]["conditions"]
        assert (condition["type"], condition["status"]) == (labels.FABRIC_VERIFIED, "True")
        pod = self.pods[action.object["metadata"]["name"]]
        if pod.uid == action.uid:
            self.pods[pod.name] = replace(pod, fabric_gate=True)

    def _delete(self, action: Delete) -> None:
        if action.ref.kind == "Pod":
            pod = self.pods.get(action.ref.name)
            if pod is None or pod.uid != action.uid:
                assert self.late is not None, "the end of a pod that is not there"
            elif action.grace_seconds == 0:
                del self.pods[pod.name]
            else:
                self.pods[pod.name] = replace(pod, terminating=True, ready=False)
            return
        live = self.objects.get(action.ref)
        if live is not None and live["metadata"]["uid"] == action.uid:
            del self.objects[action.ref]

    def _end_pods(self) -> None:
        sets = self.named("StatefulSet")
        for name, pod in list(self.pods.items()):
            if pod.terminating:
                if pod.node not in self.silent:
                    del self.pods[name]
            elif pod.instance and (
                pod.instance not in sets or sets[pod.instance]["spec"]["replicas"] == 0
            ):
                self.pods[name] = replace(pod, terminating=True, ready=False)
        for name, one in self.named("Deployment").items():
            for pod in [p for p in self.pods.values() if p.name.startswith(f"{name}-")]:
                if pod.key != key_of(one["spec"]["template"]["spec"]):
                    del self.pods[pod.name]  # Its ReplicaSet is scaled down.

    def _schedule(self, pod: Pod) -> None:
        well = [n.name for n in self.nodes.values() if n.usable and n.unreachable_since is None]
        self.pods[pod.name] = (
            replace(pod, node=well[0], unschedulable="", starting_since=self.now)
            if well
            else replace(pod, unschedulable="0/1 nodes are available")
        )

    def _make_pods(self) -> None:
        for name, one in self.named("StatefulSet").items():
            for index in range(one["spec"]["replicas"]):
                if f"{name}-{index}" not in self.pods:
                    template = one["spec"]["template"]
                    self._make_pod(f"{name}-{index}", template, f"StatefulSet/{name}")
        for name, one in self.named("Deployment").items():
            for index in range(one["spec"]["replicas"]):
                if f"{name}-{index}" not in self.pods:
                    made = f"ReplicaSet/{name}-5d4f8"
                    self._make_pod(f"{name}-{index}", one["spec"]["template"], made)

    def _make_pod(self, name: str, template: Object, controller: str) -> None:
        marks = template["metadata"]["labels"]
        gates = [gate["conditionType"] for gate in template["spec"].get("readinessGates", [])]
        self.pods[name] = Pod(
            name, self._uid(), marks.get(labels.INSTANCE, ""), marks.get(labels.UNIT, ""),
            marks.get(labels.REVISION, ""), "", False, False, self.now, controller=controller,
            fabric_gate=False if labels.FABRIC_VERIFIED in gates else None,
            key=key_of(template["spec"]),
        )  # fmt: skip

    def _uid(self) -> str:
        self.serial += 1
        return f"uid-{self.serial}"
