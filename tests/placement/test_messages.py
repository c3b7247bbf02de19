"""What a waiting unit's user reads: what is short, where, and what to do."""

from collections.abc import Callable
from typing import Any

from distserve.placement import Enforcement, Inventory, Reason, Waiting, inventory_of, place

Make = Callable[..., Any]
GPU = "nvidia.com/gpu"
ROOM = (
    ". Free that much there or add nodes; "
    "topology.enforcement: Preferred lets it use a looser level"
)
SMALLER = ". Make the unit smaller (parallelism, instancesPerUnit), choose a looser "


def message(inventory: Inventory, unit: Any, reason: Reason, now: float = 0.0) -> str:
    (decision,) = place(inventory, [unit], now)
    assert isinstance(decision, Waiting)
    assert decision.reason == reason
    return decision.message


def test_no_room_names_the_shortage_and_the_roomiest_domain(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=4, size=1, gpus=4))
    for index, gpus in enumerate((4, 2, 3, 4)):
        inventory.reserve(unit(f"x{index}", gpus), {f"opt-x{index}-i0-0": f"n{index}-0"})
    said = message(inventory, unit("u1", 2, 1), Reason.NO_ROOM)
    assert (
        said
        == f"unit u1 needs 3 {GPU} in one nvlink domain; the roomiest of 4 (c1) has 2 free" + ROOM
    )


def test_the_biggest_shortage_comes_first(fabric: Make, unit: Make, pod: Make) -> None:
    inventory = inventory_of(
        fabric(domains=1, size=1), [pod("x", "n0-0", {"cpu": 60, "memory": "500Gi", GPU: 7})]
    )
    asked = unit("u1", 2, instance={})
    one = asked.instances[0]
    wanted = {"cpu": 6, "memory": 32 * 2**30, GPU: 2}
    asked = type(asked)(asked.id, (type(one)(one.name, 1, wanted),), 0.0, 0, asked.levels, "nvlink")
    said = message(inventory, asked, Reason.NO_ROOM)
    assert said == (
        f"unit u1 needs 32 GiB memory and 2 {GPU} and 6 cpu in nvlink domain c0, "
        "which has 12 GiB and 1 and 4 free" + ROOM
    )


def test_nodes_that_cannot_be_used_are_told(fabric: Make, unit: Make) -> None:
    nodes = fabric(domains=1, size=4)
    nodes[0]["spec"]["unschedulable"] = True
    nodes[1]["status"]["conditions"][0]["status"] = "Unknown"
    # A node that came just now is Ready a moment before its taint goes.
    nodes[2]["spec"]["taints"] = [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    said = message(inventory_of(nodes), unit("u1", 8, 8), Reason.NO_ROOM)
    assert said == (
        f"unit u1 needs 16 {GPU} in nvlink domain c0, which has 8 free "
        "(not counting nodes there: 1 cordoned, 1 not ready, "
        "1 with the taint node.kubernetes.io/not-ready:NoSchedule)" + ROOM
    )


def test_room_in_pieces_names_the_pod_and_the_best_node(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=1, size=2))
    for index, gpus in enumerate((5, 4)):
        inventory.reserve(unit(f"x{index}", gpus), {f"opt-x{index}-i0-0": f"n0-{index}"})
    said = message(inventory, unit("u1", 6), Reason.NO_ROOM)
    assert said == (
        f"unit u1 needs 6 {GPU} on one node for opt-u1-i0-0; "
        "the most in nvlink domain c0 is 4 free (n0-1)" + ROOM
    )


def test_without_levels_the_cluster_is_short(node: Make, unit: Make) -> None:
    inventory = inventory_of([node("a", 4)])
    inventory.reserve(unit("x", 2), {"opt-x-i0-0": "a"})
    said = message(inventory, unit("u1", 3, levels=(), pack_within=None), Reason.NO_ROOM)
    assert said == (
        f"unit u1 needs 3 {GPU}; the cluster has 2 free. Free that much there or add nodes"
    )


