"""Where units go, as their users see it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.placement import (
    Decision,
    Domain,
    Enforcement,
    Inventory,
    Level,
    Placed,
    Reason,
    UnitRequest,
    Waiting,
    inventory_of,
    place,
)

Make = Callable[..., Any]
GPU = "nvidia.com/gpu"
CLIQUE, LEAF, ZONE = (
    "nvidia.com/gpu.clique",
    "fabric.topograph.run/tier-0",
    "topology.kubernetes.io/zone",
)


def only(inventory: Inventory, unit: UnitRequest, now: float = 0.0) -> Decision:
    (decision,) = place(inventory, [unit], now)
    return decision


def placed(inventory: Inventory, unit: UnitRequest, now: float = 0.0) -> Placed:
    """Decided, and reserved as its operator would."""
    decision = only(inventory, unit, now)
    assert isinstance(decision, Placed), decision
    inventory.reserve(unit, decision.nodes)
    return decision


def waits(inventory: Inventory, unit: UnitRequest, now: float = 0.0) -> Waiting:
    decision = only(inventory, unit, now)
    assert isinstance(decision, Waiting), decision
    return decision


# Domains


def test_a_unit_lies_in_one_domain_of_its_level(fabric: Make, unit: Make) -> None:
    found = placed(inventory_of(fabric()), unit("u0", 8, 8))
    assert found.domain == Domain("nvlink", CLIQUE, "c0")
    assert set(found.nodes.values()) == {"n0-0", "n0-1"}


def test_without_levels_the_cluster_is_the_domain(node: Make, unit: Make) -> None:
    found = placed(
        inventory_of([node("a", 1), node("b", 1)]),
        unit("u0", 1, 1, levels=(), pack_within=None),
    )
    assert found.domain is None
    assert set(found.nodes.values()) == {"a", "b"}


def test_units_without_accelerators_are_placed_by_their_cores(node: Make, unit: Make) -> None:
    nodes = [node("a", 0, cpu="4"), node("b", 0, cpu="8")]
    asked = unit("u0", 0, 0, levels=(), pack_within=None)
    instances = tuple(
        type(one)(one.name, 1, {"cpu": cpu})
        for one, cpu in zip(asked.instances, (5, 4), strict=True)
    )
    found = placed(inventory_of(nodes), UnitRequest(asked.id, instances, waiting_since=0.0))
    assert list(found.nodes.values()) == ["b", "a"]


def test_a_node_without_the_label_is_a_domain_by_itself(node: Make, unit: Make) -> None:
    inventory = inventory_of([node("a", 4), node("b", 4)])
    found = placed(inventory, unit("u0", 2, 2))
    assert found.domain == Domain("nvlink", "kubernetes.io/hostname", "a")
    larger = waits(inventory_of([node("a", 4), node("b", 4)]), unit("u0", 4, 4))
    assert larger.reason == Reason.UNIT_LARGER_THAN_DOMAIN


def test_inside_a_looser_level_a_tighter_domain_is_preferred(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric())
    # Leaf l0 is fuller, so it would be chosen, but its cliques are both begun.
    placed(inventory, unit("a", 5, 5))
    inventory.reserve(unit("b", 5), {"opt-b-i0-0": "n1-0"})
    found = placed(inventory, unit("u0", 8, 8, pack_within="leaf"))
    assert found.domain == Domain("leaf", LEAF, "l1")
    assert set(found.nodes.values()) == {"n2-0", "n2-1"}


def test_the_fullest_domain_and_node_that_will_do_are_taken(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=3))
    inventory.reserve(unit("x", 6), {"opt-x-i0-0": "n1-0"})
    inventory.reserve(unit("y", 5), {"opt-y-i0-0": "n1-1"})
    found = placed(inventory, unit("u0", 2, 3, deployment="other"))
    assert sorted(found.nodes.values()) == ["n1-0", "n1-1"]
    assert inventory.free("n1-0")[GPU] == inventory.free("n1-1")[GPU] == 0


def test_an_instances_pods_go_to_as_few_nodes_as_fit(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=1, size=4))
    for index, gpus in enumerate((6, 6, 4)):
        inventory.reserve(unit(f"x{index}", gpus), {f"opt-x{index}-i0-0": f"n0-{index}"})
    found = placed(inventory, unit("u0", 2, pods=4))
    assert set(found.nodes.values()) == {"n0-3"}


def test_an_instance_of_several_nodes_lies_in_a_tighter_domain_where_it_can(
    fabric: Make, unit: Make
) -> None:
    """Its ranks talk to each other most. The first clique has two nodes left, the second three."""
    inventory = inventory_of(fabric(domains=2, size=3))
    inventory.reserve(unit("x", 8), {"opt-x-i0-0": "n0-0"})
    asked = unit("u0", 8, 8, pack_within="leaf", deployment="d")
    two, three = (
        replace(instance, pods=pods) for instance, pods in zip(asked.instances, (2, 3), strict=True)
    )
    found = placed(inventory, replace(asked, instances=(two, three)))
    homes = [{found.nodes[pod][:2] for pod in one.pod_names} for one in (two, three)]
    assert homes == [{"n0"}, {"n1"}]


def test_a_deployments_units_are_spread_over_what_fails_apart(fabric: Make, unit: Make) -> None:
    """Zones, here; inside them the fullest clique that will do is taken still."""
    inventory = inventory_of(fabric(domains=8))
    domains = [placed(inventory, unit(f"u{n}", 2, 2)).domain for n in range(4)]
    assert [domain.value if domain else "" for domain in domains] == ["c0", "c4", "c0", "c4"]


def test_levels_may_be_named_by_no_node(node: Make, unit: Make) -> None:
    asked = unit("u0", 1, levels=(Level("x", "nobody/has-it"),), pack_within="x")
    assert placed(inventory_of([node("a")]), asked).nodes == {"opt-u0-i0-0": "a"}


def test_packing_within_an_unknown_level_is_refused(unit: Make) -> None:
    with pytest.raises(ValueError, match="no level 'rack'; there is nvlink, leaf, zone"):
        unit("u0", 1, pack_within="rack")


def test_a_unit_without_pods_needs_no_place(fabric: Make, unit: Make) -> None:
    found = placed(inventory_of(fabric()), unit("u0"))
    assert (found.domain, found.nodes, found.packed) == (None, {}, 1.0)


# Who goes first


def test_priority_goes_first_then_age(node: Make, unit: Make) -> None:
    asked = [
        unit("young", 8, since=20),
        unit("old", 8, since=10),
        unit("important", 8, since=30, priority=100),
    ]
    nodes = [node("a"), node("b")]
    found = place(inventory_of(nodes), asked, 40.0)
    assert [d.unit.unit for d in found] == ["important", "old", "young"]
    assert [type(d) for d in found] == [Placed, Placed, Waiting]


def test_of_units_made_at_once_the_larger_go_first(fabric: Make, unit: Make) -> None:
    asked = [unit("a", 4, 4), unit("b", 8, 4, 4), unit("c", 8, 8, since=1)]
    found = place(inventory_of(fabric()), asked, 1.0)
    assert [decision.unit.unit for decision in found] == ["b", "a", "c"]


def test_two_for_the_last_domain_one_wins_whole_the_other_waits_whole(
    fabric: Make, unit: Make
) -> None:
    inventory = inventory_of(fabric(domains=1))
    asked = [unit("u0", 8, 4, deployment=name, since=1.0) for name in ("a", "b")]
    first, second = place(inventory, asked, 2.0)
    assert isinstance(first, Placed) and len(first.nodes) == 2
    assert isinstance(second, Waiting)


def test_small_units_go_ahead_of_one_that_does_not_fit(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=1))
    placed(inventory, unit("a", 4))
    asked = [unit("big", 8, 8, since=1), unit("small", 4, since=2)]
    big, small = place(inventory, asked, 3.0)
    assert isinstance(big, Waiting) and isinstance(small, Placed)


def test_units_of_one_pass_make_way_for_each_other(fabric: Make, unit: Make) -> None:
    """The first would lie in the smaller domain, where alone the second fits."""
    nodes = [n for n in fabric(domains=2, size=1)]
    nodes[0]["status"]["allocatable"][GPU] = "2"
    nodes[0]["metadata"]["labels"]["only"] = "here"
    asked = [
        unit("u0", 2, since=1),
        unit("u1", 2, since=2, instance={"node_selector": {"only": "here"}}),
    ]
    first, second = place(inventory_of(nodes), asked, 3.0)
    assert isinstance(first, Placed) and isinstance(second, Placed)
    assert (set(first.nodes.values()), set(second.nodes.values())) == ({"n1-0"}, {"n0-0"})


def test_after_reserve_after_a_big_unit_keeps_nodes_from_those_behind_it(
    fabric: Make, unit: Make
) -> None:
    inventory = inventory_of(fabric(domains=2, size=2))
    for name, node in (("a", "n0-0"), ("b", "n1-0"), ("c", "n1-1")):
        inventory.reserve(unit(name, 4), {f"opt-{name}-i0-0": node})
    big = unit("big", 8, 8, deployment="big", since=0, reserve_after_seconds=60)
    small = unit("small", 4, deployment="small", since=10)
    other = unit("other", 4, deployment="other", since=11)

    waiting, *rest = place(inventory, [big, small, other], 30.0)
    assert isinstance(waiting, Waiting) and waiting.holds == ()
    assert [type(one) for one in rest] == [Placed, Placed]

    held, around, behind = place(inventory, [big, small, other], 61.0)
    assert isinstance(held, Waiting) and held.holds == ("n0-0", "n0-1")
    assert held.message.endswith("Kept free for it by now: n0-0, n0-1")
    assert isinstance(around, Placed) and set(around.nodes.values()) == {"n1-0"}
    assert isinstance(behind, Placed) and set(behind.nodes.values()) == {"n1-1"}

    late = unit("late", 4, deployment="late", since=12)
    *_, shut_out = place(inventory, [big, small, other, late], 61.0)
    assert isinstance(shut_out, Waiting)
    assert shut_out.reason == Reason.HELD_FOR_ANOTHER
    assert "would fit in nvlink domain c0" in shut_out.message

    inventory.release(unit("a", 4).id)
    assert isinstance(place(inventory, [big, small], 62.0)[0], Placed)


def test_nobody_is_moved_onto_held_nodes_to_make_way_for_one_behind(
    fabric: Make, unit: Make
) -> None:
    """The first could go beside what runs in c0, but that is kept for the big one."""
    inventory = inventory_of(fabric(domains=2, size=1))
    inventory.reserve(unit("x", 4), {"opt-x-i0-0": "n0-0"})
    inventory.reserve(unit("y", 6), {"opt-y-i0-0": "n1-0"})
    in_c1 = {"node_selector": {CLIQUE: "c1"}}
    first = unit("first", 2, since=0, deployment="first")
    big = unit("big", 8, since=1, deployment="big", reserve_after_seconds=1)
    behind = unit("behind", 2, since=2, deployment="behind", instance=in_c1)
    placed_first, waiting, shut_out = place(inventory, [first, big, behind], 10.0)
    assert isinstance(placed_first, Placed)
    assert list(placed_first.nodes.values()) == ["n1-0"]
    assert isinstance(waiting, Waiting) and waiting.holds == ("n0-0",)
    assert isinstance(shut_out, Waiting)
    # Without the hold it would make way.
    assert isinstance(place(inventory, [first, behind], 10.0)[1], Placed)


def test_room_that_a_unit_behind_gives_up_is_seen_in_the_same_pass(
    fabric: Make, unit: Make, pod: Make
) -> None:
    """A foreign pod drives a younger unit out of c0; what it leaves is enough for an older one."""
    inventory = inventory_of(fabric(domains=2, size=1))
    young = unit("young", 6, since=5)
    inventory.reserve(young, {"opt-young-i0-0": "n0-0"})
    inventory.put_pod(pod("intruder", "n0-0", {GPU: 4}))
    old = unit("old", 3, since=1, instance={"node_selector": {CLIQUE: "c0"}})
    found = place(inventory, [old, young], 10.0)
    assert [dict(d.nodes) for d in found if isinstance(d, Placed)] == [
        {"opt-old-i0-0": "n0-0"},
        {"opt-young-i0-0": "n1-0"},
    ]


def test_what_is_larger_than_every_domain_holds_nothing(fabric: Make, unit: Make) -> None:
    big = unit("u0", 8, 8, 8, since=0, reserve_after_seconds=1)
    assert waits(inventory_of(fabric()), big, 100.0).holds == ()


# What runs, and what happens to it


def test_what_was_decided_stays_though_better_room_is_free_now(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2))
    placed(inventory, unit("x", 8, 8))
    asked = unit("u0", 2)
    inventory.reserve(asked, {"opt-u0-i0-0": "n1-1"})
    inventory.release(unit("x", 8, 8).id)
    assert placed(inventory, asked).nodes == {"opt-u0-i0-0": "n1-1"}


def test_room_that_a_foreign_pod_took_is_found_elsewhere(
    fabric: Make, unit: Make, pod: Make
) -> None:
    inventory = inventory_of(fabric(domains=2, size=1))
    asked = unit("u0", 6)
    assert placed(inventory, asked).nodes == {"opt-u0-i0-0": "n0-0"}
    inventory.put_pod(pod("intruder", "n0-0", {GPU: 4}))
    assert placed(inventory, asked).nodes == {"opt-u0-i0-0": "n1-0"}


def test_a_lost_pod_is_placed_again_beside_the_others(fabric: Make, unit: Make, pod: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=3))
    asked = unit("u0", 8, 8)
    prefill, decode = asked.pod_names
    nodes = dict(placed(inventory, asked).nodes)
    inventory.put_pod(pod(prefill, nodes[prefill], {GPU: 8}, unit=asked.id))
    inventory.drop_node(nodes[decode])
    again = placed(inventory, asked)
    assert again.domain == Domain("nvlink", CLIQUE, "c0")
    assert again.nodes == {prefill: nodes[prefill], decode: "n0-2"}


def test_a_lost_pod_waits_where_its_domain_has_no_room(fabric: Make, unit: Make, pod: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=2))
    asked = unit("u0", 8, 8)
    prefill, _ = asked.pod_names
    inventory.put_pod(pod(prefill, "n0-0", {GPU: 8}, unit=asked.id))
    inventory.drop_node("n0-1")
    found = waits(inventory, asked)
    assert found.reason == Reason.NO_ROOM
    assert f"needs 8 {GPU} in nvlink domain c0, which has 0 free" in found.message


def test_a_cordon_moves_nothing_that_runs_and_lets_nothing_new_in(
    fabric: Make, node: Make, unit: Make, pod: Make
) -> None:
    nodes = fabric(domains=1, size=2)
    inventory = inventory_of(nodes)
    asked = unit("u0", 4)
    inventory.put_pod(pod("opt-u0-i0-0", "n0-0", {GPU: 4}, unit=asked.id))
    nodes[0]["spec"]["unschedulable"] = True
    inventory.put_node(nodes[0])
    assert placed(inventory, asked).nodes == {"opt-u0-i0-0": "n0-0"}
    assert placed(inventory, unit("u1", 4)).nodes == {"opt-u1-i0-0": "n0-1"}


def test_a_label_that_changes_under_a_unit_is_told(fabric: Make, unit: Make, pod: Make) -> None:
    nodes = fabric(domains=2, size=2)
    inventory = inventory_of(nodes)
    asked = unit("u0", 8, 8)
    for name, where in zip(asked.pod_names, ("n0-0", "n0-1"), strict=True):
        inventory.put_pod(pod(name, where, {GPU: 8}, unit=asked.id))
    nodes[1]["metadata"]["labels"][CLIQUE] = "c1"
    inventory.put_node(nodes[1])
    found = waits(inventory, asked)
    assert found.reason == Reason.SPLIT
    assert "run in 2 nvlink domains (c0, c1)" in found.message


def test_a_unit_with_statefulsets_stays_in_their_domain(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2))
    home = Domain("nvlink", CLIQUE, "c1")
    assert placed(inventory, unit("u0", 2, within=home)).domain == home
    inventory.reserve(unit("x", 8, 8), {"opt-x-i0-0": "n1-0", "opt-x-i1-0": "n1-1"})
    inventory.release(unit("u0").id)
    assert "in nvlink domain c1" in waits(inventory, unit("u0", 2, within=home)).message


def test_a_domain_that_is_gone_is_named(fabric: Make, unit: Make) -> None:
    home = Domain("nvlink", CLIQUE, "c9")
    found = waits(inventory_of(fabric()), unit("u0", 2, within=home))
    assert found.reason == Reason.NO_ROOM
    assert "nvlink domain c9, where it belongs, has no usable node" in found.message


# Preferred


def test_preferred_takes_the_next_level_after_each_wait(fabric: Make, unit: Make) -> None:
    """Four cliques of two nodes, two to a leaf: 20 GPUs fit a leaf, 40 fit the zone alone."""
    preferred = {"enforcement": Enforcement.PREFERRED, "relax_after_seconds": 60, "since": 0}
    inventory = inventory_of(fabric())
    small, large = (unit("u0", *[4] * n, **preferred) for n in (5, 10))
    waits(inventory, small, 59.0)
    found = only(inventory, small, 60.0)
    assert isinstance(found, Placed) and found.domain == Domain("leaf", LEAF, "l0")
    assert found.packed == pytest.approx((4 * 3 + 1 * 0) / (5 * 4))
    waits(inventory, large, 119.0)
    found = only(inventory, large, 120.0)
    assert isinstance(found, Placed) and found.domain == Domain("zone", ZONE, "z0")


def test_preferred_ends_at_the_whole_cluster(node: Make, unit: Make) -> None:
    nodes = [node(f"n{z}", 4, labels={CLIQUE: f"c{z}", ZONE: f"z{z}"}) for z in range(2)]
    asked = unit("u0", 4, 4, enforcement=Enforcement.PREFERRED, relax_after_seconds=1, since=0)
    waits(inventory_of(nodes), asked, 2.0)
    found = placed(inventory_of(nodes), asked, 3.0)
    assert (found.domain, found.packed) == (None, 0.0)


def test_preferred_takes_the_tight_level_where_it_fits(fabric: Make, unit: Make) -> None:
    asked = unit("u0", 4, 4, enforcement=Enforcement.PREFERRED, relax_after_seconds=1, since=0)
    found = placed(inventory_of(fabric()), asked, 1000.0)
    assert (found.domain, found.packed) == (Domain("nvlink", CLIQUE, "c0"), 1.0)


def test_required_never_takes_another_level(fabric: Make, unit: Make) -> None:
    waits(inventory_of(fabric()), unit("u0", 8, 8, 8, since=0), 1e9)
