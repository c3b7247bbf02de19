"""Which writes of a decision may be made at the same time: the reconciler goes stage by stage.

    pods that must go -> the key -> access, Services, policies -> what makes pods -> what goes

Any part of a stage is a state to go on from, as a decision's beginning is.
"""

from __future__ import annotations

from collections.abc import Iterable

from distserve.operator.model import Apply, Delete

Action = Apply | Delete

_WORKLOADS = frozenset({"StatefulSet", "Deployment"})


def stages(actions: Iterable[Action]) -> list[list[Action]]:
    """In the order in which they are to be done; none is empty."""
    found: dict[int, list[Action]] = {}
    for action in actions:
        found.setdefault(_stage(action), []).append(action)
    return [found[number] for number in sorted(found)]


def _stage(action: Action) -> int:
    if isinstance(action, Delete):
        return 0 if action.ref.kind == "Pod" else 4
    kind = action.object["kind"]
    if kind == "Secret":
        return 1
    return 3 if kind in _WORKLOADS else 2
