"""What becomes of pods whose node is lost: pure, called by `decide`, `places` and `report`.

    deleted ------------------------------+
    tainted out-of-service ---------------+--> looked at once more --> our pods there end by force
    unreachable for restart.nodeLostAfter-+        (NodesQuestion)     and are made again at once

Left alone, a StatefulSet waits for ever for the end of a pod whose node is silent, since its
process may still run. Ours may: one that comes back is told from its successor by its epoch, and
what it holds for others is held by leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from distserve.api.conditions import PlacedReason
from distserve.api.durations import parse_duration
from distserve.api.operations import DEFAULT_NODE_LOST_AFTER
from distserve.operator.conditions import timestamp
from distserve.operator.health import LiveUnit
from distserve.operator.model import (
    Answers,
    Decision,
    Delete,
    Event,
    NodesQuestion,
    NoPlace,
    Object,
    Observed,
    Placement,
    Pod,
    Ref,
)
from distserve.placement.nodes import Node

Nodes = Mapping[str, Node | None]
"""By name; None: there is none of that name."""

TOLD_PODS: Final = 4
"""Named in an event; the others are counted."""


@dataclass(frozen=True)
class Healing:
    question: NodesQuestion | None = None
    deletions: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    again_seconds: float | None = None
    """Until the next silent node counts as lost."""


def heal(observed: Observed, answers: Answers) -> Healing:
    """What the watches show of a node is only a suspicion: before pods end by force, the API server
    is asked about it."""
    patience = patience_seconds(observed.document)
    held = _held(observed)
    due: list[str] = []
    timers: list[float] = []
    deletions: list[Delete] = []
    events: list[Event] = []
    for name in sorted(held):
        left = _left(observed.nodes[name], patience, observed.now)
        if left is not None and left <= 0:
            due.append(name)
            if name not in answers.nodes:
                continue
            left = _left(answers.nodes[name], patience, observed.now)
        if left is not None and left > 0:
            timers.append(left)
        elif left is not None:
            deletions += [Delete(Ref("v1", "Pod", pod.name), pod.uid, 0) for pod in held[name]]
            events.append(_lost(name, answers.nodes[name], held[name], patience))
    return Healing(
        NodesQuestion(tuple(due)) if due else None,
        tuple(deletions),
        tuple(events),
        min(timers, default=None),
    )


def healed(decision: Decision, healing: Healing) -> Decision:
    """Whatever else was decided: also what cannot be changed now is kept alive."""
    forced = {action.ref for action in healing.deletions}
    rest = (one for one in decision.actions if not (isinstance(one, Delete) and one.ref in forced))
    timers = (decision.again_seconds, healing.again_seconds)
    return replace(
        decision,
        questions=(*decision.questions, *([healing.question] if healing.question else [])),
        actions=(*healing.deletions, *rest),
        events=(*healing.events, *decision.events),
        again_seconds=min((s for s in timers if s is not None), default=None),
    )


def patience_seconds(document: Object) -> float:
    """`restart.nodeLostAfter`, also of a spec that is refused for something else in it."""
    spec = document.get("spec")
    restart = spec.get("restart") if isinstance(spec, Mapping) else None
    said = restart.get("nodeLostAfter") if isinstance(restart, Mapping) else None
    try:
        return parse_duration(said or DEFAULT_NODE_LOST_AFTER)
    except (ValueError, TypeError):
        return parse_duration(DEFAULT_NODE_LOST_AFTER)


def node_troubles(observed: Observed) -> dict[str, str]:
    """Node with pods of the deployment -> what ails it, as the end of a sentence."""
    patience = patience_seconds(observed.document)
    return {
        name: words
        for name, node in observed.nodes.items()
        if (words := _trouble(node, patience)) is not None
    }


def displaced(unit: LiveUnit, nodes: Nodes) -> NoPlace | None:
    """A unit that stays where it is, though a part of it has no place there any more."""
    place = unit.place
    if place is None:
        return None
    for pod in unit.pods:
        node = nodes.get(pod.node)
        if place.label and node is not None and node.labels.get(place.label) != place.value:
            return NoPlace(PlacedReason.DOMAIN_SPLIT, _left_domain(unit, pod, node, place))
    for pod in unit.pods:
        if pod.unschedulable and not pod.node and not pod.terminating:
            where = f"no node in {place.level} domain {place.value}" if place.value else "no node"
            return NoPlace(
                PlacedReason.UNSCHEDULABLE,
                f"{unit.name}: the scheduler finds {where} for pod {pod.name}: "
                f"{pod.unschedulable}; the rest of the unit serves on. Bring nodes back or free "
                "room there, or delete the unit's StatefulSets to have it placed whole elsewhere",
            )
    return None


def _held(observed: Observed) -> dict[str, list[Pod]]:
    """Node -> our pods there that may have to end by force."""
    found: dict[str, list[Pod]] = {}
    for pod in observed.pods:
        if pod.node in observed.nodes and not pod.forced and _is_ours(pod, observed):
            found.setdefault(pod.node, []).append(pod)
    return found


def _is_ours(pod: Pod, observed: Observed) -> bool:
    """Labels can be anybody's: what counts is who made it. Where that is gone already the pod is
    to end anyway."""
    kind, _, name = pod.controller.partition("/")
    if kind == "StatefulSet":
        made = Ref("apps/v1", kind, name) in observed.children
        return name == pod.instance and (made or pod.terminating)
    return (
        kind == "ReplicaSet"
        and Ref("apps/v1", "Deployment", name.rpartition("-")[0]) in observed.children
    )


def _left(node: Node | None, patience: float, now: float) -> float | None:
    """Seconds until the node counts as lost. None: as far as is known it is well."""
    if node is None or node.out_of_service:
        return 0.0
    if node.unreachable_since is None:
        return None
    return node.unreachable_since + patience - now


def _lost(name: str, node: Node | None, pods: list[Pod], patience: float) -> Event:
    if node is None:
        why = "was deleted"
    elif node.out_of_service:
        why = "is out of service"
    else:
        why = f"has been unreachable for {patience:g} s (restart.nodeLostAfter)"
    names = ", ".join(pod.name for pod in pods[:TOLD_PODS])
    more = f" and {len(pods) - TOLD_PODS} more" if len(pods) > TOLD_PODS else ""
    message = (
        f"node {name} {why}: {names}{more} ended by force, to be made again on other nodes, a "
        "unit's inside its domain"
    )
    since = "" if node is None else node.unreachable_since or ""
    return Event("Warning", "NodeLost", message, of=f"{name} {since}")


def _trouble(node: Node | None, patience: float) -> str | None:
    if node is None:
        return "is not there"
    if node.out_of_service:
        return "is out of service"
    if node.unreachable_since is not None:
        since = timestamp(node.unreachable_since)
        return (
            f"is unreachable since {since}; {patience:g} s after that (restart.nodeLostAfter) its "
            "pods are made again"
        )
    if not node.ready:
        return (
            "is not ready; if it is off for good delete it, or taint it "
            "node.kubernetes.io/out-of-service"
        )
    return None


def _left_domain(unit: LiveUnit, pod: Pod, node: Node, place: Placement) -> str:
    now = node.labels.get(place.label)
    label = f"label {place.label} is now {now}" if now else f"label {place.label} is gone"
    return (
        f"unit {unit.name}: pod {pod.name} runs on node {node.name}, which left {place.level} "
        f"domain {place.value} (its {label}). It runs on, and comes back inside the domain when it "
        "ends. Put the label back, or delete the unit's StatefulSets to have it placed whole again"
    )
