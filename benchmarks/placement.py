"""What a placement pass costs and how well it packs, each figure beside its aim.

Run: python benchmarks/placement.py [--quick]
"""

from __future__ import annotations

import argparse
import random
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from math import log
from typing import Any

from distserve.placement import (
    Decision,
    InstanceRequest,
    Inventory,
    Level,
    Placed,
    UnitId,
    UnitRequest,
    inventory_of,
    place,
)

GPU = "nvidia.com/gpu"
LEVELS = (
    Level("nvlink", "nvidia.com/gpu.clique"),
    Level("leaf", "fabric.topograph.run/tier-0"),
    Level("zone", "topology.kubernetes.io/zone"),
)
NODES_PER_CLIQUE, CLIQUES_PER_LEAF, ZONES = 4, 4, 3
LARGE = ((8, 8, 4), (8, 4), (8, 8), (4, 4, 4), (8, 8, 8))
"""Units of which two or three fill a clique, so that each wrong choice is seen."""
SHAPES = ((1, 1), (2, 1), (2, 2), (4, 1, 1), (4, 4), (4, 2, 2), (8, 4), (8, 8), (1,), (2, 1, 1))
"""GPUs of each instance of a unit."""


def node(index: int) -> dict[str, Any]:
    clique = index // NODES_PER_CLIQUE
    leaf = clique // CLIQUES_PER_LEAF
    return {
        "metadata": {
            "name": f"node-{index:05}",
            "labels": {
                "kubernetes.io/hostname": f"node-{index:05}",
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "gpu-8",
                LEVELS[0].node_label: f"clique-{clique}",
                LEVELS[1].node_label: f"leaf-{leaf}",
                LEVELS[2].node_label: f"zone-{leaf % ZONES}",
            },
        },
        "spec": {},
        "status": {
            "allocatable": {"cpu": "128", "memory": "1Ti", "pods": "110", GPU: "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(index: int, nodes: int) -> dict[str, Any]:
    """Everyday pods beside the units: agents, small services."""
    requests = {"cpu": f"{100 + index % 7 * 50}m", "memory": "256Mi"}
    return {
        "metadata": {"name": f"pod-{index}", "namespace": "apps", "uid": f"uid-{index}"},
        "spec": {
            "nodeName": f"node-{index % nodes:05}",
            "containers": [{"name": "main", "resources": {"requests": requests}}],
        },
        "status": {"phase": "Running"},
    }


def unit(index: int, shape: Sequence[int], pack_within: str | None) -> UnitRequest:
    id = UnitId("llm", f"d{index % 30}", f"u{index // 30}")
    instances = tuple(
        InstanceRequest(f"{id.deployment}-{id.unit}-{i}", 1, {GPU: gpus, "cpu": 4, "memory": 2**35})
        for i, gpus in enumerate(shape)
    )
    return UnitRequest(id, instances, index, levels=LEVELS, pack_within=pack_within)


def cluster(nodes: int) -> Inventory:
    every = (node(index) for index in range(nodes))
    return inventory_of(every, (pod(index, nodes) for index in range(4 * nodes)))


def timed(inventory: Inventory, units: Sequence[UnitRequest]) -> tuple[float, list[Decision]]:
    start = time.process_time()
    decisions = place(inventory, units, 1e6)
    return time.process_time() - start, decisions


def placed(decisions: Sequence[Decision]) -> int:
    return sum(isinstance(decision, Placed) for decision in decisions)


def passes(nodes: int) -> float:
    """CPU seconds of the first kind of pass."""
    count = nodes // 2
    inventory = cluster(nodes)
    print(f"{nodes} nodes in {nodes // NODES_PER_CLIQUE} cliques, {4 * nodes} pods, {count} units:")
    first = 0.0
    for pack_within in ("nvlink", "leaf", None):
        units = [unit(i, SHAPES[i % len(SHAPES)], pack_within) for i in range(count)]
        seconds, decisions = timed(inventory, units)
        first = first or seconds
        where = f"packWithin {pack_within}" if pack_within else "anywhere"
        print(f"  {where + ',':19} all new          {_row(seconds, count, decisions)}")
    units = [unit(i, SHAPES[i % len(SHAPES)], "nvlink") for i in range(count)]
    by_id = {one.id: one for one in units}
    for decision in place(inventory, units, 1e6):
        if isinstance(decision, Placed):
            inventory.reserve(by_id[decision.unit], decision.nodes)
    seconds, decisions = timed(inventory, units)
    print(f"  packWithin nvlink,  all placed again {_row(seconds, count, decisions)}")
    newcomer = unit(count, (2, 1), "nvlink")
    seconds, decisions = timed(inventory, [newcomer])
    print(f"  packWithin nvlink,  one more         {_row(seconds, 1, decisions)}")
    inventory = cluster(nodes)
    units = [unit(i, (8, 8, 8), "nvlink") for i in range(count)]
    seconds, decisions = timed(inventory, units)
    print(f"  packWithin nvlink,  cluster full     {_row(seconds, count, decisions)}")
    distinct = [
        replace(one, instances=tuple(_odd(i, instance) for instance in one.instances))
        for i, one in enumerate(units)
    ]
    seconds, decisions = timed(inventory, distinct)
    print(f"  the same, no two units alike         {_row(seconds, count, decisions)}")
    return first


def _odd(index: int, instance: InstanceRequest) -> InstanceRequest:
    return replace(instance, requests={**instance.requests, "memory": 2**30 + index})


def _row(seconds: float, units: int, decisions: Sequence[Decision]) -> str:
    return (
        f"{seconds * 1000:7.0f} ms CPU, {seconds / units * 1e6:6.0f} us a unit, "
        f"{placed(decisions)} of {units} placed"
    )


def memory(nodes: int) -> None:
    tracemalloc.start()
    start = time.process_time()
    inventory = cluster(nodes)
    seconds = time.process_time() - start
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"inventory of {len(inventory.nodes)} nodes and {4 * nodes} pods: {used / 2**20:.1f} MB "
        f"(traced; a few MB is the aim), read in {seconds:.1f} s under the tracer"
    )


def packing(seeds: int, of: Sequence[Sequence[int]], name: str, at_once: bool) -> None:
    """As many GPUs are asked for as there are."""
    found = []
    for seed in range(seeds):
        chance = random.Random(seed)
        inventory = inventory_of(node(index) for index in range(64))
        shapes = [chance.choice(of) for _ in range(30)]
        units: list[UnitRequest] = []
        while sum(one.total[GPU] for one in units) < 512:
            one = unit(len(units), shapes[len(units) % 30], "nvlink")
            units.append(replace(one, waiting_since=0.0) if at_once else one)
        by_id = {one.id: one for one in units}
        used = sum(
            by_id[decision.unit].total[GPU]
            for decision in place(inventory, units, 1e6)
            if isinstance(decision, Placed)
        )
        found.append(used / best_use([one.total[GPU] for one in units]))
    made = "made at once" if at_once else "one after another"
    print(
        f"  {name} shapes, {made + ',':18} {seeds} draws: {min(found):.1%} at the worst, "
        f"{sum(found) / seeds:.1%} on average"
    )


def best_use(sizes: Sequence[int]) -> int:
    """Most GPUs that units of these sizes could use in 16 cliques of 32, whatever waits: exact
    where two or three fill a clique, else the bound that all of them are used."""
    supply, bins, room = Counter(sizes), 16, 32
    if min(supply) <= room // 4:
        return min(bins * room, sum(sizes))
    fillings = [
        Counter(filling)
        for count in range(1, room // min(supply) + 1)
        for filling in combinations_with_replacement(sorted(supply), count)
        if room - min(supply) < sum(filling) <= room
    ]
    return max(
        sum(size * min(supply[size], sum(one[size] for one in chosen)) for size in supply)
        for chosen in combinations_with_replacement(fillings, bins)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 nodes")
    args = parser.parse_args()
    print("A pass; the aim is below 1 s for 1,000 nodes and 500 units:")
    counts = (500, 1000) if args.quick else (250, 500, 1000, 2000, 4000)
    seconds = [passes(nodes) for nodes in counts]
    slope = log(seconds[-1] / seconds[0]) / log(counts[-1] / counts[0])
    print(f"slope: {counts[-1] // counts[0]} times the nodes and units take as nodes^{slope:.2f}")
    print("64 nodes x 8 GPUs in 16 cliques, 30 deployments that ask for as much as there is; GPUs")
    print("used, of what the best packing would use (aim: 95 %):")
    for of, name in ((SHAPES, "mixed"), (LARGE, "large")):
        for at_once in (True, False):
            packing(2 if args.quick else 20, of, name, at_once)
    memory(1000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
