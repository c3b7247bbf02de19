"""What holds for any cluster and any units: nothing overcommitted, no unit split, nothing moved."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.placement import (
    Decision,
    Domain,
    Enforcement,
    InstanceRequest,
    Inventory,
    Level,
    Placed,
    UnitId,
    UnitRequest,
    Waiting,
    domain_of,
    inventory_of,
    place,
)

CLIQUE, ZONE = Level("nvlink", "clique"), Level("zone", "zone")
GPU = "example.com/gpu"
NOW = 1000.0
patient = settings(deadline=None)
"""Other tests may have the machine meanwhile."""


def node(name: str, gpus: int, cpu: int, clique: str | None, pool: str) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, "pool": pool, "zone": f"z-{(clique or name)[-1]}"}
    return {
        "metadata": {"name": name, "labels": labels | ({"clique": clique} if clique else {})},
        "spec": {},
        "status": {
            "allocatable": {GPU: str(gpus), "cpu": str(cpu), "pods": "20"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@st.composite
def clusters(draw: st.DrawFn, most: int = 8) -> list[dict[str, Any]]:
    cliques = st.sampled_from(["c0", "c1", "c2", None])
    return [
        node(
            f"n{index}",
            draw(st.integers(0, 8)),
            draw(st.integers(1, 16)),
            draw(cliques),
            draw(st.sampled_from(["a", "b"])),
        )
        for index in range(draw(st.integers(0, most)))
    ]


@st.composite
def instance_requests(draw: st.DrawFn, name: str) -> InstanceRequest:
    return InstanceRequest(
        name,
        draw(st.integers(1, 3)),
        {GPU: draw(st.integers(0, 4)), "cpu": draw(st.integers(1, 5))},
        draw(st.sampled_from([{}, {}, {"pool": "a"}])),
    )


@st.composite
def units(draw: st.DrawFn, most: int = 8) -> list[UnitRequest]:
    found = []
    for index in range(draw(st.integers(0, most))):
        id = UnitId("ns", draw(st.sampled_from(["d0", "d1", "d2"])), f"u{index}")
        instances = tuple(
            draw(instance_requests(f"{id.deployment}-{id.unit}-i{i}"))
            for i in range(draw(st.integers(1, 3)))
        )
        found.append(
            UnitRequest(
                id,
                instances,
                draw(st.floats(0, NOW)),
                draw(st.integers(0, 2)),
                (CLIQUE, ZONE),
                draw(st.sampled_from(["nvlink", "zone", None])),
                draw(st.sampled_from(Enforcement)),
                draw(st.sampled_from([0.0, 100.0, 900.0])),
                draw(st.sampled_from([None, 100.0])),
            )
        )
    return found


def check(
    inventory: Inventory,
    asked: list[UnitRequest],
    decisions: list[Decision],
    foreign: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> None:
    """Each unit has one decision, whole or waiting; domains hold; nothing is overcommitted."""
    by_id = {unit.id: unit for unit in asked}
    assert Counter(d.unit for d in decisions) == Counter(by_id.keys())
    taken: dict[str, Counter[str]] = {name: Counter() for name in inventory.nodes}
    for decision in decisions:
        unit = by_id[decision.unit]
        if isinstance(decision, Waiting):
            assert unit.id.unit in decision.message
            continue
        assert set(decision.nodes) == set(unit.pod_names)
        for instance in unit.instances:
            for pod in instance.pod_names:
                chosen = inventory.nodes[decision.nodes[pod]]
                taken[chosen.name].update(instance.amounts)
                assert instance.node_selector.items() <= chosen.labels.items()
        level = next((one for one in unit.levels if one.name == unit.pack_within), None)
        if level and unit.enforcement == Enforcement.REQUIRED:
            assert decision.domain and decision.domain.level == level.name
            assert decision.packed == 1.0
        if decision.domain:
            home = next(one for one in unit.levels if one.name == decision.domain.level)
            homes = {domain_of(inventory.nodes[n], home) for n in decision.nodes.values()}
            assert homes == {decision.domain}
    for name, amounts in taken.items():
        room = foreign.get(name, {})
        for resource, count in amounts.items():
            whole = inventory.nodes[name].allocatable.get(resource, 0)
            assert count <= whole - room.get(resource, 0)


def reserve_all(inventory: Inventory, asked: list[UnitRequest], decisions: list[Decision]) -> None:
    by_id = {unit.id: unit for unit in asked}
    for decision in decisions:
        if isinstance(decision, Placed):
            inventory.reserve(by_id[decision.unit], decision.nodes)


@given(clusters(), units(), st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4)), max_size=4))
@patient
def test_units_lie_whole_in_their_domain_and_nothing_is_overcommitted(
    nodes: list[dict[str, Any]], asked: list[UnitRequest], others: list[tuple[int, int]]
) -> None:
    """Beside pods of others, some on nodes that are not there."""
    inventory = inventory_of(nodes)
    foreign: dict[str, Counter[str]] = {}
    for number, (at, gpus) in enumerate(others):
        requests = {"requests": {GPU: str(gpus)}}
        inventory.put_pod(
            {
                "metadata": {"name": f"p{number}", "namespace": "x", "uid": f"p{number}"},
                "spec": {"nodeName": f"n{at}", "containers": [{"resources": requests}]},
            }
        )
        foreign.setdefault(f"n{at}", Counter()).update({GPU: gpus, "pods": 1})
    check(inventory, asked, place(inventory, asked, NOW), foreign)


@given(clusters(), units(), st.randoms())
@patient
def test_the_same_question_has_the_same_answer(
    nodes: list[dict[str, Any]], asked: list[UnitRequest], chance: Any
) -> None:
    """Whatever order nodes and units come in, and asking changes nothing."""
    inventory = inventory_of(nodes)
    first = place(inventory, asked, NOW)
    assert place(inventory, asked, NOW) == first
    chance.shuffle(nodes)
    chance.shuffle(asked)
    assert place(inventory_of(nodes), asked, NOW) == first


@given(clusters(), units())
@patient
def test_what_is_decided_stays_and_what_waits_still_waits(
    nodes: list[dict[str, Any]], asked: list[UnitRequest]
) -> None:
    inventory = inventory_of(nodes)
    first = place(inventory, asked, NOW)
    reserve_all(inventory, asked, first)
    again = place(inventory, asked, NOW)
    assert _placed(again) == _placed(first)
    check(inventory, asked, again)


@given(clusters(), units(), st.data())
@patient
def test_bound_pods_stay_where_they_are(
    nodes: list[dict[str, Any]], asked: list[UnitRequest], data: st.DataObject
) -> None:
    """A scheduler that chose other nodes of the domain is right: what runs is kept."""
    inventory = inventory_of(nodes)
    first = place(inventory, asked, NOW)
    reserve_all(inventory, asked, first)
    placed = _placed(first)
    runs: dict[UnitId, dict[str, str]] = {}
    for unit, instance, pod, _ in _seats(asked, placed):
        where = data.draw(st.sampled_from(_home(inventory, unit, placed[unit.id][0])))
        inventory.put_pod(bound(unit, instance, pod, where))
        runs.setdefault(unit.id, {})[pod] = where

    def kept() -> dict[UnitId, dict[str, str]]:
        found = _placed(place(inventory, asked, NOW))
        return {id: found[id][1] for id in runs if id in found}

    assert kept() == runs
    for unit in asked:
        inventory.release(unit.id)
    assert kept() == runs


@given(clusters(), units(), st.data())
@patient
def test_a_lost_pod_returns_into_its_units_domain(
    nodes: list[dict[str, Any]], asked: list[UnitRequest], data: st.DataObject
) -> None:
    inventory = inventory_of(nodes)
    first = place(inventory, asked, NOW)
    reserve_all(inventory, asked, first)
    placed = _placed(first)
    if not placed:
        return
    chosen = data.draw(st.sampled_from(sorted(placed)))
    lost = data.draw(st.sampled_from(sorted(set(placed[chosen][1].values()))))
    left: dict[UnitId, dict[str, str]] = {}
    for unit, instance, pod, where in _seats(asked, placed):
        if where != lost:
            inventory.put_pod(bound(unit, instance, pod, where))
            left.setdefault(unit.id, {})[pod] = where
    inventory.drop_node(lost)
    decisions = place(inventory, asked, NOW)
    check(inventory, asked, decisions)
    again = _placed(decisions)
    for unit in asked:
        if unit.id in left and unit.id in again:
            domain, seats = again[unit.id]
            assert left[unit.id].items() <= seats.items()
            if unit.pack_within and unit.enforcement == Enforcement.REQUIRED:
                assert domain == placed[unit.id][0]


def _seats(
    asked: list[UnitRequest], placed: Mapping[UnitId, tuple[Domain | None, dict[str, str]]]
) -> Iterator[tuple[UnitRequest, InstanceRequest, str, str]]:
    """Unit, instance, pod and node of all that was placed."""
    for unit in asked:
        for instance in unit.instances:
            for pod in instance.pod_names:
                if unit.id in placed:
                    yield unit, instance, pod, placed[unit.id][1][pod]


def _home(inventory: Inventory, unit: UnitRequest, domain: Domain | None) -> list[str]:
    """Nodes of the domain in which it was placed."""
    level = next((one for one in unit.levels if domain and one.name == domain.level), None)
    known = sorted(inventory.nodes.items())
    return [name for name, node in known if level is None or domain_of(node, level) == domain]


def bound(unit: UnitRequest, instance: InstanceRequest, pod: str, node: str) -> dict[str, Any]:
    labels = {"distserve.io/deployment": unit.id.deployment, "distserve.io/unit": unit.id.unit}
    asked = {name: str(count) for name, count in instance.requests.items()}
    return {
        "metadata": {"name": pod, "namespace": "ns", "uid": pod, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"resources": {"requests": asked}}]},
        "status": {"phase": "Running"},
    }


def _placed(decisions: list[Decision]) -> dict[UnitId, tuple[Domain | None, dict[str, str]]]:
    return {d.unit: (d.domain, dict(d.nodes)) for d in decisions if isinstance(d, Placed)}


# Equality with brute force


@st.composite
def small_clusters(draw: st.DrawFn) -> list[dict[str, Any]]:
    cliques = st.sampled_from(["c0", "c1", "c2"])
    return [
        node(f"n{i}", draw(st.integers(0, 4)), draw(st.integers(1, 8)), draw(cliques), "a")
        for i in range(draw(st.integers(1, 4)))
    ]


@st.composite
def small_units(draw: st.DrawFn) -> list[UnitRequest]:
    found = []
    for index in range(draw(st.integers(1, 5))):
        instances = tuple(
            InstanceRequest(
                f"u{index}-i{i}",
                draw(st.integers(1, 2)),
                {GPU: draw(st.integers(0, 3)), "cpu": draw(st.integers(1, 4))},
            )
            for i in range(draw(st.integers(1, 2)))
        )
        id = UnitId("ns", "d", f"u{index}")
        found.append(UnitRequest(id, instances, index, 0, (CLIQUE, ZONE), "nvlink"))
    return found


Free = dict[str, tuple[int, int]]


def seatings(unit: UnitRequest, free: Free, cliques: dict[str, str]) -> Iterator[Free]:
    """What may be left of the nodes' GPUs and cores with the unit in one of the cliques."""
    pods = [
        (int(one.requests[GPU]), int(one.requests["cpu"]))
        for one in unit.instances
        for _ in range(one.pods)
    ]
    for clique in sorted(set(cliques.values())):
        names = [name for name in free if cliques[name] == clique]
        for seats in product(names, repeat=len(pods)):
            left = dict(free)
            for name, (gpus, cpu) in zip(seats, pods, strict=True):
                left[name] = (left[name][0] - gpus, left[name][1] - cpu)
            if all(gpus >= 0 and cpu >= 0 for gpus, cpu in left.values()):
                yield left


