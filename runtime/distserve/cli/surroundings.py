"""What `distserve plan` finds of a cluster: nodes, the room on them, the deployment's own units.
From files, or from the API server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distserve.cli.cluster_objects import (
    DEVICES,
    DEVICES_HELP,
    NODES,
    PODS,
    Listing,
    Object,
    fill,
    fill_devices,
    from_cluster,
    read,
    read_devices,
)
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment
    from distserve.operator.ahead import Standing
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import Domain, UnitId


@dataclass(frozen=True)
class Around:
    """The cluster as it is."""

    inventory: Inventory
    standing: Mapping[int, Standing]
    """The deployment's own units, by number."""
    revisions: Sequence[Object] = ()
    """ControllerRevisions of the deployment."""
    current: str = ""
    """The revision that all its units had last."""
    notes: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--nodes",
        type=Path,
        help="plan and place on these: output of `kubectl get nodes -o yaml`",
    )
    where.add_argument(
        "--cluster", action="store_true", help="plan and place on the cluster as it is now"
    )
    parser.add_argument(
        "--pods", type=Path, help="with --nodes: `kubectl get pods -A -o yaml`, which take room"
    )
    parser.add_argument(
        "--devices", type=Path, help=f"with --nodes: {DEVICES_HELP}, of DRA drivers"
    )
    parser.add_argument(
        "--kubeconfig", type=Path, help="with --cluster: whose (default: as kubectl)"
    )


def look_around(args: argparse.Namespace, deployment: DistServeDeployment) -> Around | None:
    """None: no cluster was named. Raises UsageError."""
    for flag, needs in (("pods", "nodes"), ("devices", "nodes"), ("kubeconfig", "cluster")):
        if getattr(args, flag) and not getattr(args, needs):
            raise UsageError(f"--{flag} goes with --{needs}")
    around = None
    if args.cluster:
        around = _in_cluster(args, deployment)
    elif args.nodes:
        around = _in_files(args, deployment)
    if around is not None:
        around.notes.extend(_unseen(deployment))
    return around


def _unseen(deployment: DistServeDeployment) -> list[str]:
    topology = deployment.spec.topology
    if topology.scheduler is None or not topology.has_quota:
        return []
    return [f"quota is not looked at: {topology.scheduler.value} lets units in by its own"]


def _in_files(args: argparse.Namespace, deployment: DistServeDeployment) -> Around:
    from distserve.placement.inventory import Inventory

    nodes = read(str(args.nodes), "Node")
    pods = read(str(args.pods), "Pod") if args.pods else []
    inventory = Inventory()
    fill(inventory, nodes, pods, args)
    if args.devices:
        fill_devices(inventory, read_devices(str(args.devices)), args)
    notes = [] if args.pods else ["everything counts as free without --pods"]
    return Around(inventory, _standing_by_pods(deployment, pods, inventory), notes=notes)


def _in_cluster(args: argparse.Namespace, deployment: DistServeDeployment) -> Around:
    from distserve.api import labels
    from distserve.operator.health import unit_by_name
    from distserve.operator.kinds import DEPLOYMENTS, kind_of
    from distserve.operator.restoring import stated
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import UnitId

    sets_of_all = Listing(kind_of("apps/v1", "StatefulSet").path(), labels.UNIT)
    revisions = kind_of("apps/v1", "ControllerRevision").path(deployment.namespace)
    of_ours = f"{labels.DEPLOYMENT}={deployment.name}"
    nodes, pods, sets, stored, live, *devices = from_cluster(
        args.kubeconfig,
        NODES,
        PODS,
        sets_of_all,
        Listing(revisions, of_ours),
        Listing(DEPLOYMENTS.path(deployment.namespace)),
        *DEVICES.values(),
    )
    inventory = Inventory()
    fill(inventory, nodes, pods, args)
    fill_devices(inventory, devices, args)
    units: dict[UnitId, list[Object]] = {}
    for one in sets:
        name, namespace = one["metadata"]["name"], one["metadata"]["namespace"]
        if of := unit_by_name(name, one):
            deployed = one["metadata"]["labels"].get(labels.DEPLOYMENT, "")
            units.setdefault(UnitId(namespace, deployed, of), []).append(one)
    standing = {}
    for unit, its_sets in units.items():
        # As the operator does: room that was given is not free, whether its pods are bound or not.
        request, places = stated(unit, its_sets)
        inventory.reserve(request, places)
        if (unit.namespace, unit.deployment) == (deployment.namespace, deployment.name):
            standing[int(unit.unit[1:])] = _standing(unit, its_sets, request.pod_names)
    found = next((one for one in live if one["metadata"]["name"] == deployment.name), {})
    status = found.get("status") or {}
    current = (status.get("revision") or {}).get("current") or ""
    return Around(inventory, standing, stored, current)


def _standing(unit: UnitId, sets: Sequence[Object], pods: Sequence[str]) -> Standing:
    from distserve.api import labels
    from distserve.operator.ahead import Standing
    from distserve.operator.health import PLACE, read_place
    from distserve.placement.requests import Domain

    revisions = {one["metadata"]["labels"].get(labels.REVISION, "") for one in sets}
    texts = [(one["metadata"].get("annotations") or {}).get(PLACE, "") for one in sets]
    place = next((found for text in texts if text and (found := read_place(text))), None)
    return Standing(
        unit,
        revisions.pop() if len(revisions) == 1 else "",
        Domain(place.level, place.label, place.value) if place and place.value else None,
        frozenset(pods),
    )


def _standing_by_pods(
    deployment: DistServeDeployment, pods: Sequence[Object], inventory: Inventory
) -> dict[int, Standing]:
    """From a file of pods: they say less than StatefulSets, and enough."""
    from distserve.api import labels
    from distserve.operator.ahead import Standing
    from distserve.placement.domains import domain_of
    from distserve.placement.requests import Level, UnitId

    topology = deployment.spec.topology
    found: dict[int, Standing] = {}
    for unit, record in inventory.units.items():
        if unit[:2] != (deployment.namespace, deployment.name):
            continue
        names = frozenset(record.bound)
        revisions = {
            (one["metadata"].get("labels") or {}).get(labels.REVISION, "")
            for one in pods
            if one["metadata"]["name"] in names
            and one["metadata"].get("namespace") == unit.namespace
        }
        homes: set[Domain] = {
            domain_of(inventory.nodes[seat.node], Level(level.name, level.node_label))
            for seat in record.seats.values()
            for level in topology.resolved_levels
            if level.name == topology.pack_within and seat.node in inventory.nodes
        }
        found[int(unit.unit[1:])] = Standing(
            UnitId(*unit),
            revisions.pop() if len(revisions) == 1 else "",
            homes.pop() if len(homes) == 1 else None,
            names,
        )
    return found
