"""A little cluster in memory: it takes what `decide` decides and plays controllers and kubelet."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from distserve.api import labels
from distserve.api.conditions import REASONS, Condition
from distserve.api.status import Status
from distserve.operator.conditions import timestamp
from distserve.operator.decide import DecideSettings, decide
from distserve.operator.idle import Idle, IdleQuestion
from distserve.operator.keys import key_of
from distserve.operator.model import (
    Answers,
    Apply,
    BetterQuestion,
    Decision,
    Delete,
    DryRunQuestion,
    Event,
    Features,
    KeyQuestion,
    NodesQuestion,
    NoPlace,
    Object,
    Observed,
    Pending,
    Placement,
    PlacementQuestion,
    Plan,
    PlannerError,
    PlanQuestion,
    Pod,
    Ref,
    TextsQuestion,
)
from distserve.operator.pairs import Link, LinksQuestion, Pair, UnitLinks
from distserve.operator.stages import stages
from distserve.placement.nodes import Node
from distserve.resources.settings import RenderSettings, released_images

NAME = "tiny"
NODE = "node-a"
SPEC: Object = {
    "model": {"id": "tiny", "source": {"builtin": "tiny"}},
    "accelerator": {"type": "CPU", "cpusPerRank": 1, "kvCache": "64Mi"},
    "prefill": {},
    "decode": {},
}
SETTINGS = DecideSettings(RenderSettings(released_images()), new_key=lambda: "k" * 64)


def node(name: str, **facts: Any) -> Node:
    return replace(Node(name, {}, {}, (), cordoned=False, ready=True), **facts)


class Crash(Exception):
    """The operator ends before this write."""


@dataclass
class World:
    """One deployment in one namespace. `reconcile` is what an operator does, `step` everybody
    else."""

    document: Object = field(default_factory=dict)
    settings: DecideSettings = SETTINGS
    objects: dict[Ref, Object] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    better: Callable[[str], Placement | None] = lambda unit: None
    """Where a unit that runs would lie better."""
    kept: dict[str, Placement] = field(default_factory=dict)
    """Room that is kept for such a unit."""
    unsettled: bool = False
    """A replica began to lead, and does not know all reservations yet."""
    idle: dict[str, float] = field(default_factory=dict)
    """For how many seconds units had no request; others cannot be asked."""
    room: int = 100
    """Units that find a place."""
    plans: dict[str, Plan | PlannerError | Pending] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """What users' ConfigMaps hold, by name/key."""
    refusal: str = ""
    broken: Callable[[Pod], bool] = lambda pod: False
    """Pods that never get ready."""
    unschedulable: Callable[[Pod], bool] = lambda pod: False
    features: Features = field(default_factory=Features)
    link: Callable[[Pair], Link] = Link
    """What is known of a pair's link: by default nothing yet."""
    fingerprint: Callable[[str], str] = lambda pod: "f"
    """Of a pod's engine; empty where it does not answer."""
    trips: bool = False
    """Faults of the operator are what it is about."""
    foreign: set[Ref] = field(default_factory=set)
    late: Observed | None = None
    fail_after: int | None = None
    """Writes until the operator crashes."""
    writes: list[Apply | Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    questions: list[Any] = field(default_factory=list)
    keys: int = 0
    serial: int = 0
    accelerators: tuple[int, ...] = ()
    nodes: dict[str, Node] = field(default_factory=lambda: {NODE: node(NODE)})
    """As the API server has them."""
    silent: set[str] = field(default_factory=set)
    """Nodes whose kubelet ends no pod any more."""
    random: random.Random = field(default_factory=lambda: random.Random(0))

    # what users do

    def create(self, **spec: Any) -> World:
        self.document = {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "metadata": {
                "name": NAME, "namespace": "llm", "uid": self._uid(), "generation": 1,
                "annotations": {},
            },
            "spec": copy.deepcopy(SPEC) | spec,
        }  # fmt: skip
        return self

    def edit(self, **spec: Any) -> World:
        self.document["spec"] = {**self.document["spec"], **spec}
        self.document["metadata"]["generation"] += 1
        return self

    # what the operator does

    def observe(self) -> Observed:
        """Late news: what there was when `late` was taken."""
        if self.late is not None:
            return replace(self.late, document=copy.deepcopy(self.document), now=self.now)
        children = {r: o for r, o in self.objects.items() if r.kind != "Secret"}
        return Observed(
            copy.deepcopy(self.document),
            copy.deepcopy(children),
            tuple(self.pods.values()),
            self.features,
            self.now,
            self.accelerators,
            {p.node: self.nodes.get(p.node) for p in self.pods.values() if p.node},
        )

    def decide(self) -> Decision:
        """With all that can be answered at once."""
        answers = Answers(foreign=frozenset(self.foreign))
        for _ in range(5):
            observed = self.observe()
            decision = decide(observed, answers, self.settings)
            if decision.fault is not None and not self.trips:
                raise decision.fault
            more = self.answered(decision, answers)
            if more == answers:
                return decision
            answers = more
        raise AssertionError("decide asks again and again")

    def answered(self, decision: Decision, answers: Answers) -> Answers:
        plans, places = dict(answers.plans), dict(answers.placements)
        refusals, texts = dict(answers.refusals), dict(answers.texts)
        self.questions = list(decision.questions)
        for question in decision.questions:
            match question:
                case DryRunQuestion(revision, objects):
                    assert objects
                    assert not any(map(self._binds_otherwise, objects)), "which is refused"
                    refusals[revision] = self.refusal
                case PlanQuestion(request):
                    key = request.inputs_hash
                    plans[key] = self.plans.get("*", self.plans.get(key, Pending()))
                case KeyQuestion(name):
                    answers = replace(
                        answers, key_lost=Ref("v1", "Secret", name) not in self.objects
                    )
                case NodesQuestion(names):
                    answers = replace(answers, nodes={name: self.nodes.get(name) for name in names})
                case LinksQuestion(_, units):
                    answers = replace(
                        answers, links={unit: self._links(pairs) for unit, pairs in units.items()}
                    )
                case TextsQuestion(keys):
                    texts = {key: self.texts.get(str(key)) for key in keys}
                case BetterQuestion(None):
                    self.kept = {}
                    answers = replace(answers, better={})
                case BetterQuestion(unit, never, beside):
                    place = Pending() if self.unsettled else self.better(unit.id.unit)
                    if beside is not None and isinstance(self._place(beside), NoPlace):
                        place = None
                    if isinstance(place, Placement) and never.intersection(place.names):
                        place = None
                    self.kept = {unit.id.unit: place} if isinstance(place, Placement) else {}
                    answers = replace(answers, better={unit.id.unit: place})
                case IdleQuestion(_, units, after):
                    known = ((unit, self.idle.get(unit, 0.0)) for unit in sorted(units))
                    idle = next((Idle(*one) for one in known if one[1] >= after), None)
                    answers = replace(answers, idle=idle)
                case PlacementQuestion(units):
                    for unit in units:
                        places.setdefault(unit.id.unit, self._place(unit))
        return replace(answers, plans=plans, placements=places, refusals=refusals, texts=texts)

    def reconcile(self) -> Decision:
        """Decides and acts, unless it crashes; the status is written last."""
        decision = self.decide()
        for stage in stages(decision.actions):
            # All at once there: any part of them may be done when it crashes.
            for action in self.random.sample(stage, len(stage)):
                self._may_write()
                self.writes.append(action)
                if isinstance(action, Apply):
                    self._apply(action)
                else:
                    self._delete(action)
        if decision.status is not None:
            self._may_write()
            self.document["status"] = json.loads(json.dumps(decision.status))
            Status.model_validate(self.status)
            for one in self.status["conditions"]:
                known = {reason.value for reason in REASONS[Condition(one["type"])]}
                assert one["reason"] in known, one
        self.events += decision.events
        return decision

    def reconcile_or_crash(self) -> bool:
        """Whether it came to its end."""
        try:
            self.reconcile()
        except Crash:
            return False
        return True

    # what everybody else does

    def step(self) -> None:
        """Controllers and kubelet do one thing each; a second goes by."""
        self.now += 1.0
        self._end_pods()
        self._make_pods()
        for name, pod in list(self.pods.items()):
            if pod.terminating or pod.ready:
                continue
            if self.unschedulable(pod) and not pod.node:
                self.pods[name] = replace(pod, unschedulable="0/1 nodes are available")
            elif not pod.node:
                self._schedule(pod)
            elif pod.node in self.silent:
                continue
            elif pod.key not in self.named("Secret"):
                continue  # Its volume is awaited.
            elif not self.broken(pod):
                ready = pod.fabric_gate is not False
                self.pods[name] = replace(
                    pod, ready=ready, containers_ready=True, host="10.0.0.1", starting_since=None
                )
        for found in self.objects.values():
            if found["kind"] == "StatefulSet":
                mine = [p for p in self.pods.values() if p.instance == found["metadata"]["name"]]
                found["status"] = {
                    "replicas": len(mine),
                    "readyReplicas": sum(p.ready for p in mine),
                }

    def settle(self, rounds: int = 200, check: Callable[[World], None] = lambda w: None) -> World:
        """Until nothing is left to do and nothing moves."""
        for _ in range(rounds):
            before = self.picture()
            ended = self.reconcile_or_crash()
            check(self)
            self.step()
            check(self)
            if ended and before == self.picture():
                return self
        raise AssertionError(f"it does not settle: {json.dumps(self.status, indent=1)}")

    # what can be seen

    @property
    def status(self) -> Object:
        return self.document.get("status") or {}

    def condition(self, name: str) -> Object:
        return next(c for c in self.status["conditions"] if c["type"] == name)

    def named(self, kind: str) -> dict[str, Object]:
        return {ref.name: found for ref, found in self.objects.items() if ref.kind == kind}

    def units(self) -> dict[str, set[str]]:
        """Unit -> revisions of its StatefulSets."""
        found: dict[str, set[str]] = {}
        for one in self.named("StatefulSet").values():
            marks = one["metadata"]["labels"]
            found.setdefault(marks[labels.UNIT], set()).add(marks[labels.REVISION])
        return found

    def ready_units(self) -> int:
        found: dict[str, list[bool]] = {}
        for name, one in self.named("StatefulSet").items():
            pods = [p for p in self.pods.values() if p.instance == name]
            revision = one["metadata"]["labels"][labels.REVISION]
            good = [p for p in pods if p.ready and not p.terminating and p.revision == revision]
            found.setdefault(one["metadata"]["labels"][labels.UNIT], []).append(
                len(good) == one["spec"]["replicas"] > 0
            )
        return sum(all(one) for one in found.values())

    def serving(self) -> set[str]:
        """Units that have a ready instance of each role."""
        found: dict[str, set[str]] = {}
        for name, one in self.named("StatefulSet").items():
            marks = one["metadata"]["labels"]
            ready = any(
                p.ready and not p.terminating for p in self.pods.values() if p.instance == name
            )
            if ready and one["spec"]["replicas"]:
                found.setdefault(marks[labels.UNIT], set()).add(marks[labels.ROLE])
        return {unit for unit, roles in found.items() if len(roles) == 2}

    def picture(self) -> tuple[str, str, str]:
        return (
            json.dumps([[*ref, found] for ref, found in sorted(self.objects.items())]),
            repr(sorted(self.pods.items())),
            json.dumps(self.status, sort_keys=True),
        )

    # inside

    def _may_write(self) -> None:
        if self.fail_after is not None:
            if self.fail_after == 0:
                self.fail_after = None
                raise Crash
            self.fail_after -= 1

    def _uid(self) -> str:
        self.serial += 1
        return f"uid-{self.serial}"

    def _place(self, unit: Any) -> Placement | NoPlace:
        if unit.id.unit in self.kept:
            return self.kept[unit.id.unit]
        if int(unit.id.unit[1:]) >= self.room:
            return NoPlace("NoRoom", f"unit {unit.id.unit} needs 2 CPUs; the fullest has 1 free")
        return Placement("", "", "", {i.name: (NODE,) for i in unit.instances})

    def _apply(self, action: Apply) -> None:
        wanted = copy.deepcopy(action.object)
        if action.subresource:
            return self._open_gate(action)
        ref = Ref(wanted["apiVersion"], wanted["kind"], wanted["metadata"]["name"])
        live = self.objects.get(ref)
        assert ref not in self.foreign
        if ref.kind == "Secret" and live is None:
            self.keys += 1
        if live is None:
            if action.uid:
                return  # it is not there any more: a conflict
            wanted["metadata"]["uid"] = self._uid()
            wanted["metadata"]["creationTimestamp"] = timestamp(self.now)
            self.objects[ref] = wanted
            return
        if action.create_only:
            return
        if action.uid not in ("", live["metadata"]["uid"]):
            return  # another one: a conflict
        # Without a uid it was looked for first: it is ours, and was not seen yet.
        assert self.late is not None or action.uid, "an apply that did not see the object"
        assert not self._binds_otherwise(wanted), "which no API server changes"
        for name in ("uid", "creationTimestamp"):
            wanted["metadata"][name] = live["metadata"][name]
        if "status" in live:
            wanted["status"] = live["status"]
        self.objects[ref] = wanted

    def _binds_otherwise(self, wanted: Object) -> bool:
        live = self.objects.get(Ref.of(wanted), wanted)
        return bool(live.get("roleRef") != wanted.get("roleRef"))

    def _links(self, pairs: tuple[Pair, ...]) -> UnitLinks:
        engines = {
            one.life: self.fingerprint(one.pod) for p in pairs for one in (p.reader, p.source)
        }
        known = {life: found for life, found in engines.items() if found}
        return UnitLinks(tuple(map(self.link, pairs)), known)

    def _open_gate(self, action: Apply) -> None:
        """The one thing that is written to pods' status."""
        (condition,) = action.object["status"]["conditions"]
        assert (condition["type"], condition["status"]) == (labels.FABRIC_VERIFIED, "True")
        pod = self.pods[action.object["metadata"]["name"]]
        if pod.uid == action.uid:
            self.pods[pod.name] = replace(pod, fabric_gate=True)

    def _delete(self, action: Delete) -> None:
        if action.ref.kind == "Pod":
            pod = self.pods.get(action.ref.name)
            if pod is None or pod.uid != action.uid:
                assert self.late is not None, "the end of a pod that is not there"
            elif action.grace_seconds == 0:
                del self.pods[pod.name]
            else:
                self.pods[pod.name] = replace(pod, terminating=True, ready=False)
            return
        live = self.objects.get(action.ref)
        if live is not None and live["metadata"]["uid"] == action.uid:
            del self.objects[action.ref]

    def _end_pods(self) -> None:
        sets = self.named("StatefulSet")
        for name, pod in list(self.pods.items()):
            if pod.terminating:
                if pod.node not in self.silent:
                    del self.pods[name]
            elif pod.instance and (
                pod.instance not in sets or sets[pod.instance]["spec"]["replicas"] == 0
            ):
                self.pods[name] = replace(pod, terminating=True, ready=False)
        for name, one in self.named("Deployment").items():
            for pod in [p for p in self.pods.values() if p.name.startswith(f"{name}-")]:
                if pod.key != key_of(one["spec"]["template"]["spec"]):
                    del self.pods[pod.name]  # Its ReplicaSet is scaled down.

    def _schedule(self, pod: Pod) -> None:
        well = [n.name for n in self.nodes.values() if n.usable and n.unreachable_since is None]
        self.pods[pod.name] = (
            replace(pod, node=well[0], unschedulable="", starting_since=self.now)
            if well
            else replace(pod, unschedulable="0/1 nodes are available")
        )

    def _make_pods(self) -> None:
        for name, one in self.named("StatefulSet").items():
            for index in range(one["spec"]["replicas"]):
                if f"{name}-{index}" not in self.pods:
                    template = one["spec"]["template"]
                    self._make_pod(f"{name}-{index}", template, f"StatefulSet/{name}")
        for name, one in self.named("Deployment").items():
            for index in range(one["spec"]["replicas"]):
                if f"{name}-{index}" not in self.pods:
                    made = f"ReplicaSet/{name}-5d4f8"
                    self._make_pod(f"{name}-{index}", one["spec"]["template"], made)

    def _make_pod(self, name: str, template: Object, controller: str) -> None:
        marks = template["metadata"]["labels"]
        gates = [gate["conditionType"] for gate in template["spec"].get("readinessGates", [])]
        self.pods[name] = Pod(
            name, self._uid(), marks.get(labels.INSTANCE, ""), marks.get(labels.UNIT, ""),
            marks.get(labels.REVISION, ""), "", False, False, self.now, controller=controller,
            fabric_gate=False if labels.FABRIC_VERIFIED in gates else None,
            key=key_of(template["spec"]),
        )  # fmt: skip


@pytest.fixture
def world() -> World:
    return World().create()


@pytest.fixture
def new_world() -> Callable[..., World]:
    return lambda **spec: World().create(**spec)
