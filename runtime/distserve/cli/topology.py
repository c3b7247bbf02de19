"""`distserve topology`: the cluster's fabric domains as a tree, with the accelerators free in each.

Reads `kubectl get nodes -o yaml` (and of pods, for what they take), or asks the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import Level
    from distserve.placement.tree import Branch

Object = dict[str, Any]
PAGE = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--nodes",
        help="file of `kubectl get nodes -o yaml`, - for stdin (default: ask the cluster)",
    )
    add("--pods", help="`kubectl get pods -A -o yaml`: what they take is not free")
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
        if args.pods:
            raise UsageError("--pods goes with --nodes; without them the cluster is asked for both")
        nodes, pods = asyncio.run(_from_cluster(args.kubeconfig))
    else:
        nodes, pods = _read(args.nodes, "Node"), _read(args.pods, "Pod") if args.pods else []
    inventory = Inventory()
    _fill(inventory, nodes, pods, args)
    branches, notes = tree(inventory, levels), crossings(inventory, levels)
    if args.nodes and not args.pods:
        notes.append("everything counts as free without --pods")
    if args.output == "json":
        found = {"domains": [_document(one) for one in branches], "notes": notes}
        print(json.dumps(found, indent=2))
        return 0
    for row in _aligned(_rows(branches, accelerators(inventory))):
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


def _read(file: str, kind: str) -> list[Object]:
    import yaml

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        found = [one for document in _documents(text) for one in _items(document)]
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"{file}: neither YAML nor JSON: {why}") from None
    wanted = [one for one in found if one.get("kind", kind) == kind]
    if found and not wanted:
        raise UsageError(f"{file}: has no {kind}, but {found[0]['kind']}")
    return wanted


def _documents(text: str) -> list[Any]:
    """JSON is YAML too, but read ten times slower as that."""
    import yaml

    try:
        return [json.loads(text)]
    except ValueError:
        return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _items(document: Any) -> Iterator[Object]:
    if not isinstance(document, dict):
        return
    items = document.get("items", [document])
    yield from (one for one in items if isinstance(one, dict))


def _fill(
    inventory: Inventory, nodes: Iterable[Object], pods: Iterable[Object], args: argparse.Namespace
) -> None:
    for kind, objects, put in (
        ("nodes", nodes, inventory.put_node),
        ("pods", pods, inventory.put_pod),
    ):
        file = getattr(args, kind) or "the cluster"
        for one in objects:
            try:
                put(one)
            except KeyError as error:
                raise UsageError(
                    f"{file}: an object has no {error}: give `kubectl get {kind} -o yaml` as it is"
                ) from None
            except ValueError as error:
                name = one["metadata"]["name"]
                raise UsageError(f"{file}: {name}: {error}") from None


async def _from_cluster(kubeconfig: Path | None) -> tuple[list[Object], list[Object]]:
    from distserve.operator.cluster import Cluster, NoCluster, load_configuration
    from distserve.operator.errors import ClusterError
    from distserve.operator.settings import CallSettings

    try:
        cluster = Cluster(await load_configuration(kubeconfig), CallSettings())
    except NoCluster as error:
        raise UsageError(f"{error}; or read files with --nodes") from None
    try:
        return await _list(cluster, "nodes"), await _list(cluster, "pods")
    except ClusterError as error:
        raise UsageError(f"the cluster does not tell its nodes and pods: {error}") from None
    finally:
        await cluster.close()


async def _list(cluster: Any, plural: str) -> list[Object]:
    found: list[Object] = []
    query = {"limit": str(PAGE)}
    while True:
        page = await cluster.call("list", f"/api/v1/{plural}", query=query)
        found += page["items"]
        query["continue"] = page["metadata"].get("continue") or ""
        if not query["continue"]:
            return found


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


def _aligned(rows: Iterable[list[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
