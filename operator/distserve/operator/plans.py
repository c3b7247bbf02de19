"""Whose numbers count: the spec's, a stored plan's, or those of a plan that is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from distserve.api import labels
from distserve.api.accelerator import AcceleratorType
from distserve.api.conditions import PlannedReason
from distserve.api.deployment import DistServeDeployment, Spec
from distserve.api.status import PlanStatus, UnitPlan
from distserve.operator.conditions import Fact
from distserve.operator.model import (
    Answers,
    Object,
    Observed,
    Pending,
    PlanQuestion,
    TextsQuestion,
)
from distserve.operator.requests import role_instances
from distserve.placement.inventory import Offer
from distserve.placement.requests import InstanceRequest
from distserve.planner.errors import InvalidRequest, PlannerError
from distserve.planner.machine import Machine
from distserve.resources.errors import NoPlan
from distserve.resources.fabric.claims import counted_as
from distserve.resources.planned import (
    accelerators_of,
    plan_status,
    planned_reason,
    shortfall,
    with_plan,
    with_units,
)
from distserve.resources.planning import (
    machine_of,
    nodes_of,
    plan_request,
    references,
    why_none,
)
from distserve.resources.revisions import Revision, with_numbers
from distserve.resources.settings import RenderSettings
from distserve.workload import WorkloadError

PLANNED_FOR: Final = f"{labels.GROUP}/planned-for"
"""Annotation of a ControllerRevision: hash of what was asked of the planner, the cluster left out.
A plan is kept while that stays, however many nodes come and go."""

AGAIN_SECONDS: Final = 60.0
"""Users' ConfigMaps are not watched: while there is no plan for what they say, they are read this
often. Once there is one, it stays until the spec or the annotation asks for another."""
RETRY_SECONDS: Final = 300.0
"""After a plan that failed, or where nodes are missing: those that come wake nobody."""


@dataclass(frozen=True)
class Numbers:
    """`deployment` has the numbers in its spec; None: there are none to act on."""

    fact: Fact
    deployment: DistServeDeployment | None = None
    plan: PlanStatus | None = None
    fixed: Revision | None = None
    """The stored revision that stays in use while another plan is made, or cannot be."""
    questions: tuple[PlanQuestion | TextsQuestion, ...] = ()
    again_seconds: float | None = None
    planned_for: str = ""
    """Goes with a new plan into its ControllerRevision."""


def numbers_of(
    deployment: DistServeDeployment,
    observed: Observed,
    answers: Answers,
    stored: Sequence[tuple[Object, Revision]],
    render: RenderSettings,
) -> Numbers:
    """`stored`: oldest first. Raises RenderError for a podTemplate that cannot be merged."""
    if not deployment.spec.planning.automatic:
        fact = Fact(True, PlannedReason.MANUAL, "the numbers are the spec's")
        return Numbers(fact, deployment)
    wanted = planned_for(deployment)
    for live, revision in reversed(stored):
        notes = live["metadata"].get("annotations") or {}
        if notes.get(PLANNED_FOR) == wanted and revision.plan is not None:
            allowed, cut = _within_limit(deployment, revision.unit)
            kept, fact = with_numbers(allowed, revision), _met(allowed, revision.plan, cut)
            return Numbers(fact, kept, revision.plan, planned_for=wanted)
    in_use = _in_use(deployment, observed, stored)
    instances = role_instances(deployment, render) if observed.accelerators else ()
    return _ask(deployment, answers, observed.accelerators, instances, in_use)


def planned_for(deployment: DistServeDeployment) -> str:
    """Hash of the part of a spec that a plan depends on."""
    spec = deployment.spec.model_dump(
        mode="json",
        exclude_defaults=True,
        include={
            "model": True, "accelerator": True, "strategy": True, "slo": True, "workload": True,
            "planning": True,
            **{r.value: {"scheduling", "accelerator_memory_utilization"}
               for r in deployment.spec.roles},
        },
    )  # fmt: skip
    spec["replan"] = deployment.metadata.annotations.get(labels.REPLAN, "")
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _machine(spec: Spec, offers: Sequence[Offer], instances: Sequence[InstanceRequest]) -> Machine:
    """The nodes that the pods of every role may use; else, as an autoscaler may bring them,
    `maxAccelerators` in nodes as large as those that are there. Raises InvalidRequest."""
    if not offers:
        return machine_of(spec)
    if nodes := nodes_of(offers, instances):
        return machine_of(spec, nodes)
    if spec.planning.max_accelerators is None:
        none = why_none(counted_as(spec.accelerator), offers, instances)
        raise InvalidRequest(f"{none}, or give spec.planning.maxAccelerators")
    return machine_of(spec, per_node=max(offer.amount for offer in offers))


def _ask(
    deployment: DistServeDeployment,
    answers: Answers,
    offers: Sequence[Offer],
    instances: Sequence[InstanceRequest],
    in_use: Revision | None,
) -> Numbers:
    kept: DistServeDeployment | None = None
    plan: PlanStatus | None = None
    stays = ""
    if in_use is not None:
        allowed, cut = _within_limit(deployment, in_use.unit)
        kept, plan = with_numbers(allowed, in_use), in_use.plan
        stays = f"; the plan in use stays in use{cut}"

    def without(holds: bool | None, reason: PlannedReason, message: str) -> Numbers:
        return Numbers(Fact(holds, reason, f"{message}{stays}"), kept, plan, in_use)

    def refused(error: Exception, again_seconds: float | None) -> Numbers:
        failed = without(False, planned_reason(error), str(error))
        return replace(failed, again_seconds=again_seconds)

    keys = tuple(references(deployment.spec))
    if any(key not in answers.texts for key in keys):
        waits = without(None, PlannedReason.PLANNING, "its inputs are being read")
        return replace(waits, questions=(TextsQuestion(keys),))
    texts = {key: text for key in keys if (text := answers.texts[key]) is not None}
    again = AGAIN_SECONDS if keys else None
    on_nodes = deployment.spec.accelerator.type != AcceleratorType.CPU
    with_nodes = again or (RETRY_SECONDS if on_nodes else None)
    try:
        machine = _machine(deployment.spec, offers, instances)
    except PlannerError as error:
        return refused(error, with_nodes)
    try:
        request = plan_request(deployment.spec, machine, texts=texts)
    except (PlannerError, WorkloadError) as error:
        return refused(error, again)
    answer = answers.plans.get(request.inputs_hash)
    if answer is None or isinstance(answer, Pending):
        waits = without(None, PlannedReason.PLANNING, "a plan is being made")
        return replace(waits, questions=(PlanQuestion(request),))
    if isinstance(answer, PlannerError):
        # Asked again, in case that it was for want of time: there is nothing else to wake us.
        return refused(answer, again or RETRY_SECONDS)
    try:
        allowed, cut = _within_limit(deployment, plan_status(deployment, answer).unit)
        found, numbers = plan_status(allowed, answer), with_plan(allowed, answer)
        fact = _met(allowed, found, cut)
        return Numbers(fact, numbers, found, planned_for=planned_for(deployment))
    except NoPlan as error:
        return refused(error, with_nodes)


def _within_limit(
    deployment: DistServeDeployment, unit: UnitPlan
) -> tuple[DistServeDeployment, str]:
    """With no more units than `maxAccelerators` takes where the spec or /scale decides them, at
    least one; and the end of a sentence that says so."""
    spec = deployment.spec
    limit, each = spec.planning.max_accelerators, accelerators_of(unit)
    if limit is None or spec.planning.plans_units or spec.units * each <= limit:
        return deployment, ""
    most = max(1, limit // each)
    cut = f"; planning.maxAccelerators {limit} allows {most} of spec.units {spec.units}"
    if each > limit:
        cut = f"; planning.maxAccelerators {limit} allows no unit of {each}: one stays"
    allowed = spec.model_copy(update={"units": most})
    return deployment.model_copy(update={"spec": allowed}), cut


def _met(deployment: DistServeDeployment, plan: PlanStatus, cut: str) -> Fact:
    """With the units that there are to be; `cut` says why they are fewer than was asked."""
    units = plan.units if deployment.spec.planning.plans_units else deployment.spec.units
    now = with_units(plan, units)
    basis = f"{now.hardware_profile}, estimated" if now.estimated else now.hardware_profile
    message = (
        f"{now.units} units, {now.accelerators} accelerators, {now.goodput} requests per second "
        f"per accelerator by {basis}{cut}"
    )
    short = shortfall(deployment, now)
    return Fact(True, PlannedReason.MEETS_SLO, f"{message}; {short}" if short else message)


def _in_use(
    deployment: DistServeDeployment,
    observed: Observed,
    stored: Sequence[tuple[Object, Revision]],
) -> Revision | None:
    """The one that units move to, if the deployment still has its roles: of those that share its
    name, the one of the plan that is told."""
    status = observed.document.get("status") or {}
    target = (status.get("revision") or {}).get("target")
    told = (status.get("plan") or {}).get("inputsHash")
    known = [revision for _, revision in stored]
    # Stable: the latest of its kind is the last.
    known.sort(key=lambda r: (r.name == target, (r.plan and r.plan.inputs_hash) == told))
    roles = set(deployment.spec.roles)
    return next((r for r in reversed(known) if set(r.templates) == roles), None)
