"""One deployment, once: observe, decide, answer, act. All of the operator's writes begin here.

    observe --> decide <--> answers           (at most ROUNDS times)
                  |
                  v
           act, stage by stage --> status --> events

Doing a part of it and beginning again is always right, so every error simply ends it: the queue
comes back to the deployment. What was seen is told all the same where a write is not taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from distserve.api import labels
from distserve.api.planning import ConfigMapKey
from distserve.operator.cluster import Cluster
from distserve.operator.conditions import timestamp
from distserve.operator.engines import Engines
from distserve.operator.errors import (
    ClusterError,
    Conflict,
    NotFound,
    Refused,
    Tripped,
)
from distserve.operator.events import Events
from distserve.operator.health import unit_by_name
from distserve.operator.idle import IdleQuestion
from distserve.operator.idleness import Idleness
from distserve.operator.kinds import CONFIG_MAPS, DEPLOYMENTS, NODES, SECRETS, kind_of
from distserve.operator.model import (
    Answers,
    Apply,
    BetterQuestion,
    Decision,
    Delete,
    DryRunQuestion,
    Key,
    KeyQuestion,
    NodesQuestion,
    Object,
    Observed,
    PlacementQuestion,
    PlanQuestion,
    Question,
    Ref,
    TextsQuestion,
)
from distserve.operator.not_taken import NOT_TAKEN, refusal_event
from distserve.operator.pairs import LinksQuestion
from distserve.operator.placing import Placing
from distserve.operator.planning import Planning
from distserve.operator.records import owner
from distserve.operator.stages import stages
from distserve.operator.store import Store
from distserve.operator.together import together
from distserve.operator.waits import Waits
from distserve.placement.nodes import Node, node_from
from distserve.placement.requests import UnitId

log = logging.getLogger(__name__)

Decide = Callable[[Observed, Answers], Decision]

ROUNDS = 6
"""Of questions and answers: plan, place, dry run, and each may lead to the next."""


class Reconciler:
    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        decide: Decide,
        planning: Planning,
        placing: Placing,
        events: Events,
        engines: Engines,
        idleness: Idleness,
        waits: Waits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._decide = decide
        self._planning = planning
        self._placing = placing
        self._events = events
        self._engines = engines
        self._idleness = idleness
        self._waits = waits
        self._clock = clock
        self._taken: dict[Key, frozenset[str]] = {}
        """Revisions that the API server would take: asked once."""

    async def reconcile(self, key: Key) -> float | None:
        """Makes the cluster what the deployment says. Returns after how many seconds to look
        again, None: when something changes. Raises ClusterError, LeaseLost, and Tripped once the
        rest is done."""
        observed = self._store.observe(key, self._clock())
        if observed is None or "deletionTimestamp" in observed.document["metadata"]:
            # Owner references clean up; nothing is made for what goes, or kept.
            self._taken.pop(key, None)
            self._planning.release(key)
            self._placing.release(key)
            self._engines.release(key)
            self._idleness.release(key)
            self._waits.release(key)
            if observed is None:
                return None
        else:
            self._placing.settle(key, placed_sets(observed))
        decision, answers = await self._settle(key, observed)
        if self._placing.gathers(key):
            return None  # Woken in a moment; others ask sooner if nothing is written before.
        self._waits.follow(key, decision)
        foreign, error = await self._act_all(observed, decision)
        if isinstance(error, Conflict):
            raise error  # What was seen is not what is there.
        error = error or answers.failed
        if foreign or error is not None:
            answers = replace(answers, foreign=answers.foreign | foreign, failed=error)
            decision = self._decide(observed, answers)
        if decision.status is not None:
            await self._report(observed.document, decision.status)
        for event in decision.events:
            await self._events.tell(observed.document, event)
        if isinstance(error, NOT_TAKEN):
            await self._events.tell(observed.document, refusal_event(error))
        if error is not None:
            error.again_seconds = decision.again_seconds
            raise error
        if decision.fault is not None:
            # The worker tells of it, and tries again.
            raise Tripped(decision.again_seconds) from decision.fault
        return decision.again_seconds

    async def _settle(self, key: Key, observed: Observed) -> tuple[Decision, Answers]:
        """Decides until there is nothing left to ask: once, where what is known is enough."""
        taken = dict.fromkeys(self._taken.get(key, ()), "")
        answers = Answers(
            refusals=taken, links=self._engines.known(key), idle=self._idleness.known(key)
        )
        asked: set[type] = set()
        for _ in range(ROUNDS):
            decision = self._decide(observed, answers)
            asked.update(map(type, decision.questions))
            before = answers
            for question in decision.questions:
                answers = await self._answer(key, observed, question, answers)
                if self._placing.gathers(key):
                    return decision, answers
            if answers == before:
                break
        else:
            name = f"{key.namespace}/{key.name}"
            log.warning("still asking after %d rounds", ROUNDS, extra={"deployment": name})
        self._placing.keep(key, _asked(decision))
        if LinksQuestion not in asked:
            self._engines.release(key)
        if IdleQuestion not in asked:
            self._idleness.release(key)
        if PlanQuestion not in asked:
            self._planning.release(key)
        # A refusal is asked about again: it may be cured from outside, by a quota or a label.
        self._taken[key] = frozenset(one for one, no in answers.refusals.items() if not no)
        return decision, answers

    async def _answer(
        self, key: Key, observed: Observed, question: Question, answers: Answers
    ) -> Answers:
        if isinstance(question, PlanQuestion):
            plan = self._planning.ask(key, question.request)
            return replace(answers, plans={**answers.plans, question.request.inputs_hash: plan})
        if isinstance(question, PlacementQuestion):
            return replace(answers, placements=self._placing.ask(key, question.units))
        if isinstance(question, BetterQuestion):
            unit = question.unit
            better = self._placing.better(key, unit, question.never, question.beside)
            known = {} if unit is None else {unit.id.unit: better}
            return replace(answers, better=known)
        if isinstance(question, LinksQuestion):
            return replace(answers, links=self._engines.ask(key, question))
        if isinstance(question, IdleQuestion):
            return replace(answers, idle=self._idleness.ask(key, question))
        if isinstance(question, TextsQuestion):
            if all(one in answers.texts for one in question.keys):
                return answers
            return replace(answers, texts=await self._read(key, question.keys))
        if isinstance(question, KeyQuestion):
            if answers.key_lost is not None:
                return answers
            ref = Ref(SECRETS.api_version, SECRETS.kind, question.secret)
            found = await self._named(observed, ref)
            ours = found is None or _is_ours(found, observed)
            foreign = answers.foreign if ours else answers.foreign | {ref}
            return replace(answers, key_lost=found is None, foreign=foreign)
        if isinstance(question, NodesQuestion):
            if all(name in answers.nodes for name in question.names):
                return answers
            return replace(answers, nodes=await self._look(question.names))
        if question.revision in answers.refusals:
            return answers
        # Others were of an earlier spec.
        error = await self._dry_run(observed, question)
        words = "" if error is None else str(error)
        # Who was only late is asked again as soon as after any other failure.
        late = None if isinstance(error, NOT_TAKEN) else error
        return replace(answers, refusals={question.revision: words}, failed=late)

    async def _read(
        self, key: Key, keys: tuple[ConfigMapKey, ...]
    ) -> dict[ConfigMapKey, str | None]:
        """The user's texts; `data` alone, since a plan is made from text."""
        found: dict[ConfigMapKey, str | None] = {}
        for one in keys:
            live = await self._cluster.get(CONFIG_MAPS, key.namespace, one.config_map_name)
            data = (live or {}).get("data") or {}
            found[one] = data.get(one.key)
        return found

    async def _look(self, names: tuple[str, ...]) -> dict[str, Node | None]:
        """As the API server has them now. One that makes no sense to us is left out."""
        found: dict[str, Node | None] = {}
        for name in names:
            live = await self._cluster.get(NODES, "", name)
            try:
                found[name] = None if live is None else node_from(live)
            except ValueError as error:
                log.warning("nobody can tell how node %s is: %s", name, error)
        return found

    async def _dry_run(self, observed: Observed, question: DryRunQuestion) -> ClusterError | None:
        """About the first object that the API server would not take."""
        try:
            await together(self._try(observed, one) for one in question.objects)
        except Conflict:
            raise  # What was seen is not what is there.
        except ClusterError as error:
            return error
        return None

    async def _try(self, observed: Observed, document: Object) -> None:
        """Somebody else's object of that name is left alone, and told once ours is to be made: what
        the API server says of ours laid over it is of no use."""
        try:
            await self._cluster.apply(document, dry_run=True)
        except Refused:
            ref = Ref.of(document)
            found = None if ref in observed.children else await self._named(observed, ref)
            if found is None or _is_ours(found, observed):
                raise

    async def _act_all(
        self, observed: Observed, decision: Decision
    ) -> tuple[frozenset[Ref], ClusterError | None]:
        """Returns the names that somebody else's objects have, which are never touched, and what
        ended it early."""
        foreign: set[Ref] = set()
        for stage in stages(decision.actions):
            try:
                taken = await together(self._act(observed, action) for action in stage)
            except ClusterError as error:
                return frozenset(foreign), error
            foreign.update(ref for ref in taken if ref is not None)
            if any(ref.kind == SECRETS.kind for ref in foreign):
                break  # Pods would start with somebody else's Secret for a key.
        return frozenset(foreign), None

    async def _act(self, observed: Observed, action: Apply | Delete) -> Ref | None:
        """Returns the object's name where it is somebody else's."""
        namespace = observed.document["metadata"]["namespace"]
        ref = action.ref if isinstance(action, Delete) else Ref.of(action.object)
        uid = action.uid
        try:
            if isinstance(action, Delete):
                answer = await self._cluster.delete(
                    namespace, ref, action.uid, action.grace_seconds
                )
                self._keep_end(namespace, ref, action.uid, answer)
            elif action.uid:
                live = await self._cluster.apply(
                    action.object, action.uid, subresource=action.subresource
                )
                self._keep(live, "applied")
            else:
                return await self._make(observed, action)
        except NotFound:
            if not isinstance(action, Delete) and not action.subresource:
                raise  # The namespace goes, or the kind does.
            await self._see_again(namespace, ref, uid)
        except Conflict:
            found = await self._see_again(namespace, ref, uid)
            stays = found is not None and found["metadata"]["uid"] == uid
            if stays or not isinstance(action, Delete):
                raise
            # What was to go went already: another one has its name.
        return None

    async def _make(self, observed: Observed, action: Apply) -> Ref | None:
        """Something new. Where one of that name is there: whose is it?"""
        document, ref = action.object, Ref.of(action.object)
        try:
            create = self._cluster.create if action.create_only else self._cluster.apply_new
            self._keep(await create(document), "made")
            return None
        except Conflict:
            found = await self._named(observed, ref)
            if found is None:
                raise  # It went meanwhile.
        if not _is_ours(found, observed):
            return ref
        if not action.create_only:
            # A late watch, or a changed label, hid it. It is looked at again: its revision may be
            # another, and then it is changed in its turn, or not at all.
            raise Conflict(f"{ref.kind} {ref.name} is there already, and was not seen")
        return None

    async def _named(self, observed: Observed, ref: Ref) -> Object | None:
        """Metadata of what has this name, whoever made it."""
        kind = kind_of(ref.api_version, ref.kind)
        namespace = observed.document["metadata"]["namespace"]
        return await self._cluster.get(kind, namespace, ref.name, metadata_only=True)

    def _keep(self, live: Object, done: str) -> None:
        """The answer to a write is news, too: the next decision must not wait for the watch."""
        ref, namespace = Ref.of(live), live["metadata"]["namespace"]
        log.info("%s %s %s", done, ref.kind, ref.name, extra={"namespace": namespace})
        kind = kind_of(ref.api_version, ref.kind)
        if self._store.watches(kind):
            self._store.put(kind, live)

    def _keep_end(self, namespace: str, ref: Ref, uid: str, answer: Object) -> None:
        """So that it is not decided once more that it is to go."""
        log.info("deleted %s %s", ref.kind, ref.name, extra={"namespace": namespace})
        kind = kind_of(ref.api_version, ref.kind)
        if self._store.watches(kind):
            since = timestamp(self._clock())
            self._store.going(kind, (namespace, ref.name), uid, answer, since)

    async def _see_again(self, namespace: str, ref: Ref, uid: str) -> Object | None:
        """The store was wrong about this object: a watch is late, or missed something."""
        kind = kind_of(ref.api_version, ref.kind)
        live = await self._cluster.get(kind, namespace, ref.name)
        if not self._store.watches(kind):
            return live
        if live is not None:
            self._store.put(kind, live)
        if uid and (live is None or live["metadata"]["uid"] != uid):
            self._store.drop(kind, (namespace, ref.name), uid)
        return live

    async def _report(self, document: Object, status: Object) -> None:
        metadata = document["metadata"]
        wanted = {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "status": status,
        }
        try:
            live = await self._cluster.apply(wanted, metadata["uid"], subresource="status")
        except (NotFound, Conflict):
            await self._see_again(
                metadata["namespace"],
                Ref(labels.API_VERSION, labels.KIND, metadata["name"]),
                metadata["uid"],
            )
            raise
        self._store.put(DEPLOYMENTS, live)


def _is_ours(found: Object, observed: Observed) -> bool:
    controlled_by = owner(found)
    return controlled_by is not None and controlled_by[1] == observed.document["metadata"]["uid"]


def _asked(decision: Decision) -> frozenset[UnitId]:
    questions = [one for one in decision.questions if isinstance(one, PlacementQuestion)]
    return frozenset(unit.id for question in questions for unit in question.units)


def placed_sets(observed: Observed) -> dict[str, list[Object]]:
    """The StatefulSets of each unit that has any."""
    found: dict[str, list[Object]] = {}
    for ref, child in observed.children.items():
        stays = ref.kind == "StatefulSet" and "deletionTimestamp" not in child["metadata"]
        if stays and (unit := unit_by_name(ref.name, child)):
            found.setdefault(unit, []).append(child)
    return found
