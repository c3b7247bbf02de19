"""Room that is short, that becomes free, and that somebody else takes: what a user is told."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from tools.cluster.errors import CommandFailed

Object = dict[str, Any]
DOMAIN = "distserve.io/domain"
GPU = "nvidia.com/gpu"
NODE_GPUS = 8


def test_a_full_cluster_says_what_is_short_and_goes_on_when_it_is_not(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with fabric.domains(2, 2, "full-") as cliques, fabric.watched() as history:
        whole = fabric.whole_domain.pods
        fabric.apply(*[fabric.deployment(name, fabric.whole_domain) for name in ("a", "b")])
        fabric.wait_until_whole(history, {"a": whole, "b": whole})
        fabric.apply(fabric.deployment("late", fabric.whole_domain))
        late = {"reason": ""}

        def waits() -> bool:
            late.update(history.placed().get("late", {}))
            return late["reason"] == "NoRoom"

        fabric.wait_until("late is told why it waits", waits)
        message = late["message"]
        assert f"needs 16 {GPU} in one nvlink domain; the roomiest of " in message
        assert "(full-" in message and "has 0 free" in message and "add nodes" in message
        assert "late" not in history.owners(), "nothing of it exists while it waits"

        fabric.cluster.kubectl("delete", "dsd/a", f"-n{fabric.namespace}", "--wait=false")
        # Counted from when its pods are gone: their end is not the operator's.
        fabric.wait_until("the domain is free", lambda: ("a", "u0") not in history.units())
        freed = time.monotonic()
        fabric.wait_until_whole(history, {"b": whole, "late": whole})
        took = time.monotonic() - freed
        history.check(cliques)
    with capsys.disabled():
        print(f"\n  it said: {message}\n  domain free -> all pods Ready: {took:.1f} s (aim: 5)")


GATE = "test.distserve.io/hold"


def open_gates(fabric: Any, pods: Sequence[Object]) -> None:
    """By name, in one call: a unit that is taken back meanwhile has other pods of these names, or
    none yet."""
    held = [f"pod/{pod['metadata']['name']}" for pod in pods if pod["spec"].get("schedulingGates")]
    if not held:
        return
    patch = json.dumps({"spec": {"schedulingGates": None}})
    try:
        fabric.cluster.kubectl("patch", *held, f"-n{fabric.namespace}", f"--patch={patch}")
    except CommandFailed as error:
        if "NotFound" not in str(error):
            raise


def test_a_unit_whose_room_was_taken_is_placed_anew(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scheduling gates hold the moment between decision and binding open."""
    with fabric.domains(2, 2, "taken-") as cliques, fabric.watched() as history:
        pod = {"schedulingGates": [{"name": GATE}]}
        fabric.apply(fabric.deployment("opt", fabric.whole_domain, gangTimeout="3s", pod=pod))

        def pods() -> list[Object]:
            return history.units().get(("opt", "u0"), [])

        fabric.wait_until("its pods are made", lambda: len(pods()) == fabric.whole_domain.pods)
        first = pods()
        given = {pod["metadata"]["labels"][DOMAIN] for pod in first}
        assert len(given) == 1
        taken = next(node for node, clique in cliques.items() if {clique} == given)
        fabric.apply(fabric.foreign_pod("quicker", taken, NODE_GPUS))
        open_gates(fabric, first)
        began = time.monotonic()

        def moved() -> bool:
            found = pods()
            again = [p for p in found if p["metadata"]["labels"][DOMAIN] not in given]
            return len(again) == len(found) == fabric.whole_domain.pods

        fabric.wait_until("it is placed anew", moved)
        took = time.monotonic() - began

        def whole() -> bool:
            # A unit whose gates are held for longer than gangTimeout is made again, with gates.
            open_gates(fabric, found := pods())
            return len(found) == fabric.whole_domain.pods and all(map(fabric.is_ready, found))

        fabric.wait_until("all of it is Ready", whole)
        homes = {cliques[pod["spec"]["nodeName"]] for pod in pods()}
        assert len(homes) == 1 and not homes & given
        history.check(cliques)
        fabric.wait_until("Placed says so", lambda: history.placed()["opt"]["status"] == "True")
    with capsys.disabled():
        print(f"\n  room taken -> placed anew: {took:.1f} s (3 s after its pods: gangTimeout)")
