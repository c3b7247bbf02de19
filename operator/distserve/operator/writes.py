"""From wanted and live objects to writes: only what differs, and what is ours and unwanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from distserve.api import labels
from distserve.operator.course import Course
from distserve.operator.difference import difference
from distserve.operator.disruption import protected_units
from distserve.operator.model import Apply, Delete, Object, Observed, Ref
from distserve.operator.queues import queue_writes
from distserve.operator.standings import NO_QUEUE
from distserve.operator.wanted import stored_revisions
from distserve.operator.worlds import noted
from distserve.resources import gangs

KEPT_KINDS = frozenset({"ControllerRevision", "Secret", "StatefulSet", "Workload", "PodGroup"})
"""Never pruned for being unwanted: their ends are decided one by one. Kubernetes' own PodGroups
are: it keeps those that pods still need."""
ASKING_KINDS = frozenset({"PodTemplate", "ProvisioningRequest"})
"""Pruned also of units that are left as they are: no nodes are to come for what was taken back."""


def writes(
    observed: Observed,
    foreign: frozenset[Ref],
    course: Course,
    history: int,
) -> tuple[Apply | Delete, ...]:
    """Each part of it, from the first on, is a state to go on from: access, then what is shared,
    the revision, the units, and what goes goes last."""
    wanted, children = course.wanted, observed.children
    units, kept = _units(course, protected_units(observed, course))
    units = noted(units, course.live)
    record = wanted.record
    objects = [*wanted.shared, *units]
    made = applies(wanted.shared, children, foreign)
    if wanted.gateways is not None:
        made = [_unless_scaled(one, children) for one in made]
    if Ref.of(record) not in foreign:
        made += _record(record, children.get(Ref.of(record)))
    ready = frozenset(f"u{number}" for number, state in course.states.items() if state.ready)
    return (
        *made,
        *queue_writes(observed, course.places.standings, course.live, ready, foreign),
        *applies(units, children, foreign),
        *_unit_deletions(course, {Ref.of(one) for one in units}, kept),
        *prunes(objects, children, kept),
        *_old_revisions(observed, course, history),
    )


def _record(record: Object, live: Object | None) -> list[Apply]:
    """Its data never changes; what it was planned for may: two questions may have one answer."""
    if live is None:
        return [Apply(record, create_only=True)]
    notes = record["metadata"]["annotations"]
    known = live["metadata"].get("annotations") or {}
    return [] if notes.items() <= known.items() else [Apply(record, live["metadata"]["uid"])]


def _units(course: Course, protected: Collection[str]) -> tuple[list[Object], frozenset[str]]:
    """What the units should have, and those that are left as they are."""
    objects: list[Object] = []
    for unit, revision in course.made.items():
        live, place = course.live.get(unit), course.places.found[unit]
        held = live is not None and live.held_for(revision.name)
        queue = course.places.standings.get(unit, NO_QUEUE)
        objects += course.wanted.unit(
            unit, revision, place, held, unit in protected, queue.admission
        )
    asked = {f"u{number}" for number in course.step.revisions}
    return objects, frozenset(asked - course.made.keys())


def _unit_deletions(course: Course, wanted: set[Ref], kept: frozenset[str]) -> list[Delete]:
    """Highest units first; of a unit that stays, instances that it does not have any more."""
    found: list[Delete] = []
    for unit in sorted(course.live.values(), key=lambda unit: -unit.number):
        goes = unit.number not in course.step.revisions or unit.name in course.places.given_up
        for instance in unit.instances.values():
            ref = Ref.of(instance.statefulset)
            if goes or (unit.name not in kept and ref not in wanted):
                found += deletion(ref, instance.statefulset)
    return found


def _old_revisions(observed: Observed, course: Course, history: int) -> list[Delete]:
    """ControllerRevisions beyond the history that no unit has. Many may share a unit's name, and
    only one of each is looked at."""
    names = {i.revision for unit in course.live.values() for i in unit.instances.values()}
    known = [course.wanted.revision(name) for name in (*names, course.rules.current)]
    used = {one.digest for one in (course.wanted.target, *known) if one is not None}
    unused = [live for live, revision in stored_revisions(observed) if revision.digest not in used]
    found: list[Delete] = []
    for live in unused[: max(0, len(unused) - history)]:
        found += deletion(Ref.of(live), live)
    return found


def _unless_scaled(action: Apply | Delete, children: Mapping[Ref, Object]) -> Apply | Delete:
    """The number that somebody else gave the gateways is written as it was seen: where there is
    another one by now, this version is not the live one's, the API server refuses it, and all is
    looked at again."""
    if isinstance(action, Delete) or action.object["kind"] != "Deployment":
        return action
    found = action.object
    seen = children[Ref.of(found)]["metadata"].get("resourceVersion", "")
    metadata = {**found["metadata"], "resourceVersion": seen}
    return replace(action, object={**found, "metadata": metadata})


def unit_of(found: Object) -> str:
    """Empty for what units share."""
    return str(found["metadata"].get("labels", {}).get(labels.UNIT, ""))


def applies(
    wanted: Iterable[Object], children: Mapping[Ref, Object], foreign: frozenset[Ref]
) -> list[Apply | Delete]:
    """In the order of `wanted`. A binding's role can never be changed: with another one it goes,
    and its end has it made anew."""
    found: list[Apply | Delete] = []
    for one in wanted:
        ref = Ref.of(one)
        live = children.get(ref)
        if ref in foreign or (live is not None and _going(live)):
            continue
        if live is None:
            found.append(Apply(one))
        elif is_made_anew(one, live):
            found += deletion(ref, live)
        elif difference(one, live) is not None:
            found.append(Apply(one, live["metadata"]["uid"]))
    return found


def is_made_anew(wanted: Object, live: Object) -> bool:
    """Where the API server would refuse to change it."""
    return bool(wanted.get("roleRef") != live.get("roleRef"))


def prunes(
    wanted: Iterable[Object], children: Mapping[Ref, Object], kept_units: frozenset[str]
) -> list[Delete]:
    """What nobody wants any more; of `kept_units` everything stays."""
    names = {Ref.of(one) for one in wanted}
    found = []
    for ref, live in children.items():
        kept = ref.kind in KEPT_KINDS and ref.api_version != gangs.API_VERSION
        unwanted = ref not in names and not kept
        if unwanted and (ref.kind in ASKING_KINDS or unit_of(live) not in kept_units):
            found.extend(deletion(ref, live))
    return found


def deletion(ref: Ref, live: Object) -> list[Delete]:
    """Nothing for what is not of our making, or is going already."""
    ours = live["metadata"].get("labels", {}).get(labels.APP_MANAGED_BY) == labels.OPERATOR_NAME
    return [Delete(ref, live["metadata"]["uid"])] if ours and not _going(live) else []


def _going(live: Object) -> bool:
    return "deletionTimestamp" in live["metadata"]
