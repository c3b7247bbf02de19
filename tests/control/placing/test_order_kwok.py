"""Who goes first: the more urgent unit, and a big one that waited long, as a user sees it."""

from typing import Any

import pytest

NODE_GPUS = 8


@pytest.fixture
def urgent(crd: Any) -> Any:
    """A PriorityClass that lives as long as the test."""
    name = "distserve-test-urgent"
    crd.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": 1000,
        }
    )
    yield name
    crd.kubectl("delete", f"priorityclass/{name}", "--wait=false")


def waits(fabric: Any, history: Any, name: str, *reasons: str) -> str:
    """Until it is told so; the message."""
    found = {"reason": "", "message": ""}

    def told() -> bool:
        found.update(history.placed().get(name, {}))
        return found["reason"] in reasons

    fabric.wait_until(f"{name} waits: {reasons}", told)
    return found["message"]


def test_a_more_urgent_unit_goes_before_one_that_waited_longer(fabric: Any, urgent: str) -> None:
    whole = fabric.whole_domain
    with fabric.domains(1, 2, "urgent-") as cliques, fabric.watched() as history:
        fabric.apply(fabric.deployment("runs", whole))
        fabric.wait_until_whole(history, {"runs": whole.pods})
        fabric.apply(fabric.deployment("early", whole))
        waits(fabric, history, "early", "NoRoom")
        fabric.apply(fabric.deployment("late", whole, pod={"priorityClassName": urgent}))
        waits(fabric, history, "late", "NoRoom")
        fabric.cluster.kubectl("delete", "dsd/runs", f"-n{fabric.namespace}", "--wait=false")
        fabric.wait_until_whole(history, {"late": whole.pods})
        waits(fabric, history, "early", "NoRoom")
        assert "early" not in history.owners()
        history.check(cliques)


def test_a_big_unit_that_waited_long_keeps_small_ones_from_its_nodes(fabric: Any) -> None:
    small = fabric.Shape(1, 1, 4)
    with fabric.domains(1, 2, "long-") as cliques, fabric.watched() as history:
        fabric.apply(fabric.deployment("small", small))
        fabric.wait_until_whole(history, {"small": small.pods})
        fabric.apply(fabric.deployment("big", fabric.whole_domain, reserveAfter="1s"))
        waits(fabric, history, "big", "NoRoom")
        fabric.wait_until(
            "nodes are kept for it", lambda: "Kept free for it" in waits_now(history, "big")
        )
        fabric.apply(fabric.deployment("next", small))
        message = waits(fabric, history, "next", "HeldForAnother")
        assert "reserveAfter" in message and "priorityClassName" in message
        fabric.cluster.kubectl("delete", "dsd/small", f"-n{fabric.namespace}", "--wait=false")
        fabric.wait_until_whole(history, {"big": fabric.whole_domain.pods})
        waits(fabric, history, "next", "NoRoom")
        history.check(cliques)


def waits_now(history: Any, name: str) -> str:
    return str(history.placed().get(name, {}).get("message", ""))
