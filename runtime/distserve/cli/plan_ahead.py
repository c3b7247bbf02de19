"""The half of `distserve plan` that looks at a cluster: where each unit would go, step by step."""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distserve.cli.cluster_objects import Object
from distserve.cli.surroundings import Around
from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment
    from distserve.operator.ahead import Course, Move, Standing
    from distserve.placement.inventory import Inventory
    from distserve.placement.requests import InstanceRequest, UnitRequest
    from distserve.resources.proposal import Proposal
    from distserve.resources.revisions import Revision

ONLY_PLANNED = (
    "requests", "prefill_tp", "decode_tp", "any_ranks", "figure", "is_high_affinity", "network",
    "estimate", "hardware_profile",
)  # fmt: skip
"""Flags that ask something of the planner."""


@dataclass(frozen=True)
class Ahead:
    course: Course
    proposal: str = ""
    """What would fit, where the unit is larger than any domain."""

    @property
    def shortage(self) -> str:
        """Of the first unit that does not fit."""
        move = next((move for move in self.course.moves if not move.fits), None)
        if move is None:
            return "no unit may be replaced: set rollout.maxSurgeUnits or maxUnavailableUnits"
        return f"{move.reason}: {move.message}" + (f". {self.proposal}" if self.proposal else "")


def refuse_planning_flags(args: argparse.Namespace) -> None:
    for name in ONLY_PLANNED:
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
    from distserve.operator.rollout import rules_of
    from distserve.operator.wanted import Wanted, named
    from distserve.resources.revisions import make_revision
    from distserve.resources.settings import RenderSettings, released_images

    settings, known = RenderSettings(released_images()), _stored(around.revisions)
    target = make_revision(deployment, settings, known)
    standing = around.standing
    by_name = named(deployment, [*known, target], _instances(deployment, standing.values()))
    wanted = Wanted(deployment, settings, target, by_name, notes={})

    def request(number: int, revision: str) -> UnitRequest:
        """As the operator: while the rollout is paused, what the other units have."""
        return unit_request(deployment, f"u{number}", wanted.revision(revision) or target, now)

    revisions = [unit.revision for unit in standing.values()]
    rules = rules_of(deployment.spec, target.name, around.current, revisions)
    empty = around.inventory.emptied()
    course = course_ahead(around.inventory, rules, request, now, standing)
    larger = any(True for _ in larger_than_domain(course))
    return Ahead(course, _proposal(deployment, target, empty, now) if larger else "")


def node_sizes(deployment: DistServeDeployment, inventory: Inventory) -> list[int] | None:
    """Accelerators of each node that the pods of every role may use. None for CPUs, which are
    counted by no node's accelerators. Raises UsageError where there is no such node, RenderError.
    """
    from distserve.api.accelerator import AcceleratorType
    from distserve.resources.fabric.claims import counted_as
    from distserve.resources.planning import nodes_of, why_none

    if deployment.spec.accelerator.type == AcceleratorType.CPU:
        return None
    resource = counted_as(deployment.spec.accelerator)
    offers, instances = inventory.offers(resource), _role_instances(deployment)
    if nodes := nodes_of(offers, instances):
        return nodes
    if not offers:
        raise UsageError(f"no node offers {resource}; check --nodes, or accelerator.resourceName")
    raise UsageError(why_none(resource, offers, instances))


def _role_instances(deployment: DistServeDeployment) -> Sequence[InstanceRequest]:
    from distserve.operator.requests import role_instances
    from distserve.resources.settings import RenderSettings, released_images

    return role_instances(deployment, RenderSettings(released_images()))


def domain_sizes(deployment: DistServeDeployment, inventory: Inventory) -> list[list[int]]:
    """The same by domain of packWithin, of nodes that are empty."""
    from distserve.placement.domains import sizes
    from distserve.placement.requests import Level
    from distserve.resources.fabric.claims import counted_as

    spec = deployment.spec
    levels = {one.name: Level(one.name, one.node_label) for one in spec.topology.resolved_levels}
    level = levels.get(spec.topology.pack_within or "")
    return sizes(inventory, level, counted_as(spec.accelerator), _role_instances(deployment))


def _stored(documents: Sequence[Object]) -> list[Revision]:
    """Oldest first."""
    from distserve.resources.revisions import from_object

    found = []
    for one in documents:
        try:
            found.append(from_object(one))
        except (KeyError, ValueError, TypeError):
            continue  # A StatefulSet's own.
    return sorted(found, key=lambda revision: revision.number)


def _instances(deployment: DistServeDeployment, units: Iterable[Standing]) -> dict[str, set[str]]:
    """As `standing_instances`, told from the units' pods."""
    found: dict[str, set[str]] = defaultdict(set)
    for unit in units:
        prefix = f"{deployment.name}-{unit.id.unit}-"
        names = (pod.rpartition("-")[0] for pod in unit.pods)
        found[unit.revision].update(name.removeprefix(prefix) for name in names)
    return found


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
