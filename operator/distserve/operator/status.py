"""The facts about a deployment, as conditions and as the rest of `.status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distserve.api import labels
from distserve.api.conditions import (
    Condition,
    DegradedReason,
    FailedReason,
    GatewayReadyReason,
    ReadyReason,
    RoleReadyReason,
)
from distserve.api.deployment import DistServeDeployment
from distserve.api.durations import parse_duration
from distserve.api.status import Status
from distserve.operator.conditions import Fact
from distserve.operator.health import LiveUnit, crashed
from distserve.operator.model import Object, Pod
from distserve.operator.troubles import first_trouble
from distserve.resources import naming
from distserve.resources.revisions import Revision

ROLE_CONDITIONS: Mapping[str, Condition] = {
    "prefill": Condition.PREFILL_READY,
    "decode": Condition.DECODE_READY,
    "hybrid": Condition.HYBRID_READY,
}


@dataclass(frozen=True)
class Asked:
    """What there is to be."""

    instances: Mapping[str, int]
    """By role, of all units together."""
    units: int
    gateways: int


def asked_by(deployment: DistServeDeployment, gateways: int | None = None) -> Asked:
    """`gateways`: how many, where it is not the spec that says it."""
    spec = deployment.spec
    instances = {
        role.value: section.instances_per_unit * spec.units for role, section in spec.roles.items()
    }
    return Asked(instances, spec.units, spec.gateway.replicas if gateways is None else gateways)


Roles = Mapping[str, frozenset[str]]
"""By revision: those that it has, and needs all of to serve. Another strategy has others."""


def roles_of(live: Mapping[str, LiveUnit], known: Iterable[Revision]) -> Roles:
    """Of revisions that are not `known` any more, as their units tell."""
    found: dict[str, frozenset[str]] = {}
    for unit in live.values():
        for instance in unit.instances.values():
            found[instance.revision] = found.get(instance.revision, frozenset()) | {instance.role}
    return found | {one.name: frozenset(role.value for role in one.templates) for one in known}


@dataclass(frozen=True)
class Overview:
    """What is there of what was asked."""

    asked: Asked
    live: Mapping[str, LiveUnit]
    gateways: tuple[Pod, ...]
    target: str
    """Empty: the revision that each unit has is as good as any."""
    ready: frozenset[str]
    """Units all of whose instances are there and ready."""
    troubles: Mapping[str, str]
    """Node -> what ails it."""
    needed: Roles
    apart: bool = False
    """Its instances cannot serve with each other."""
    refused: str = ""
    """Why not all gateways' pods were made."""

    @property
    def ready_units(self) -> int:
        return len(self.ready)

    @property
    def ready_gateways(self) -> int:
        return ready_pods(self.gateways)

    @property
    def serving(self) -> bool:
        return not self.apart and serves(self.live, self.gateways, self.needed)

    def roles(self) -> list[Object]:
        found = []
        for role, desired in self.asked.instances.items():
            instances = [
                i for u in self.live.values() for i in u.instances.values() if i.role == role
            ]
            updated = [
                i for i in instances
                if i.revision == (self.target or i.revision)
                and any(p.revision == i.revision and not p.terminating for p in i.pods)
            ]  # fmt: skip
            found.append(
                {
                    "name": role,
                    "desired": desired,
                    "ready": sum(instance.ready for instance in instances),
                    "updated": len(updated),
                }
            )
        return found

    def units(self) -> list[Object]:
        return [self._unit(unit) for unit in sorted(self.live.values(), key=lambda u: u.number)]

    def _unit(self, unit: LiveUnit) -> Object:
        found: Object = {
            "name": unit.name,
            "revision": unit.revision,
            "nodes": list(
                dict.fromkeys(p.node for p in sorted(unit.pods, key=lambda p: p.name) if p.node)
            ),
            "ready": unit.name in self.ready,
        }
        if unit.place is not None and unit.place.value:
            found["domain"] = {"level": unit.place.level, "value": unit.place.value}
        return found

    def first_trouble(self, pods: Iterable[Pod]) -> str:
        """The end of a sentence: what keeps a pod from being ready."""
        words = first_trouble(pods, self.troubles)
        return f"; {words}" if words else ""

    @property
    def gateway_trouble(self) -> str:
        """The same of the gateways, where some may not be there at all."""
        refused = f"; the cluster refuses their pods: {self.refused}" if self.refused else ""
        return self.first_trouble(self.gateways) or refused

    @property
    def engines(self) -> list[Pod]:
        return [pod for unit in self.live.values() for pod in unit.pods]


def ready_pods(pods: Iterable[Pod]) -> int:
    return sum(pod.ready and not pod.terminating for pod in pods)


