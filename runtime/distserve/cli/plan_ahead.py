"""The half of `distserve plan` that looks at a cluster: where each unit would go, step by step."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.cli.cluster_objects import NODES, PODS, Listing, Object, fill, from_cluster, read
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment
    from distserve.operator.ahead import Course, Move, Standing
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import Domain, UnitId, UnitRequest
    from distserve.resources.proposal import Proposal
    from distserve.resources.revisions import Revision

ONLY_PLANNED = ("requests", "prefill_tp", "decode_tp", "any_ranks", "figure", "is_high_affinity")
"""Flags that ask something of the planner."""


@dataclass(frozen=True)
class Around:
    """The cluster as it is."""

    nodes: list[Object]
    inventory: Inventory
    standing: Mapping[int, Standing]
    """The deployment's own units, by number."""
    revisions: Sequence[Object] = ()
    """ControllerRevisions of the deployment."""
    current: str = ""
    """The revision that all its units had last."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ahead:
    course: Course
    proposal: str = ""
    """What would fit, where the unit is larger than any domain."""

    @property
    def shortage(self) -> str:
        """Of the first unit that does not fit."""
        move = next(move for move in self.course.moves if not move.fits)
        return f"{move.reason}: {move.message}" + (f". {self.proposal}" if self.proposal else "")


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
        "--kubeconfig", type=Path, help="with --cluster: whose (default: as kubectl)"
    )


def look_around(args: argparse.Namespace, deployment: DistServeDeployment) -> Around | None:
    """None: no cluster was named. Raises UsageError."""
    for flag, needs in (("pods", "nodes"), ("kubeconfig", "cluster")):
        if getattr(args, flag) and not getattr(args, needs):
            raise UsageError(f"--{flag} goes with --{needs}")
    if args.cluster:
        return _in_cluster(args, deployment)
    return _in_files(args, deployment) if args.nodes else None


def refuse_planning_flags(args: argparse.Namespace) -> None:
    for name in (*ONLY_PLANNED, "hardware_profile"):
        if getattr(args, name, None):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} has no effect on the placement of planning.mode Manual; "
                "leave it out, or set mode: Auto"
            )


def look_ahead(deployment: DistServeDeployment, around: Around, now: float) -> Ahead:
    """Where units with these numbers would go. Changes `around.inventory`. Raises RenderError."""
    from distserve.operator.ahead import course_ahead, larger_than_domain
    from distserve.operator.requests import unit_request
    from distserve.operator.rollout import Rules
    from distserve.resources.revisions import make_revision
    from distserve.resources.settings import RenderSettings, released_images

    target = make_revision(
        deployment, RenderSettings(released_images()), list(_stored(around.revisions))
    )

    def request(number: int) -> UnitRequest:
        return unit_request(deployment, f"u{number}", target, now)

    rollout, standing = deployment.spec.rollout, around.standing
    current = around.current
    if not current and all(unit.revision == target.name for unit in standing.values()):
        current = target.name
    rules = Rules(
        units=deployment.spec.units,
        target=target.name,
        current=current if standing else target.name,
        surge=rollout.max_surge_units,
        unavailable=rollout.max_unavailable_units,
        one_when_full=rollout.when_full == "ReplaceOne",
        paused=rollout.paused,
    )
    empty = around.inventory.emptied()
    course = course_ahead(around.inventory, rules, request, now, standing)
    larger = any(True for _ in larger_than_domain(course))
    return Ahead(course, _proposal(deployment, target, empty, now) if larger else "")


def domain_sizes(deployment: DistServeDeployment, inventory: Inventory) -> list[list[int]]:
    """Accelerators of each node, by domain of packWithin."""
    from distserve.api.deployment import DEFAULT_RESOURCE_NAME
    from distserve.placement.domains import sizes
    from distserve.placement.requests import Level

    spec = deployment.spec
    levels = {one.name: Level(one.name, one.node_label) for one in spec.topology.resolved_levels}
    level = levels.get(spec.topology.pack_within or "")
    return sizes(inventory, level, spec.accelerator.resource_name or DEFAULT_RESOURCE_NAME)


# ---- what is there --------------------------------------------------------------------------


def _in_files(args: argparse.Namespace, deployment: DistServeDeployment) -> Around:
    from distserve.placement.inventory import Inventory

    nodes = read(str(args.nodes), "Node")
    pods = read(str(args.pods), "Pod") if args.pods else []
    inventory = Inventory()
    fill(inventory, nodes, pods, args)
    notes = [] if args.pods else ["everything counts as free without --pods"]
    return Around(nodes, inventory, _standing_by_pods(deployment, pods, inventory), notes=notes)


def _in_cluster(args: argparse.Namespace, deployment: DistServeDeployment) -> Around:
    from distserve.api import labels
    from distserve.operator.kinds import DEPLOYMENTS, kind_of
    from distserve.operator.restoring import stated
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import UnitId

    sets_of_all = Listing(kind_of("apps/v1", "StatefulSet").path(), labels.UNIT)
    revisions = kind_of("apps/v1", "ControllerRevision").path(deployment.namespace)
    of_ours = f"{labels.DEPLOYMENT}={deployment.name}"
    nodes, pods, sets, stored, live = from_cluster(
        args.kubeconfig,
        NODES,
        PODS,
        sets_of_all,
        Listing(revisions, of_ours),
        Listing(DEPLOYMENTS.path(deployment.namespace)),
    )
    inventory = Inventory()
    fill(inventory, nodes, pods, args)
    units: dict[UnitId, list[Object]] = {}
    for one in sets:
        marks, namespace = one["metadata"]["labels"], one["metadata"]["namespace"]
        unit = UnitId(namespace, marks.get(labels.DEPLOYMENT, ""), marks[labels.UNIT])
        units.setdefault(unit, []).append(one)
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
    return Around(nodes, inventory, standing, stored, current)


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
        Domain(place.level, place.label, place.value) if place and place.label else None,
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


def _stored(documents: Sequence[Object]) -> Iterator[Revision]:
    from distserve.resources.revisions import from_object

    for one in documents:
        try:
            yield from_object(one)
        except (KeyError, ValueError, TypeError):
            continue  # A StatefulSet's own.


# ---- what would fit -------------------------------------------------------------------------


def _proposal(
    deployment: DistServeDeployment, target: Revision, empty: Inventory, now: float
) -> str:
    from distserve.operator.requests import unit_request
    from distserve.placement.decisions import Placed
    from distserve.placement.placing import place
    from distserve.resources.proposal import smaller_unit

    def fits(asked: UnitRequest) -> bool:
        return isinstance(place(empty, [asked], now)[0], Placed)

    domains = domain_sizes(deployment, empty)
    most = max(map(sum, domains)) if domains else math.inf
    smaller: Proposal | None = smaller_unit(
        deployment, target, most, lambda found: fits(unit_request(deployment, "u0", found, now))
    )
    whole = unit_request(deployment, "u0", target, now)
    names = [level.name for level in whole.levels]
    looser = names[names.index(whole.pack_within) + 1 :] if whole.pack_within else []
    wide = next((one for one in looser if fits(replace(whole, pack_within=one))), None)
    found = [str(smaller)] if smaller else []
    if wide:
        found.append(f"topology.packWithin: {wide}")
    return "This would fit: " + "; or ".join(found) if found else ""


# ---- how it is said -------------------------------------------------------------------------


def ahead_document(ahead: Ahead, around: Around) -> dict[str, Any]:
    found: dict[str, Any] = {
        "fits": ahead.course.fits,
        "moves": [_move(move) for move in ahead.course.moves],
    }
    if ahead.proposal:
        found["proposal"] = ahead.proposal
    if around.notes:
        found["notes"] = around.notes
    return found


def _move(move: Move) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": move.step,
        "act": move.act.value,
        "unit": move.unit,
        "fits": move.fits,
    }
    if move.domain:
        found["domain"] = {"level": move.domain.level, "name": move.domain.value}
    if move.nodes:
        found["nodes"] = dict(move.nodes)
    if move.reason:
        found["reason"] = str(move.reason)
    if move.message:
        found["message"] = move.message
    return found


def ahead_rows(ahead: Ahead) -> Iterator[list[str]]:
    yield ["STEP", "ACT", "UNIT", "FITS", "DOMAIN", "NODES", "NOTE"]
    for move in ahead.course.moves:
        pods = Counter(move.nodes.values())
        nodes = ", ".join(f"{name} ({count})" for name, count in sorted(pods.items()))
        note = f"{move.reason}: {move.message}" if move.reason else move.message
        domain = str(move.domain) if move.domain else ""
        when = str(move.step) if move.step else "now"
        fits = "yes" if move.fits else "no"
        yield [when, move.act.value, move.unit, fits, domain, nodes, note]
