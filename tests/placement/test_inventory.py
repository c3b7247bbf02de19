"""What is free, whatever the watches told and in which order."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from distserve.api import labels
from distserve.placement import InstanceRequest, Inventory, UnitId, UnitRequest, inventory_of
from distserve.placement.devices import class_resource
from distserve.placement.nodes import node_from
from distserve.placement.pods import (
    CLAIMS_ANNOTATION,
    DEPLOYMENT_LABEL,
    UNIT_LABEL,
    claimed_amounts,
    pod_amounts,
    pod_from,
)
from distserve.placement.quantities import amounts, describe, parse_quantity

Make = Callable[..., Any]
GPU = "nvidia.com/gpu"


def test_labels_are_the_resources_own() -> None:
    assert (DEPLOYMENT_LABEL, UNIT_LABEL) == (labels.DEPLOYMENT, labels.UNIT)
    assert CLAIMS_ANNOTATION == labels.CLAIMS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("8", 8), ("1.5", 1.5), (".5", 0.5), ("2.", 2), ("+3", 3), ("-1", -1),
        ("100m", 0.1), ("1k", 1000), ("2Ki", 2048), ("1.5Gi", 1.5 * 2**30), ("128974", 128974),
        ("129e6", 129e6), ("1E3", 1000), ("5e-1", 0.5), ("1E", 10**18), ("1Ei", 2**60),
        ("500u", 0.0005), ("1000000n", 0.001),
    ],
)  # fmt: skip
def test_quantities_are_read_as_the_api_server_writes_them(text: str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1.2.3", "1gi", "1e", "one", "1Ki2"])
def test_what_is_no_quantity_is_refused_with_the_cure(text: str) -> None:
    with pytest.raises(ValueError, match="as in 64Mi"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["1e999999999", "9" * 10**6, "1e-100"])
def test_what_takes_long_to_read_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="as in 64Mi") as refused:
        parse_quantity(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "claims", ["x", "[]", '{"a": "1"}', '{"a": null}', '{"a": -8}', "[" * 10**5]
)
def test_a_strangers_claims_are_no_reason_to_stop(pod: Make, claims: str) -> None:
    """Anybody may write such a pod: neither does it make room, nor is it left out."""
    annotations = {CLAIMS_ANNOTATION: claims}
    unit = UnitId("x", "y", "u0")
    found = pod_from(pod("opt-0", "a", {GPU: 2}, unit=unit, annotations=annotations))
    assert found is not None and found.amounts == {GPU: 2, "pods": 1}
    with pytest.raises(ValueError):
        claimed_amounts({"annotations": annotations})


@pytest.mark.parametrize(
    ("claims", "told", "counted"),
    [
        ((), 1, 0),
        (("mine",), 1, 0),
        (("distserve-devices", "mine"), 32, 32),
        (("distserve-devices", "mine"), 33, 0),
        (("distserve-devices",), 10**9, 0),
        (("distserve-devices", "distserve-channel"), 33, 33),
    ],
)
def test_no_pod_takes_more_devices_than_its_claims_can_hold(
    pod: Make, claims: tuple[str, ...], told: int, counted: int
) -> None:
    """Anybody may write such a pod, and its node is everybody's."""
    annotations = {CLAIMS_ANNOTATION: json.dumps({"gpu.nvidia.com": told, "other": 0})}
    unit = UnitId("x", "y", "u0")
    found = pod_from(pod("opt-0", "a", unit=unit, claims=claims, annotations=annotations))
    devices = {class_resource("gpu.nvidia.com"): counted} if counted else {}
    assert found is not None and found.amounts == {"pods": 1} | devices


def _owner(**other: Any) -> dict[str, Any]:
    of_ours = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "opt", "controller": True}
    return of_ours | other