def accepted_by_brute_force(asked: list[UnitRequest], nodes: list[dict[str, Any]]) -> set[UnitId]:
    """Each unit in turn, if there is any way at all to seat it with all that were accepted."""
    cliques = {n["metadata"]["name"]: n["metadata"]["labels"]["clique"] for n in nodes}
    room = {n["metadata"]["name"]: n["status"]["allocatable"] for n in nodes}
    states = {tuple(sorted((n, (int(r[GPU]), int(r["cpu"]))) for n, r in room.items()))}
    accepted = set()
    for unit in asked:
        after = {
            tuple(sorted(left.items()))
            for state in states
            for left in seatings(unit, dict(state), cliques)
        }
        if after:
            states = after
            accepted.add(unit.id)
    return accepted


@given(small_clusters(), small_units())
@settings(patient, max_examples=150)
def test_as_many_units_are_placed_as_there_is_any_way_to(
    nodes: list[dict[str, Any]], asked: list[UnitRequest]
) -> None:
    """In the order of their age: no younger unit is preferred to an older one that could fit."""
    found = place(inventory_of(nodes), asked, NOW)
    assert {d.unit for d in found if isinstance(d, Placed)} == accepted_by_brute_force(asked, nodes)


@pytest.mark.parametrize("small", [1, 2, 4])
def test_a_big_unit_is_not_starved_by_small_ones(small: int) -> None:
    """Small ones come and go for ever, faster than the big one could fit by chance."""
    inventory = inventory_of(node(f"n{i}", 8, 64, "c0", "a") for i in range(2))
    big = UnitRequest(
        UnitId("ns", "big", "u0"),
        (InstanceRequest("big-u0-i0", 2, {GPU: 8}),),
        100.0,
        levels=(CLIQUE,),
        pack_within="nvlink",
        reserve_after_seconds=60.0,
    )
    running: list[tuple[float, UnitRequest]] = []
    waiting: list[UnitRequest] = []
    count = 0
    for step in range(400):
        now = float(step)
        for ends, unit in list(running):
            if ends <= now:
                inventory.release(unit.id)
                running.remove((ends, unit))
        while len(waiting) < 20:
            id = UnitId("ns", "small", f"u{count}")
            instance = InstanceRequest(f"small-{id.unit}-i0", 1, {GPU: small})
            waiting.append(
                UnitRequest(id, (instance,), now, levels=(CLIQUE,), pack_within="nvlink")
            )
            count += 1
        asked = [*waiting, big] if now >= 100 else waiting
        by_id = {unit.id: unit for unit in asked}
        for decision in place(inventory, asked, now):
            if isinstance(decision, Placed):
                unit = by_id[decision.unit]
                if unit is big:
                    return
                inventory.reserve(unit, decision.nodes)
                waiting.remove(unit)
                running.append((now + 20 + len(running) % 7, unit))
    pytest.fail("the big unit was never placed")
