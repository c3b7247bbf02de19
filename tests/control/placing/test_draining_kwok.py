"""Nodes are drained one after the other, by kubectl and against the API server's budgets."""

from collections import defaultdict
from typing import Any

import pytest

Object = dict[str, Any]
UNITS = ("u0", "u1")


def fewest_whole(history: Any, size: int) -> int:
    """Units that were whole at a time, since all of them first were."""
    ready: dict[str, set[str]] = defaultdict(set)
    fewest = None
    for one in history.events:
        unit = (one["metadata"].get("labels") or {}).get("distserve.io/unit")
        if one["kind"] != "Pod" or unit is None:
            continue
        conditions = (one.get("status") or {}).get("conditions") or []
        serves = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        there = serves and "deletionTimestamp" not in one["metadata"]
        (ready[unit].add if there else ready[unit].discard)(one["metadata"]["uid"])
        whole = sum(len(found) >= size for found in ready.values())
        if whole == len(UNITS) or fewest is not None:
            fewest = min(whole, len(UNITS) if fewest is None else fewest)
    assert fewest is not None, "they never were whole together"
    return fewest


def test_every_node_can_be_drained_while_one_unit_serves(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = fabric.deployment("drained", fabric.whole_domain)
    document["spec"]["units"] = len(UNITS)
    size = fabric.whole_domain.pods
    with fabric.domains(2, 3, "drained-") as cliques, fabric.watched() as history:

        def nodes(unit: str) -> set[str]:
            return {pod["spec"].get("nodeName", "") for pod in history.units()["drained", unit]}

        fabric.apply(document)
        fabric.wait_until_whole(history, {"drained": len(UNITS) * size})
        for unit in UNITS:
            node = min(nodes(unit))
            flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
            said = fabric.cluster.kubectl("drain", node, *flags, seconds=150.0)
            assert said.rstrip().endswith("drained")
            fabric.wait_until_whole(history, {"drained": len(UNITS) * size})
            assert node not in nodes(unit)
        assert history.check(cliques) > len(UNITS) * size
        assert fewest_whole(history, size) >= 1
    with capsys.disabled():
        print(f"\n  drained {len(UNITS)} units' nodes; {fewest_whole(history, size)} served")
