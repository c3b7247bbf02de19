"""Nodes, pods and other objects for verbs that look at a cluster: from files, or from the API
server. `topology` and `plan` read them alike."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.placement.inventory import Inventory

Object = dict[str, Any]
PAGE = 500


class Listing(NamedTuple):
    path: str
    selector: str = ""


NODES = Listing("/api/v1/nodes")
PODS = Listing("/api/v1/pods")
_DRA = "/apis/resource.k8s.io/v1"
DEVICES = {
    "DeviceClass": Listing(f"{_DRA}/deviceclasses"),
    "ResourceSlice": Listing(f"{_DRA}/resourceslices"),
    "ResourceClaim": Listing(f"{_DRA}/resourceclaims"),
}
DEVICES_HELP = "`kubectl get deviceclasses,resourceslices,resourceclaims -A -o yaml`"


def read(file: str, kind: str) -> list[Object]:
    found = _objects(file)
    wanted = [one for one in found if one.get("kind", kind) == kind]
    if found and not wanted:
        raise UsageError(f"{file}: has no {kind}, but {found[0]['kind']}")
    return wanted


def read_devices(file: str) -> list[list[Object]]:
    """In the order of DEVICES."""
    found = _objects(file)
    return [[one for one in found if one.get("kind") == kind] for kind in DEVICES]


def _objects(file: str) -> list[Object]:
    import yaml

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return [one for document in _documents(text) for one in _items(document)]
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"{file}: neither YAML nor JSON: {why}") from None


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


def fill(
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


def fill_devices(
    inventory: Inventory, objects: Iterable[Iterable[Object]], args: argparse.Namespace
) -> None:
    """`objects` in the order of DEVICES."""
    for kind, found in zip(DEVICES, objects, strict=True):
        for one in found:
            try:
                inventory.devices.put(kind, one)
            except KeyError as error:
                file = args.devices or "the cluster"
                raise UsageError(
                    f"{file}: a {kind} has no {error}: give {DEVICES_HELP} as it is"
                ) from None


def from_cluster(kubeconfig: Path | None, *listings: Listing) -> list[list[Object]]:
    """What the API server lists, in the order of the listings; a kind that it does not serve has
    no objects. Raises UsageError."""
    return asyncio.run(_from_cluster(kubeconfig, listings))


async def _from_cluster(kubeconfig: Path | None, listings: Sequence[Listing]) -> list[list[Object]]:
    from distserve.operator.cluster import Cluster, NoCluster, load_configuration
    from distserve.operator.errors import ClusterError
    from distserve.operator.settings import CallSettings

    try:
        cluster = Cluster(await load_configuration(kubeconfig), CallSettings())
    except NoCluster as error:
        raise UsageError(f"{error}; or read files with --nodes") from None
    what = ""
    found = []
    try:
        for one in listings:
            what = one.path.rpartition("/")[2]
            found.append(await _list(cluster, one))
    except ClusterError as error:
        raise UsageError(f"the cluster does not tell its {what}: {error}") from None
    finally:
        await cluster.close()
    return found


async def _list(cluster: Any, listing: Listing) -> list[Object]:
    from distserve.operator.errors import NotFound

    found: list[Object] = []
    query = {"limit": str(PAGE), "labelSelector": listing.selector}
    while True:
        try:
            page = await cluster.call("list", listing.path, query=query)
        except NotFound:
            return []
        found += page["items"]
        query["continue"] = page["metadata"].get("continue") or ""
        if not query["continue"]:
            return found


def aligned(rows: Iterable[list[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
