"""A unit that is moved since somebody asked, so that a larger one finds its room."""

import time
from typing import Any

import pytest

Object = dict[str, Any]


def fewest_ready(fabric: Any, history: Any, name: str) -> int:
    """Ready pods of its units, from when all were ready first."""
    ready: dict[str, bool] = {}
    counts: list[int] = []
    for one in history.events:
        marks = one["metadata"].get("labels") or {}
        if one["kind"] == "Pod" and marks.get("distserve.io/deployment") == name:
            if "distserve.io/unit" not in marks:
                continue
            going = "deletionTimestamp" in one["metadata"]
            ready[one["metadata"]["uid"]] = fabric.is_ready(one) and not going
            counts.append(sum(ready.values()))
    return min(counts[counts.index(2) :])


def test_a_unit_makes_room_for_a_larger_one(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small, whole = fabric.Shape(1, 1, 4), fabric.whole_domain

    def home(name: str) -> set[str]:
        pods = history.units().get((name, "u0"), [])
        return {cliques[pod["spec"]["nodeName"]] for pod in pods if pod["spec"].get("nodeName")}

    with fabric.domains(2, 2, "pack-") as cliques, fabric.watched() as history:
        wanted: dict[str, int] = {}
        for name in ("stays", "leaves", "moves"):
            wanted[name] = small.pods
            fabric.apply(fabric.deployment(name, small))
            fabric.wait_until_whole(history, wanted)
        assert home("stays") == home("leaves") != home("moves")
        before = {pod["metadata"]["uid"] for pod in history.units()["stays", "u0"]}
        fabric.cluster.kubectl("delete", "dsd/leaves", f"-n{fabric.namespace}", "--wait=false")
        del wanted["leaves"]
        fabric.wait_until_whole(history, wanted)
        fabric.apply(fabric.deployment("late", whole))
        fabric.wait_until("it waits", lambda: history.placed()["late"]["reason"] == "NoRoom")

        began = time.monotonic()
        fabric.cluster.kubectl(
            "annotate", "dsd/moves", f"-n{fabric.namespace}", "distserve.io/repack=1"
        )
        fabric.wait_until_whole(history, {**wanted, "late": whole.pods})
        took = time.monotonic() - began
        assert home("moves") == home("stays") and not home("late") & home("moves")
        after = {pod["metadata"]["uid"] for pod in history.units()["stays", "u0"]}
        assert after == before
        history.check(cliques)
        least = fewest_ready(fabric, history, "moves")
        assert least >= small.pods, "a whole unit of it was ready all the time"
    with capsys.disabled():
        print(f"\n  asked -> moved, and the larger unit runs in its room: {took:.1f} s")