@pytest.mark.parametrize(
    "owners",
    [
        [],
        [_owner(kind="ReplicaSet")],
        [_owner(controller=False)],
        [_owner(name="another")],
        [_owner(apiVersion="mine.example/v1")],
    ],
)
def test_what_a_pod_claims_counts_where_a_stateful_set_runs_it(
    pod: Make, owners: list[dict[str, Any]]
) -> None:
    """Anybody may write the annotation, and say on which node the pod is."""
    told = {CLAIMS_ANNOTATION: json.dumps({"gpu.nvidia.com": 8})}
    of_ours = {"unit": UnitId("x", "y", "u0"), "claims": ["distserve-devices"]}
    found = pod_from(pod("opt-0", "a", annotations=told, ownerReferences=owners, **of_ours))
    assert found is not None and found.amounts == {"pods": 1}


def test_amounts_are_rounded_up_as_the_scheduler_does() -> None:
    found = amounts({"cpu": "100.5m", "memory": "1.5", GPU: "1"})
    assert found == {"cpu": 101, "memory": 2, GPU: 1}


@pytest.mark.parametrize(
    ("resource", "count", "text"),
    [
        ("cpu", 1500, "1.5 cpu"),
        ("memory", 64 * 2**30, "64 GiB memory"),
        ("memory", 3 * 2**29, "1.5 GiB memory"),
        (GPU, 3, f"3 {GPU}"),
    ],
)
def test_amounts_are_written_with_their_unit(resource: str, count: int, text: str) -> None:
    assert describe(resource, count) == text


def test_a_node_is_kept_with_what_keeps_pods_off(node: Make) -> None:
    document = node(
        "a",
        cordoned=True,
        ready=False,
        taints=[
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
            {"key": "soft", "effect": "PreferNoSchedule"},
            {"key": "own", "value": "x", "effect": "NoExecute"},
        ],
    )
    found = node_from(document)
    assert [str(taint) for taint in found.taints] == ["own=x:NoExecute"]
    assert (found.cordoned, found.ready, found.usable) == (True, False, False)


def test_a_pods_requests_count_sidecars_init_steps_and_overhead() -> None:
    def container(**requests: str) -> dict[str, Any]:
        return {"resources": {"requests": requests}}

    spec = {
        "initContainers": [
            container(cpu="3"),
            container(cpu="1", memory="1Gi") | {"restartPolicy": "Always"},
            container(cpu="2", memory="2Gi"),
        ],
        "containers": [container(cpu="1"), {"resources": {"limits": {GPU: "2"}}}],
        "overhead": {"cpu": "250m"},
    }
    assert pod_amounts(spec) == {"cpu": 3250, "memory": 3 * 2**30, GPU: 2, "pods": 1}


