"""Units on many fabric domains, with the real scheduler beside: whole in one of them, or not there.

Figures are printed beside their aims; where something is waited for, the bound is no aim.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

DOMAIN_GPUS = 32
"""Of four nodes."""
SECONDS = 300.0
Shape = Any
"""conftest's."""


DEPLOYMENT, UNIT = "distserve.io/deployment", "distserve.io/unit"
LONG = [pytest.mark.soak, pytest.mark.timeout(900)]


def mixed(make: Shape, deployments: int, domains: int) -> list[Shape]:
    """Shapes that fill the domains to the last accelerator, if they are packed best; in the order
    in which they come."""
    draw = random.Random(deployments)
    sizes = []
    for at in range(domains):
        alone = at < 2 * domains - deployments
        first = 0 if alone else draw.choice([8, 12, 16])
        sizes += [size for size in (first, DOMAIN_GPUS - first) if size]
    draw.shuffle(sizes)
    return [_shape(make, draw, size) for size in sizes]


def _shape(make: Shape, draw: random.Random, gpus: int) -> Shape:
    tensor = draw.choice([t for t in (1, 2, 4) if 2 <= gpus // t <= 8])
    instances = gpus // tensor
    prefill = draw.randint(max(1, instances - 4), min(4, instances - 1))
    return make(prefill, instances - prefill, tensor)


@pytest.mark.parametrize(
    ("deployments", "number", "together"),
    [
        pytest.param(8, 5, True, id="8-together"),
        pytest.param(30, 16, True, id="30-together", marks=LONG),
        pytest.param(30, 16, False, id="30-one-after-another", marks=LONG),
    ],
)
def test_every_unit_lies_whole_in_one_domain(
    fabric: Any,
    deployments: int,
    number: int,
    together: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = number * DOMAIN_GPUS
    shapes = {f"d{at}": shape for at, shape in enumerate(mixed(fabric.Shape, deployments, number))}
    assert len(shapes) == deployments
    assert sum(shape.gpus for shape in shapes.values()) == there
    with (
        fabric.domains(number, 4, f"many{number}-") as cliques,
        fabric.watched() as history,
    ):
        began = time.monotonic()
        documents = [fabric.deployment(name, shape) for name, shape in shapes.items()]
        (fabric.burst if together else fabric.apply)(*documents)
        applied = time.monotonic() - began

        def settled() -> bool:
            """Who is placed runs; who is not was told why."""
            found, running = history.placed(), history.units()
            return len(found) == deployments and all(
                sum(map(fabric.is_ready, running.get((name, "u0"), []))) == shapes[name].pods
                if one["status"] == "True"
                else one["reason"] in ("NoRoom", "HeldForAnother")
                for name, one in found.items()
            )

        fabric.wait_until("all are decided, and run", settled, SECONDS)
        took = time.monotonic() - began
        found = history.units()
        for (name, unit), pods in found.items():
            assert len(pods) == shapes[name].pods, f"{name} {unit} is not whole"
            homes = {cliques[pod["spec"]["nodeName"]] for pod in pods}
            assert len(homes) == 1, f"{name} {unit} lies in {homes}"
        used = sum(shapes[name].gpus for name, _ in found)
        bound = history.check(cliques)
        assert bound == sum(map(len, found.values())), "none was bound and taken back"
    with capsys.disabled():
        print(
            f"\n{deployments} deployments on {number} domains of 4 x 8 GPUs: "
            f"all made in {applied:.1f} s, {len(found)} units, {bound} pods run after {took:.1f}, "
            f"{used} of {there} GPUs used: {used / there:.1%} of the best packing (aim: 95 %)"
        )


@pytest.mark.parametrize(
    "times",
    [5, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])],
)
def test_of_two_for_one_domain_one_wins_whole(
    fabric: Any, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    wins: Counter[str] = Counter()
    with fabric.domains(1, 2, "two-") as cliques:
        for at in range(times):
            wins[_compete(fabric, cliques, at)] += 1
    with capsys.disabled():
        print(f"\n{times} times two for one domain: never a part of the other; won: {dict(wins)}")


def _compete(fabric: Any, cliques: Mapping[str, str], at: int) -> str:
    """Returns who won. Names of their own each time: what the pair before left in the midst of its
    end is not theirs."""
    names = (f"a{at}", f"b{at}")
    with fabric.watched() as history:
        fabric.apply(*[fabric.deployment(name, fabric.whole_domain) for name in names])

        def both() -> dict[str, Any]:
            found = history.placed()
            return {name: found[name] for name in names if name in found}

        def one_each() -> bool:
            return sorted(one["status"] for one in both().values()) == ["False", "True"]

        fabric.wait_until("one is placed, one waits", one_each)
        states = both()
        winner, loser = sorted(states, key=lambda name: states[name]["status"] != "True")
        assert states[loser]["reason"] == "NoRoom"
        fabric.wait_until_whole(history, {winner: fabric.whole_domain.pods})
        parts = [
            (one["kind"], one["metadata"]["name"], one["metadata"]["creationTimestamp"])
            for one in history.events
            if {(UNIT, "u0"), (DEPLOYMENT, loser)} <= (one["metadata"].get("labels") or {}).items()
        ]
        assert parts == [], f"nothing of {loser} may ever have been there: {states}"
        history.check(cliques)
        fabric.cluster.kubectl("delete", "dsd", "--all", f"-n{fabric.namespace}", "--wait=false")
        fabric.wait_until("both are gone", lambda: not history.live)
    return winner[0]