def test_a_unit_larger_than_any_domain_is_told_so(fabric: Make, unit: Make) -> None:
    said = message(inventory_of(fabric()), unit("u1", 8, 8, 8), Reason.UNIT_LARGER_THAN_DOMAIN)
    assert said == (
        f"unit u1 needs 24 {GPU} in one nvlink domain; the roomiest of 4 (c0) has 16 when empty"
        + SMALLER
        + "topology.packWithin or add nodes there"
    )


def test_a_pod_larger_than_any_node_is_told_so(fabric: Make, unit: Make) -> None:
    said = message(inventory_of(fabric()), unit("u1", 12), Reason.UNIT_LARGER_THAN_DOMAIN)
    assert said == (
        f"unit u1 needs 12 {GPU} on one node for opt-u1-i0-0; "
        "the most in nvlink domain c0 is 8 when empty (n0-0)"
        + SMALLER
        + "topology.packWithin or add larger nodes"
    )


def test_a_resource_that_no_node_has(node: Make, unit: Make) -> None:
    nodes = [node("a", 0)]
    del nodes[0]["status"]["allocatable"][GPU]
    asked = unit("u1", 1, levels=(), pack_within=None)
    said = message(inventory_of(nodes), asked, Reason.UNIT_LARGER_THAN_DOMAIN)
    assert said.startswith(f"unit u1 needs 1 {GPU}; the cluster has 0 when empty")


def test_why_no_node_will_do_is_counted(node: Make, unit: Make) -> None:
    taint = {"key": "team", "value": "x", "effect": "NoSchedule"}
    nodes = [
        node("a"),
        node("b"),
        node("c", labels={"gpu": "h200"}, taints=[taint]),
        node("d", labels={"gpu": "h200"}, cordoned=True),
    ]
    asked = unit("u1", 1, instance={"node_selector": {"gpu": "h200"}})
    assert message(inventory_of(nodes), asked, Reason.NO_MATCHING_NODES) == (
        "unit u1: opt-u1-i0 may use none of the 4 nodes (2 without the label gpu=h200, "
        "1 with the taint team=x:NoSchedule, 1 cordoned). Change its podTemplate's "
        "nodeSelector, affinity or tolerations, or those nodes"
    )


def test_an_empty_cluster_is_told(unit: Make) -> None:
    said = message(Inventory(), unit("u1", 1), Reason.NO_MATCHING_NODES)
    assert said == "unit u1: the cluster has no nodes"


def test_instances_whose_nodes_share_no_domain(fabric: Make, unit: Make) -> None:
    nodes = fabric(domains=2, size=1)
    asked = unit("u1", 1, 1)
    first, second = asked.instances
    apart = tuple(
        type(one)(one.name, 1, one.requests, {"nvidia.com/gpu.clique": clique})
        for one, clique in ((first, "c0"), (second, "c1"))
    )
    asked = type(asked)(asked.id, apart, 0.0, 0, asked.levels, "nvlink")
    assert message(inventory_of(nodes), asked, Reason.NO_MATCHING_NODES) == (
        "unit u1: no nvlink domain has usable nodes for all of its instances. "
        "Make their podTemplates' selectors agree, or bring nodes back"
    )


def test_a_preferred_unit_is_told_of_the_level_it_may_use_by_now(fabric: Make, unit: Make) -> None:
    inventory = inventory_of(fabric(domains=2, size=1, gpus=4))
    inventory.reserve(unit("x", 4), {"opt-x-i0-0": "n0-0"})
    asked = unit("u1", 4, 4, enforcement=Enforcement.PREFERRED, relax_after_seconds=60, since=0)
    said = message(inventory, asked, Reason.NO_ROOM, now=60.0)
    assert said == (
        f"unit u1 needs 8 {GPU} in leaf domain l0, which has 4 free. "
        "Free that much there or add nodes"
    )
