"""`distserve topology`: the cluster's fabric domains as a tree, with the accelerators free in each.

Reads `kubectl get nodes -o yaml` (and of pods and devices, for what is taken), or asks the cluster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distserve.cli.cluster_objects import (
    DEVICES,
    DEVICES_HELP,
    NODES,
    PODS,
    Object,
    aligned,
    fill,
    fill_devices,
    from_cluster,
    read,
    read_devices,
)
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.placement.requests import Level
    from distserve.placement.tree import Branch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--nodes",
        help="file of `kubectl get nodes -o yaml`, - for stdin (default: ask the cluster)",
    )
    add("--pods", help="`kubectl get pods -A -o yaml`: what they take is not free")
    add("--devices", help=f"{DEVICES_HELP}: what DRA drivers offer, and what is claimed of it")
    add("--preset", help="levels by who labels the nodes, as spec.topology.preset (default NVIDIA)")
    add(
        "--level",
        action="append",
        default=[],
        metavar="NAME=LABEL",
        help="a level, tightest first; again for each one",
    )
    add("--output", choices=("table", "json"), default="table")
    add("--kubeconfig", type=Path, help="of the cluster to ask (default: as kubectl)")


def run(args: argparse.Namespace) -> int:
    from distserve.placement.inventory import Inventory
    from distserve.placement.tree import accelerators, crossings, tree

    levels = _levels(args)
    if args.nodes is None:
        for flag in ("pods", "devices"):
            if getattr(args, flag):
                raise UsageError(
                    f"--{flag} goes with --nodes; without them the cluster is asked for all"
                )
        nodes, pods, *devices = from_cluster(args.kubeconfig, NODES, PODS, *DEVICES.values())
    else:
        if args.kubeconfig:
            raise UsageError(
                "--kubeconfig names a cluster to ask, --nodes a file: give one of them"
            )
        nodes, pods = read(args.nodes, "Node"), read(args.pods, "Pod") if args.pods else []
        devices = read_devices(args.devices) if args.devices else [[] for _ in DEVICES]
    inventory = Inventory()
    fill(inventory, nodes, pods, args)
    fill_devices(inventory, devices, args)
    branches, notes = tree(inventory, levels), crossings(inventory, levels)
    notes += inventory.devices.notes
    if args.nodes and not args.pods:
        notes.append("everything counts as free without --pods")
    if args.output == "json":
        found = {"domains": [_document(one) for one in branches], "notes": notes}
        print(json.dumps(found, indent=2))
        return 0
    for row in aligned(_rows(branches, accelerators(inventory))):
        print(row)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _levels(args: argparse.Namespace) -> list[Level]:
    from distserve.api.topology import PRESETS, Preset
    from distserve.placement.requests import Level

    if args.level and args.preset:
        raise UsageError("--preset brings its own levels: give --level, or --preset")
    pairs = [text.partition("=") for text in args.level]
    for name, _, label in pairs:
        if not name or not label:
            raise UsageError(
                f"--level {name}: write NAME=LABEL, as in nvlink=nvidia.com/gpu.clique"
            )
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise UsageError("two --level have one name: name each level once")
    if pairs:
        return [Level(name, label) for name, _, label in pairs]
    presets = {one.value.lower(): one for one in Preset}
    preset = presets.get((args.preset or Preset.NVIDIA).lower())
    if preset is None:
        known = ", ".join(one.value for one in Preset)
        raise UsageError(f"--preset {args.preset} is not known: there are {known}")
    return [Level(name, label) for name, label in PRESETS[preset].items()]


def _document(branch: Branch) -> Object:
    """Amounts in base units: cores, bytes, devices."""
    from distserve.placement.quantities import in_base_unit

    def plain(amounts: Mapping[str, int]) -> dict[str, float]:
        return {name: in_base_unit(name, count) for name, count in amounts.items()}

    found: Object = {
        "level": branch.level,
        "name": branch.name,
        "nodes": branch.nodes,
        "free": plain(branch.free),
        "allocatable": plain(branch.allocatable),
    }
    if branch.notes:
        found["notes"] = list(branch.notes)
    if branch.branches:
        found["domains"] = [_document(one) for one in branch.branches]
    return found


def _rows(branches: Iterable[Branch], resources: list[str]) -> Iterator[list[str]]:
    yield ["DOMAIN", "NODES", *(f"FREE {name}" for name in resources), "NOTES"]
    yield from _lines(branches, resources, 0)


def _lines(branches: Iterable[Branch], resources: list[str], depth: int) -> Iterator[list[str]]:
    from distserve.placement.quantities import number

    for one in branches:
        amounts = [
            f"{number(name, one.free.get(name, 0))}/{number(name, one.allocatable.get(name, 0))}"
            for name in resources
        ]
        count = str(one.nodes) if one.branches else ""
        name = f"{'  ' * depth}{one.level} {one.name}"
        yield [name, count, *amounts, ", ".join(one.notes)]
        yield from _lines(one.branches, resources, depth + 1)