def test_pod_level_resources_take_the_place_of_the_containers() -> None:
    spec = {
        "resources": {"requests": {"cpu": "4"}},
        "containers": [{"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
    }
    assert pod_amounts(spec) == {"cpu": 4000, "memory": 2**30, "pods": 1}


def test_bound_pods_take_room_until_they_finish_or_go(node: Make, pod: Make) -> None:
    inventory = inventory_of([node("a")])
    waiting = pod("p", None, {GPU: 3})
    inventory.put_pod(waiting)
    assert inventory.free("a")[GPU] == 8
    running = pod("p", "a", {GPU: 3})
    inventory.put_pod(running)
    inventory.put_pod(running)
    assert (inventory.free("a")[GPU], inventory.free("a")["pods"]) == (5, 109)
    inventory.put_pod(running | {"status": {"phase": "Succeeded"}})
    assert inventory.free("a")[GPU] == 8
    inventory.put_pod(running)
    inventory.drop_pod("uid-llm-p")
    inventory.drop_pod("uid-llm-p")
    assert inventory.free("a")[GPU] == 8


def test_pods_may_be_known_before_their_node(node: Make, pod: Make) -> None:
    inventory = inventory_of([], [pod("p", "a", {GPU: 3})])
    inventory.put_node(node("a"))
    assert inventory.free("a")[GPU] == 5
    inventory.drop_node("a")
    inventory.put_node(node("a", 4))
    assert inventory.free("a")[GPU] == 1


def test_a_pod_of_the_same_name_takes_the_place_of_one_whose_end_was_not_told(
    node: Make, pod: Make
) -> None:
    inventory = inventory_of([node("a")], [pod("p", "a", {GPU: 3}, uid="old")])
    inventory.put_pod(pod("p", "a", {GPU: 2}, uid="new"))
    inventory.drop_pod("old")
    assert inventory.free("a")[GPU] == 6


def test_only_a_nodes_own_pods_are_there_when_it_is_empty(node: Make, pod: Make) -> None:
    owned = {"ownerReferences": [{"kind": "DaemonSet", "name": "agent"}]}
    pods = [pod("agent", "a", {"cpu": 1}, **owned), pod("job", "a", {"cpu": 2, GPU: 1})]
    inventory = inventory_of([node("a")], pods)
    assert inventory.free("a") | inventory.free_when_empty("a") == inventory.free_when_empty("a")
    assert (inventory.free("a")["cpu"], inventory.free("a")[GPU]) == (61000, 7)
    empty = inventory.free_when_empty("a")
    assert (empty["cpu"], empty[GPU]) == (63000, 8)


def test_reserved_room_is_taken_over_by_the_bound_pod(node: Make, pod: Make, unit: Make) -> None:
    inventory = inventory_of([node("a"), node("b")])
    asked = unit("u0", 2, 3)
    prefill, decode = asked.pod_names
    inventory.reserve(asked, {prefill: "a", decode: "a"})
    inventory.reserve(asked, {prefill: "a", decode: "a"})
    assert inventory.free("a")[GPU] == 3
    inventory.put_pod(pod(decode, "b", {GPU: 3}, unit=asked.id))
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (6, 5)
    inventory.drop_pod(f"uid-llm-{decode}")
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (3, 8)
    inventory.put_pod(pod(decode, "b", {GPU: 3}, unit=asked.id))
    inventory.release(asked.id)
    inventory.release(asked.id)
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (8, 5)
    inventory.drop_pod(f"uid-llm-{decode}")
    assert inventory.free("b")[GPU] == 8
    assert not inventory.units


def test_a_place_is_kept_while_the_former_pod_ends_elsewhere(
    node: Make, pod: Make, unit: Make
) -> None:
    """Pods keep their names: the successor comes when the last of it is gone."""
    inventory = inventory_of([node("a"), node("b")])
    asked = unit("u0", 3)
    (name,) = asked.pod_names
    running = pod(name, "a", {GPU: 2}, unit=asked.id)
    ending = pod(name, "a", {GPU: 2}, unit=asked.id, deletionTimestamp="now")
    inventory.put_pod(running)
    inventory.reserve(asked, {name: "b"})
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (6, 8)
    inventory.put_pod(ending)
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (6, 5)
    without = inventory.without(asked.id)
    assert (without.free("a")[GPU], without.free("b")[GPU]) == (8, 8)
    inventory.reserve(asked, {name: "a"})
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (5, 8), "the larger of both"
    inventory.reserve(asked, {name: "b"})
    inventory.drop_pod(f"uid-llm-{name}")
    assert (inventory.free("a")[GPU], inventory.free("b")[GPU]) == (8, 5)


UNITS = [
    UnitRequest(UnitId("llm", "d", name), (InstanceRequest(f"d-{name}", 2, {GPU: count}),), 0.0)
    for name, count in (("u0", 1), ("u1", 2))
]
NODES = st.sampled_from(["a", "b"])
SEATS = st.tuples(st.sampled_from(UNITS), st.integers(0, 1))


class InventoryMachine(RuleBasedStateMachine):
    """Against a model that adds everything up anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory()
        self.bound: dict[str, tuple[str, int, bool]] = {}
        """Node, devices, and whether it ends."""
        self.reserved: dict[str, tuple[str, int]] = {}

    @rule(name=NODES, gpus=st.integers(0, 8))
    def put_node(self, name: str, gpus: int) -> None:
        metadata = {"name": name}
        self.inventory.put_node({"metadata": metadata, "status": {"allocatable": {GPU: str(gpus)}}})

    @rule(name=NODES)
    def drop_node(self, name: str) -> None:
        self.inventory.drop_node(name)

    @rule(
        seat=SEATS,
        node=NODES,
        count=st.integers(1, 3),
        phase=st.sampled_from(["Running", "Failed"]),
        ends=st.booleans(),
    )
    def put_unit_pod(
        self, seat: tuple[UnitRequest, int], node: str, count: int, phase: str, ends: bool
    ) -> None:
        unit, ordinal = seat
        names = {DEPLOYMENT_LABEL: unit.id.deployment, UNIT_LABEL: unit.id.unit}
        self._put(unit.pod_names[ordinal], node, count, phase, names, ends)

    @rule(node=NODES, count=st.integers(0, 3))
    def put_foreign_pod(self, node: str, count: int) -> None:
        self._put(f"foreign-{count}", node, count, "Running", {}, False)

    def _put(
        self, pod: str, node: str, count: int, phase: str, names: dict[str, str], ends: bool
    ) -> None:
        requests = {"requests": {GPU: str(count)}}
        metadata: dict[str, Any] = {"uid": pod, "name": pod, "namespace": "llm", "labels": names}
        if ends:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self.inventory.put_pod(
            {
                "metadata": metadata,
                "spec": {"nodeName": node, "containers": [{"resources": requests}]},
                "status": {"phase": phase},
            }
        )
        self.bound.pop(pod, None)
        if phase == "Running":
            self.bound[pod] = (node, count, ends)

    @rule(seat=SEATS)
    def drop_pod(self, seat: tuple[UnitRequest, int]) -> None:
        pod = seat[0].pod_names[seat[1]]
        self.inventory.drop_pod(pod)
        self.bound.pop(pod, None)

    @rule(unit=st.sampled_from(UNITS), nodes=st.lists(NODES, max_size=2))
    def reserve(self, unit: UnitRequest, nodes: list[str]) -> None:
        seats = dict(zip(unit.pod_names, nodes, strict=False))
        self.inventory.reserve(unit, seats)
        self._forget(unit)
        count = int(unit.instances[0].requests[GPU])
        self.reserved |= {pod: (node, count) for pod, node in seats.items()}

    @rule(unit=st.sampled_from(UNITS))
    def release(self, unit: UnitRequest) -> None:
        self.inventory.release(unit.id)
        self._forget(unit)

    def _forget(self, unit: UnitRequest) -> None:
        for pod in unit.pod_names:
            self.reserved.pop(pod, None)

    @invariant()
    def counts_agree(self) -> None:
        others = [one for pod, one in self.bound.items() if pod.startswith("foreign")]
        for name, node in self.inventory.nodes.items():
            taken = sum(count for at, count, _ in others if at == name)
            taken += sum(self._taken(unit, name) for unit in UNITS)
            assert self.inventory.free(name)[GPU] == node.allocatable[GPU] - taken

    def _taken(self, unit: UnitRequest, node: str) -> int:
        """What ends makes room for what comes on its node, and for nothing on another one."""
        runs = ends = comes = 0
        for pod in unit.pod_names:
            at, count, ending = self.bound.get(pod, ("", 0, True))
            next_at, next_count = self.reserved.get(pod, ("", 0))
            if at == node:
                ends, runs = (ends + count, runs) if ending else (ends, runs + count)
            if ending and next_at == node:
                comes += next_count
        return runs + max(ends, comes)

    @invariant()
    def nothing_is_kept_for_nothing(self) -> None:
        pods = self.reserved.keys() | self.bound.keys()
        known = {unit.id for unit in UNITS if pods & set(unit.pod_names)}
        assert self.inventory.units.keys() == known


TestInventory = InventoryMachine.TestCase
TestInventory.settings = settings(deadline=None, max_examples=60)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    try:
        parse_quantity(text)
    except ValueError as error:
        assert repr(text) in str(error)
