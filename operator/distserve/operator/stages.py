"""Which writes of a decision may be made at the same time: the reconciler goes stage by stage.

    pods that must go -> the key -> access, Services, policies -> what makes pods -> what goes
                                                                         -> who watches it

Any part of a stage is a state to go on from, as a decision's beginning is. A write that is not done
ends it: what serving does not need comes last. So does somebody else's Secret with the key's name,
which what comes next would take for the key.
"""

from __future__ import annotations

from collections.abc import Iterable

from distserve.operator.model import Apply, Delete
from distserve.resources import monitoring

Action = Apply | Delete

_WORKLOADS = frozenset({"StatefulSet", "Deployment"})
_WATCHERS = frozenset({monitoring.POD_MONITOR, monitoring.PROMETHEUS_RULE})


def stages(actions: Iterable[Action]) -> list[list[Action]]:
    """In the order in which they are to be done; none is empty."""
    found: dict[int, list[Action]] = {}
    for action in actions:
        found.setdefault(_stage(action), []).append(action)
    return [found[number] for number in sorted(found)]


def _stage(action: Action) -> int:
    kind = action.ref.kind if isinstance(action, Delete) else action.object["kind"]
    if kind in _WATCHERS:
        return 5
    if isinstance(action, Delete):
        return 0 if kind == "Pod" else 4
    if kind == "Secret":
        return 1
    return 3 if kind in _WORKLOADS else 2
