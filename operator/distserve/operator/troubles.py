"""What keeps a pod or a unit from being ready, in words: for `status` and `progress`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distserve.operator.health import LiveUnit
from distserve.operator.model import Pod


def first_trouble(pods: Iterable[Pod], nodes: Mapping[str, str]) -> str:
    """Of the first pod that says what ails it, in its own words; empty where none does.

    `nodes`: node -> what ails that.
    """
    for pod in sorted(pods, key=lambda p: p.name):
        if not pod.ready and pod.node in nodes:
            return f"pod {pod.name}: its node {pod.node} {nodes[pod.node]}"
        if pod.waiting:
            return f"pod {pod.name}: {pod.waiting} {pod.message}".rstrip()
        if pod.unschedulable:
            return f"pod {pod.name}: {pod.unschedulable}"
    return ""


def unit_state(unit: LiveUnit, revision: str) -> str:
    """Where a unit stands that is not ready with this revision, and whose pods say nothing."""
    for pod in sorted(unit.pods, key=lambda p: p.name):
        if pod.revision != revision:
            return f"pod {pod.name} of revision {pod.revision} has not ended"
        if pod.ready and not pod.terminating:
            continue
        return f"pod {pod.name} {_state(pod)}"
    return "not all of its pods were made"


def _state(pod: Pod) -> str:
    if pod.terminating:
        return "has not ended"
    if not pod.node:
        return "has no node"
    if pod.starting_since is not None:
        return "has a node and no container yet"
    if pod.containers_ready and pod.fabric_gate is False:
        return "is held by topology.fabricRequired: see FabricVerified"
    return f"runs and is not ready: see its log, `kubectl logs {pod.name}`"
