"""A revision: what a deployment's pods are made from, kept in a ControllerRevision.

    spec + plan --make_revision--> Revision --to_object--> ControllerRevision
                                      |   <--from_object--
                                      +--> stateful_set, gateway: templates as they are stored

Templates are rendered once, and afterwards applied as they were stored: an operator with other
builders restarts no pod. One template serves all instances of a role, since arguments take what
differs from the pod's own fields (POD_NAME, POD_IP, POD_UNIT, POD_DOMAIN); labels and placement
are added to a copy of it by `instances.stateful_set`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.api.planning import Planning
from distserve.api.roles import Parallelism
from distserve.api.status import PlanStatus, RolePlan, UnitPlan
from distserve.api.strategies import Role
from distserve.api.topology import POD_SCHEDULERS, Scheduler
from distserve.resources.engines import engine_template
from distserve.resources.errors import NoPlan
from distserve.resources.fabric import claims, environment
from distserve.resources.gateways import gateway_template
from distserve.resources.objects import Object, new_object
from distserve.resources.settings import RenderSettings

HASH_LENGTH: Final = 8
API_VERSION: Final = "apps/v1"
KIND: Final = "ControllerRevision"


@dataclass(frozen=True)
class Revision:
    """The resolved numbers of a plan and the rendered pod templates."""

    name: str
    """The label `distserve.io/revision` of the engines' pods: the hash of what they are made from.
    Two revisions may share it, where only the gateway or the numbers of a unit differ."""
    gateway_name: str
    """The same of the gateways' pods."""
    templates: Mapping[Role, Object]
    """Pod templates of the engines."""
    gateway: Object
    """Pod template of the gateways."""
    unit: UnitPlan
    """Instances of each role in a unit, and their parallelism."""
    plan: PlanStatus | None = None
    """What `status.plan` says of it; None with planning.mode Manual."""
    replan: str = ""
    """Value of the annotation distserve.io/replan that it was made for."""
    number: int = 1
    """Later ones have greater numbers."""
    claims: Mapping[Role, Object] = field(default_factory=dict)
    """What a pod of each role claims of DRA's devices: `spec.devices` of its claim."""

    @property
    def digest(self) -> str:
        """Tells all revisions of a deployment apart."""
        return _hash(
            [self.name, self.gateway_name, _document(self.unit), _document(self.plan), self.replan]
        )


def make_revision(
    deployment: DistServeDeployment,
    settings: RenderSettings,
    known: Iterable[Revision] = (),
    plan: PlanStatus | None = None,
) -> Revision:
    """The revision of a spec whose numbers stand in it (`planned.with_plan`, `with_numbers`).

    `known` are the stored ones: what they have already is taken from there and not rendered again,
    down to the whole revision. So it may be called at each reconcile. Raises RenderError.
    """
    if deployment.spec.planning.automatic:
        raise NoPlan("planning.mode Auto: there is no plan yet to take the numbers from")
    stored = sorted(known, key=lambda revision: revision.number)
    name, gateways = revision_of(deployment), {r.gateway_name: r.gateway for r in stored[::-1]}
    gateway_name = gateway_revision_of(deployment, stored, name)
    engines = next((r for r in stored if r.name == name), None)
    made = Revision(
        name=name,
        gateway_name=gateway_name,
        templates=engines.templates
        if engines
        else {
            role: engine_template(deployment, role, name, settings)
            for role in deployment.spec.roles
        },
        claims=engines.claims if engines else _claims(deployment),
        gateway=gateways.get(gateway_name) or gateway_template(deployment, gateway_name, settings),
        unit=_numbers(deployment),
        plan=plan,
        replan=deployment.metadata.annotations.get(labels.REPLAN, ""),
        number=stored[-1].number + 1 if stored else 1,
    )
    return next((r for r in stored if r.digest == made.digest), made)


def revision_of(deployment: DistServeDeployment) -> str:
    """Hash of what the instances' pods are made from: units and the gateway change nothing in it,
    a field that a later version adds does not either while it has its default. Nor does the number
    of a unit's pods, but where that is what their gang is bound by.

    The annotation distserve.io/refresh does: with it, everything is rendered anew.
    docs/conditions.md tells users which field does what.
    """
    spec = deployment.spec.model_dump(
        mode="json",
        exclude_defaults=True,
        include={
            "model": True, "accelerator": True, "strategy": True, "prefill": True, "decode": True,
            "hybrid": True, "kv_transfer": True, "fabric": True, "rollout": {"drain_deadline"},
            "topology": {"fabric_required"},
        },
    )  # fmt: skip
    if deployment.spec.fabric.compute_domain:
        spec["nvlink"] = environment.is_within_nvlink(deployment)
    scheduler = deployment.spec.topology.scheduler
    if scheduler is not None and scheduler in POD_SCHEDULERS:
        spec["schedulerName"] = POD_SCHEDULERS[scheduler]
    images = deployment.spec.images
    spec["images"] = [images.engine, images.migrator]
    if scheduler == Scheduler.GANG_SCHEDULING:
        spec["gang"] = sum(
            section.instances_per_unit * deployment.spec.pods(role)
            for role, section in deployment.spec.roles.items()
        )
    for role in deployment.spec.roles:
        spec[role].pop("instancesPerUnit", None)
    return _hash(spec | _refresh(deployment))