def serves(live: Mapping[str, LiveUnit], gateways: Iterable[Pod], needed: Roles) -> bool:
    """Whether some revision has a ready instance of each of its roles, behind a ready gateway."""
    ready: dict[str, set[str]] = {}
    for unit in live.values():
        for instance in unit.instances.values():
            if instance.ready:
                ready.setdefault(instance.revision, set()).add(instance.role)
    return ready_pods(gateways) > 0 and any(ready[name] >= needed[name] for name in ready)


def health_facts(view: Overview) -> dict[Condition, Fact]:
    """Conditions that follow from what runs, and from nothing else."""
    facts: dict[Condition, Fact] = {}
    for role in view.roles():
        facts[ROLE_CONDITIONS[role["name"]]] = _role(role)
    gateways = view.ready_gateways
    facts[Condition.GATEWAY_READY] = Fact(
        gateways > 0,
        GatewayReadyReason.AVAILABLE if gateways else GatewayReadyReason.NO_READY_POD,
        f"{gateways} of {view.asked.gateways} gateway pods are ready"
        + ("" if gateways else view.gateway_trouble),
    )
    facts[Condition.DEGRADED] = _degraded(view)
    return facts


def _role(role: Object) -> Fact:
    if role["desired"] == 0:
        return Fact(False, RoleReadyReason.SCALED_TO_ZERO, "spec.units is 0: set it to 1 or more")
    all_ready = role["ready"] >= role["desired"]
    return Fact(
        all_ready,
        RoleReadyReason.ALL_READY if all_ready else RoleReadyReason.INSTANCES_NOT_READY,
        f"{role['ready']} of {role['desired']} {role['name']} instances are ready",
    )


def ready_fact(
    view: Overview, deployment: DistServeDeployment, failed: Fact, why_not: Fact | None
) -> Fact:
    """`why_not`: what stands in the way of running."""
    if view.serving:
        return Fact(
            True,
            ReadyReason.SERVING,
            f"{view.ready_units} of {view.asked.units} units and {view.ready_gateways} "
            f"gateways serve {deployment.spec.model.id} at {naming.url(deployment)}",
        )
    if failed.holds:
        return Fact(False, ReadyReason.FAILED, failed.message)
    if view.asked.units == 0:
        return Fact(False, ReadyReason.SCALED_TO_ZERO, "spec.units is 0: set it to 1 or more")
    if why_not is not None:
        return why_not
    if not view.ready_units:
        return Fact(
            False,
            ReadyReason.NO_READY_UNIT,
            f"no unit has all its instances ready{view.first_trouble(view.engines)}",
        )
    return Fact(
        False,
        ReadyReason.NO_READY_GATEWAY,
        f"no gateway pod is ready{view.gateway_trouble}",
    )


def _degraded(view: Overview) -> Fact:
    asked = view.asked
    if not view.serving:
        return Fact(False, DegradedReason.STARTING, "it does not serve now: see Ready")
    if view.ready_units < asked.units:
        return Fact(
            True,
            DegradedReason.UNITS_NOT_READY,
            f"{view.ready_units} of {asked.units} units are ready"
            f"{view.first_trouble(view.engines)}",
        )
    if view.ready_gateways < asked.gateways:
        return Fact(
            True,
            DegradedReason.GATEWAYS_NOT_READY,
            f"{view.ready_gateways} of {asked.gateways} gateways are ready{view.gateway_trouble}",
        )
    return Fact(False, DegradedReason.AS_ASKED, "all that was asked for is ready")


def failed_fact(
    pods: Iterable[Pod],
    target: Revision,
    deployment: DistServeDeployment,
    before: Object | None,
    generation: int,
) -> Fact:
    """Once true it stays so until the spec changes. `before`: what was said of this target."""
    if before and before["status"] == "True" and before.get("observedGeneration") == generation:
        return Fact(True, before["reason"], before["message"])
    restart = deployment.spec.restart
    pod = crashed(made_from(target, pods), restart.budget, parse_duration(restart.within))
    if pod is None:
        return Fact(False, FailedReason.WITHIN_BUDGET, "")
    of = pod.revision if pod.instance else "gateway"
    return Fact(
        True,
        FailedReason.RESTART_BUDGET_SPENT,
        f"pod {pod.name} ({of}) was restarted {pod.restarts} times, more than restart.budget "
        f"{restart.budget} allows: {pod.message or pod.waiting}; see "
        f"`kubectl logs {pod.name} --previous`, then change the spec",
    )


def made_from(target: Revision, pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Not those of former revisions: they are still there when an edit has cured what ails them.
    Gateways are told apart where their template names its revision, as older ones do not."""
    gateway = target.gateway["metadata"]["labels"].get(labels.REVISION, "")
    return tuple(p for p in pods if p.revision == (target.name if p.instance else gateway))


def same_status(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two statuses say the same, whatever of it is left out as a default."""
    if not a or not b:
        return not a and not b
    try:
        return Status.model_validate(a) == Status.model_validate(b)
    except ValueError:
        return False
