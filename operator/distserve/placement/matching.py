"""Whether a node will do for a pod, whatever else runs there: selectors, node affinity, taints.

Follows kube-scheduler's NodeAffinity, TaintToleration and NodeUnschedulable plugins.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distserve.placement.nodes import Node, Taint
from distserve.placement.readable import OPERATORS, integer
from distserve.placement.requests import InstanceRequest

CONDITION_TAINTS = "node.kubernetes.io/"
"""Taints that Kubernetes itself puts on a node for what ails it."""


def constraints_key(instance: InstanceRequest) -> str:
    """Equal for instances that every node treats alike."""
    return json.dumps(
        [
            dict(instance.node_selector),
            [dict(one) for one in instance.tolerations],
            [dict(one) for one in instance.node_affinity_terms],
        ],
        sort_keys=True,
    )


def misfit(instance: InstanceRequest, node: Node, when_well: bool = False) -> str | None:
    """Why the instance's pods may not go to this node, in words to be counted; None: they may.

    `when_well` asks as if the node were ready and not cordoned. Raises ValueError and others where
    `readable` says that its constraints cannot be read.
    """
    if not node.ready and not when_well:
        return "not ready"
    for key, value in instance.node_selector.items():
        if node.labels.get(key) != value:
            return f"without the label {key}={value}"
    terms = instance.node_affinity_terms
    if terms and not any(_term_matches(term, node) for term in terms):
        return "outside the required node affinity"
    if node.cordoned and not when_well:
        return "cordoned"
    for taint in node.taints:
        if when_well and taint.key.startswith(CONDITION_TAINTS):
            continue
        if not any(_tolerates(one, taint) for one in instance.tolerations):
            return f"with the taint {taint}"
    return None


def takes_all(node: Node, instances: Iterable[InstanceRequest]) -> bool:
    """Whether the pods of each of them may go there."""
    return all(misfit(one, node) is None for one in instances)


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("key") not in (None, "", taint.key):
        return False
    if taint.effect == "NoExecute" and toleration.get("tolerationSeconds") is not None:
        return False  # The pod would be evicted again.
    if toleration.get("operator") == "Exists":
        return True
    equal = toleration.get("operator") in (None, "", "Equal") and bool(toleration.get("key"))
    return equal and (toleration.get("value") or "") == taint.value


def _term_matches(term: Mapping[str, Any], node: Node) -> bool:
    """A term without any requirement matches nothing."""
    expressions: Sequence[Mapping[str, Any]] = term.get("matchExpressions") or ()
    fields: Sequence[Mapping[str, Any]] = term.get("matchFields") or ()
    return bool(expressions or fields) and (
        all(_matches(one, node.labels.get(one["key"])) for one in expressions)
        and all(one["key"] == "metadata.name" and _matches(one, node.name) for one in fields)
    )


def _matches(requirement: Mapping[str, Any], value: str | None) -> bool:
    values: Sequence[str] = requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return integer(value) is not None and int(value or 0) > int(values[0])
        case "Lt":
            return integer(value) is not None and int(value or 0) < int(values[0])
        case other:
            raise ValueError(
                f"node affinity has no operator {other!r}: {', '.join(OPERATORS)} are known"
            )
