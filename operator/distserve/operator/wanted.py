"""What a deployment should have: its target revision, the stored ones, and the objects of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.operator.difference import stamped
from distserve.operator.health import HELD_PODS, PLACE, LiveUnit, write_place
from distserve.operator.keys import keyed
from distserve.operator.model import Object, Observed, Placement, Ref
from distserve.resources import affinity, gangs, monitoring, naming, provisioning
from distserve.resources.queued import Admission, with_admission
from distserve.resources.render import shared_objects, unit_objects
from distserve.resources.revisions import KIND as REVISION_KIND
from distserve.resources.revisions import Revision, from_object, object_name, to_object
from distserve.resources.settings import RenderSettings

_NOT_ASKED_ABOUT = frozenset(
    {
        # Nothing but names differs from one deployment to another.
        "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount",
        # Serving does not need them.
        monitoring.POD_MONITOR, monitoring.PROMETHEUS_RULE,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """Of a deployment whose numbers are those of its plan."""

    deployment: DistServeDeployment
    settings: RenderSettings
    target: Revision
    stored: Mapping[str, Revision]
    """By name, each with the numbers that its units have (`named`)."""
    notes: Mapping[str, str]
    """Annotations of the target's ControllerRevision."""
    key_generation: int = 1
    gateways: int | None = None
    """How many there are to be, where it is somebody else who says it."""

    @property
    def key_secret(self) -> str:
        return naming.key_secret_name(self.deployment, self.key_generation)

    def revision(self, name: str) -> Revision | None:
        """With the numbers that units of it are to have."""
        if name == self.target.name and not self.deployment.spec.rollout.paused:
            return self.target
        return self.stored.get(name)

    @property
    def holds_numbers(self) -> bool:
        """Whether units keep others than the target's, since the rollout is paused."""
        known = self.revision(self.target.name)
        return known is not None and known.unit != self.target.unit

    @cached_property
    def shared(self) -> list[Object]:
        """In the order in which they are applied: access before what needs it."""
        found = shared_objects(self.deployment, self.settings, self.target)
        return [self._scaled(stamped(self._keyed(one))) for one in found]

    @property
    def record(self) -> Object:
        """The target's ControllerRevision."""
        found = to_object(self.deployment, self.target)
        return {**found, "metadata": {**found["metadata"], "annotations": dict(self.notes)}}

    @property
    def record_name(self) -> str:
        return object_name(self.deployment, self.target)

    def instances(self, unit: str, revision: str) -> dict[str, str] | None:
        """Name -> role of a unit's instances; None for a revision that is not known."""
        known = self.revision(revision)
        if known is None:
            return None
        found = naming.instances(self.deployment, unit, known.unit)
        return {instance.name: instance.role.value for instance in found}

    def unit(
        self,
        unit: str,
        revision: Revision,
        place: Placement,
        held: bool,
        protected: bool,
        admission: Admission | None = None,
    ) -> list[Object]:
        """Budget and StatefulSets. `held` ones have no pods: those of another revision are to be
        gone before the first one of this revision starts. `protected` ones lose no pod to
        evictions."""
        together = naming.unit_selector(self.deployment, unit) if place.open else {}
        where = affinity.Placement(
            place.level, place.label, place.value, place.nodes, together, place.avoid
        )
        objects = unit_objects(self.deployment, unit, revision, where, protected)
        if gangs.SERVED not in self.settings.served:  # Any more: then nobody asks for it either.
            objects = [one for one in objects if one["apiVersion"] != gangs.API_VERSION]
        objects = [with_admission(found, admission) for found in objects]
        if place.open and provisioning.SERVED in self.settings.served:
            objects = provisioning.requested(self.deployment, unit, revision.name, objects)
        written = write_place(place)
        return [stamped(_placed(self._keyed(found), written, held)) for found in objects]

    def sample(self) -> tuple[Object, ...]:
        """What the API server is asked about before a revision is made: an instance of each role,
        and of the rest what it could refuse for what the spec or the operator's rights say."""
        asked = {Ref.of(found): found for found in self.shared}
        for found in unit_objects(self.deployment, "u0", self.target):
            role = found["metadata"]["labels"].get(labels.ROLE)
            asked.setdefault(role or Ref.of(found), found)
        return tuple(found for found in asked.values() if found["kind"] not in _NOT_ASKED_ABOUT)

    def _scaled(self, found: Object) -> Object:
        """Once it is stamped: another number of theirs is no other wish of ours."""
        if found["kind"] != "Deployment" or self.gateways is None:
            return found
        return {**found, "spec": {**found["spec"], "replicas": self.gateways}}

    def _keyed(self, found: Object) -> Object:
        return keyed(found, self.deployment, self.key_generation)


def _placed(found: Object, place: str, held: bool) -> Object:
    if found["kind"] != "StatefulSet":
        return found
    metadata, spec = found["metadata"], found["spec"]
    annotations = {**metadata.get("annotations", {}), PLACE: place}
    if held:
        annotations[HELD_PODS] = str(spec["replicas"])
        spec = {**spec, "replicas": 0}
    return {**found, "metadata": {**metadata, "annotations": annotations}, "spec": spec}


def autoscaled_gateways(deployment: DistServeDeployment, observed: Observed) -> int | None:
    """As many as there are to be now by whoever else says it; None where the spec does."""
    live = observed.children.get(Ref("apps/v1", "Deployment", naming.gateway_name(deployment)))
    if live is None or not deployment.spec.gateway.autoscaled:
        return None
    return int(live["spec"].get("replicas", 1))


def stored_revisions(observed: Observed) -> list[tuple[Object, Revision]]:
    """The ControllerRevisions that we made, oldest first."""
    found = []
    for ref, live in observed.children.items():
        if ref.kind == REVISION_KIND and "deletionTimestamp" not in live["metadata"]:
            try:
                found.append((live, from_object(live)))
            except (KeyError, ValueError, TypeError):
                continue  # nothing that can be applied: it is made anew under its own name
    return sorted(found, key=lambda pair: pair[1].number)


def standing_instances(
    deployment: DistServeDeployment, live: Collection[LiveUnit]
) -> dict[str, set[str]]:
    """What units have of each revision: names without the unit's."""
    has: dict[str, set[str]] = defaultdict(set)
    for unit in live:
        for one in unit.instances.values():
            if "deletionTimestamp" not in one.statefulset["metadata"]:
                has[one.revision].add(one.name.removeprefix(f"{deployment.name}-{unit.name}-"))
    return has


def named(
    deployment: DistServeDeployment, known: Sequence[Revision], has: Mapping[str, set[str]]
) -> dict[str, Revision]:
    """By name, of the `known` ones, oldest first. Those that share a name have the same pods in
    other numbers, or another gateway: of them the one with the fewest instances that has all that
    units have, so that these stay as they are; the latest where there are none. `has` is of
    `standing_instances`."""

    def shape(revision: Revision) -> set[str]:
        made = naming.instances(deployment, "u0", revision.unit)
        return {one.name.removeprefix(f"{deployment.name}-u0-") for one in made}

    found = {revision.name: revision for revision in known}
    for name in found.keys() & has.keys():
        fit = [one for one in reversed(known) if one.name == name and shape(one) >= has[name]]
        found[name] = min(fit, key=lambda one: len(shape(one)), default=found[name])
    return found