def gateway_revision_of(
    deployment: DistServeDeployment, stored: Sequence[Revision] = (), engines: str = ""
) -> str:
    """Hash of what the gateways' pods are made from; their number changes nothing in it.

    What is stored under a hash as it once was runs on: of gateways that were not told the drain
    deadline, and of those that did not count one another. `engines` is the name of a revision that
    they were made with for the same deadline: with another one they are made anew.
    """
    asked = _asked_of_gateways(deployment)
    drain = deployment.spec.rollout.model_dump(
        mode="json", exclude_defaults=True, include={"drain_deadline"}
    )
    shared = asked | {"sharesWaiting": True}
    name = _hash(shared | drain)
    if any(one.gateway_name == name for one in stored):
        return name
    known = {one.gateway_name for one in stored if not drain or one.name == engines}
    former = [_hash(shared)]
    if not deployment.spec.gateway.autoscaled:  # A share is of a number that the spec gives.
        former.append(_revision_told_their_share(deployment, asked))
    return next((one for one in former if one in known), name)


def _revision_told_their_share(deployment: DistServeDeployment, asked: Object) -> str:
    """Of gateways that did not count one another: what is stored of them is of use for their
    number alone."""
    gateway, replicas = deployment.spec.gateway, {"replicas"}
    number = gateway.model_dump(mode="json", exclude_defaults=True, include=replicas)
    return _hash(asked | {"gateway": asked.get("gateway", {}) | number})


def _asked_of_gateways(deployment: DistServeDeployment) -> Object:
    spec = deployment.spec.model_dump(
        mode="json",
        exclude_defaults=True,
        include={
            "model": {"id"}, "strategy": {"name"}, "slo": True,
            "gateway": {"routing", "max_waiting_requests", "request_timeout", "pod_template"},
            "restart": {"node_lost_after"},
        },
    )  # fmt: skip
    return spec | {"image": deployment.spec.images.gateway} | _refresh(deployment)


def with_numbers(deployment: DistServeDeployment, revision: Revision) -> DistServeDeployment:
    """The deployment with the numbers of a revision that was planned for it: as `with_plan`, but
    without a plan at hand."""
    spec = deployment.spec
    sections: dict[str, Any] = {}
    for role, section in spec.roles.items():
        part: RolePlan = getattr(revision.unit, role.value)
        parallelism = Parallelism(tensor=part.tensor, pipeline=part.pipeline)
        numbers = {"instances_per_unit": part.instances, "parallelism": parallelism}
        sections[role.value] = section.model_copy(update=numbers)
    planned = revision.plan is not None and spec.planning.plans_units
    units = revision.plan.units if planned and revision.plan else spec.units
    update = {**sections, "units": units, "planning": Planning()}
    return deployment.model_copy(update={"spec": spec.model_copy(update=update)})


def object_name(deployment: DistServeDeployment, revision: Revision) -> str:
    return f"{deployment.name}-{revision.digest}"


def to_object(deployment: DistServeDeployment, revision: Revision) -> Object:
    """The ControllerRevision. Its data never changes: `create_only`.

    StatefulSets have ControllerRevisions of their own under the same labels; ours are controlled by
    the deployment.
    """
    found = new_object(
        deployment,
        API_VERSION,
        KIND,
        object_name(deployment, revision),
        {labels.REVISION: revision.name},
    )
    return found | {
        "revision": revision.number,
        "data": {
            "revision": revision.name,
            "gatewayRevision": revision.gateway_name,
            "unit": _document(revision.unit),
            "plan": _document(revision.plan),
            "replan": revision.replan,
            "templates": {role.value: found for role, found in revision.templates.items()},
            "gatewayTemplate": revision.gateway,
            "claims": {role.value: found for role, found in revision.claims.items()},
        },
    }


def from_object(document: Object) -> Revision:
    """Raises KeyError or pydantic.ValidationError for what `to_object` did not make."""
    data = document["data"]
    return Revision(
        name=data["revision"],
        gateway_name=data["gatewayRevision"],
        templates={Role(role): template for role, template in data["templates"].items()},
        gateway=data["gatewayTemplate"],
        unit=UnitPlan.model_validate(data["unit"]),
        plan=None if data["plan"] is None else PlanStatus.model_validate(data["plan"]),
        replan=data["replan"],
        number=document["revision"],
        claims={Role(role): devices for role, devices in (data.get("claims") or {}).items()},
    )


def _numbers(deployment: DistServeDeployment) -> UnitPlan:
    return UnitPlan.model_validate(
        {
            role.value: {
                "instances": section.instances_per_unit,
                "tensor": section.parallelism.tensor,
                "pipeline": section.parallelism.pipeline,
                "pods": pods if (pods := deployment.spec.pods(role)) > 1 else None,
            }
            for role, section in deployment.spec.roles.items()
        }
    )


def _claims(deployment: DistServeDeployment) -> dict[Role, Object]:
    asked = {role: claims.devices_of(deployment, role) for role in deployment.spec.roles}
    return {role: devices for role, devices in asked.items() if devices is not None}


def _document(model: UnitPlan | PlanStatus | None) -> Object | None:
    return None if model is None else model.model_dump(mode="json", exclude_none=True)


def _refresh(deployment: DistServeDeployment) -> dict[str, str]:
    asked = deployment.metadata.annotations.get(labels.REFRESH)
    return {} if asked is None else {"refresh": asked}


def _hash(value: Any) -> str:
    if isinstance(value, dict):  # a section in which nothing is said is as one that is not there
        value = {key: found for key, found in value.items() if found != {}}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]
