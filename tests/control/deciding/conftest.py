"""The operator's `decide` beside a cluster that is played: what it decides is done there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from tests.control.deciding.played_cluster import NODE, PlayedCluster, copied

from distserve.api import labels
from distserve.api.conditions import REASONS, Condition
from distserve.api.status import Status
from distserve.operator.decide import DecideSettings, decide
from distserve.operator.idle import Idle, IdleQuestion
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
from distserve.placement.inventory import Offer
from distserve.resources.settings import RenderSettings, released_images

NAME = "tiny"
SPEC: Object = {
    "model": {"id": "tiny", "source": {"builtin": "tiny"}},
    "accelerator": {"type": "CPU", "cpusPerRank": 1, "kvCache": "64Mi"},
    "prefill": {},
    "decode": {},
}
SETTINGS = DecideSettings(RenderSettings(released_images()), new_key=lambda: "k" * 64)


class Crash(Exception):
    """The operator ends before this write."""


@dataclass
class World(PlayedCluster):
    """One deployment in one namespace. `reconcile` is what an operator does."""

    document: Object = field(default_factory=dict)
    settings: DecideSettings = SETTINGS
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
    features: Features = field(default_factory=Features)
    link: Callable[[Pair], Link] = Link
    """What is known of a pair's link: by default nothing yet."""
    fingerprint: Callable[[str], str] = lambda pod: "f"
    """Of a pod's engine; empty where it does not answer."""
    trips: bool = False
    """Faults of the operator are what it is about."""
    fail_after: int | None = None
    """Writes until the operator crashes."""
    writes: list[Apply | Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    questions: list[Any] = field(default_factory=list)
    accelerators: tuple[Offer, ...] = ()
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
            "spec": copied(SPEC) | spec,
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
            return replace(self.late, document=copied(self.document), now=self.now)
        return Observed(
            copied(self.document),
            {ref: copied(one) for ref, one in self.objects.items() if ref.kind != "Secret"},
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

    def picture(self) -> tuple[bytes, list[tuple[str, Pod]], bytes]:
        objects = [[*ref, found] for ref, found in sorted(self.objects.items())]
        return (
            msgspec.json.encode(objects),
            sorted(self.pods.items()),
            msgspec.json.encode(self.status, order="sorted"),
        )

    # inside

    def _may_write(self) -> None:
        if self.fail_after is not None:
            if self.fail_after == 0:
                self.fail_after = None
                raise Crash
            self.fail_after -= 1

    def _place(self, unit: Any) -> Placement | NoPlace:
        if unit.id.unit in self.kept:
            return self.kept[unit.id.unit]
        if int(unit.id.unit[1:]) >= self.room:
            return NoPlace("NoRoom", f"unit {unit.id.unit} needs 2 CPUs; the fullest has 1 free")
        return Placement("", "", "", {i.name: (NODE,) for i in unit.instances})

    def _links(self, pairs: tuple[Pair, ...]) -> UnitLinks:
        engines = {
            one.life: self.fingerprint(one.pod) for p in pairs for one in (p.reader, p.source)
        }
        known = {life: found for life, found in engines.items() if found}
        return UnitLinks(tuple(map(self.link, pairs)), known)


@pytest.fixture
def world() -> World:
    return World().create()


@pytest.fixture
def new_world() -> Callable[..., World]:
    return lambda **spec: World().create(**spec)
