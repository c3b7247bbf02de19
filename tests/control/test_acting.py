"""What the reconciler makes of the API server's answers to its writes."""

from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from distserve.operator.errors import Conflict, Tripped
from distserve.operator.idle import Idle, IdleQuestion
from distserve.operator.kinds import DEPLOYMENTS, PODS, kind_of
from distserve.operator.model import (
    Answers,
    Decision,
    Delete,
    Event,
    Features,
    Key,
    Observed,
    Ref,
)
from distserve.operator.reconciler import Reconciler
from distserve.operator.store import Store
from distserve.operator.waits import Waits
from distserve.operator.writes import deletion

KEY = Key("ns", "opt")
DOCUMENT = {"metadata": {"name": "opt", "namespace": "ns", "uid": "d"}}
POD = Ref("v1", "Pod", "opt-u0-decode-0-0")
TOLD = Event("Warning", "NodeLost", "node one is out of service")
DECISION = Decision(actions=(Delete(POD, "old", 0),), events=(TOLD,))


def world(uid_now: str | None) -> tuple[Reconciler, Any]:
    """A pod that is to go, and cannot be deleted by the uid that it was seen with."""
    live = None if uid_now is None else {"metadata": {"uid": uid_now}}
    store, placing, events = Mock(), Mock(), AsyncMock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    cluster = AsyncMock()
    cluster.delete.side_effect = Conflict("the UID in the precondition is another")
    cluster.get.return_value = live
    made = Reconciler(store, cluster, lambda *_: DECISION, Mock(), placing, events, *[Mock()] * 3)
    return made, events


@pytest.mark.parametrize("uid_now", ["new", None])
async def test_what_somebody_else_deleted_first_is_told_all_the_same(uid_now: str | None) -> None:
    """On a node out of service the control plane deletes pods, too."""
    reconciler, events = world(uid_now)
    await reconciler.reconcile(KEY)
    events.tell.assert_awaited_once_with(DOCUMENT, TOLD)


async def test_what_is_still_there_is_tried_again() -> None:
    reconciler, events = world("old")
    with pytest.raises(Conflict):
        await reconciler.reconcile(KEY)
    events.tell.assert_not_awaited()


async def test_a_fault_is_raised_when_the_rest_is_done() -> None:
    """So the worker counts it, and tells where it happened."""
    store, placing, events, cluster = Mock(), Mock(), AsyncMock(), AsyncMock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    status = {"conditions": [{"type": "Accepted", "reason": "OperatorFault"}]}
    fault = KeyError("missing")
    decision = Decision(
        actions=(Delete(POD, "old", 0),),
        status=status,
        events=(TOLD,),
        again_seconds=30.0,
        fault=fault,
    )
    parts = (store, cluster, lambda *_: decision, Mock(), placing, events, *[Mock()] * 3)
    with pytest.raises(Tripped) as raised:
        await Reconciler(*parts).reconcile(KEY)
    assert raised.value.__cause__ is fault and raised.value.again_seconds == 30.0
    cluster.delete.assert_awaited_once()
    assert cluster.apply.await_args.args[0]["status"] == status
    events.tell.assert_awaited_once_with(DOCUMENT, TOLD)


async def test_units_are_asked_whether_they_are_idle_as_long_as_that_counts() -> None:
    idleness, store, placing, engines = Mock(), Mock(), Mock(), Mock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    idleness.known.return_value = None
    idleness.ask.return_value = Idle("u0", 300.0)
    question = IdleQuestion("opt-key", {}, 300.0)
    seen: list[Idle | None] = []

    def decide(_: Observed, answers: Answers) -> Decision:
        seen.append(answers.idle)
        return Decision(questions=(question,))

    parts = (store, AsyncMock(), decide, Mock(), placing, AsyncMock(), engines, idleness, Mock())
    await Reconciler(*parts).reconcile(KEY)
    assert seen == [None, Idle("u0", 300.0)]
    idleness.ask.assert_called_with(KEY, question)
    idleness.release.assert_not_called()
    parts = (*parts[:2], lambda *_: Decision(), *parts[3:])
    await Reconciler(*parts).reconcile(KEY)
    idleness.release.assert_called_once_with(KEY)


async def test_of_what_goes_only_pods_of_lost_nodes_are_ended() -> None:
    """Nothing else ends them, and a deletion in the foreground waits for their end."""
    store, placing, cluster = Mock(), Mock(), AsyncMock()
    going = {"metadata": {**DOCUMENT["metadata"], "deletionTimestamp": "2026-01-02T03:04:05Z"}}
    store.observe.return_value = Observed(going, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    parts = (store, cluster, lambda *_: DECISION, Mock(), placing, AsyncMock(), *[Mock()] * 3)
    await Reconciler(*parts).reconcile(KEY)
    cluster.delete.assert_awaited_once_with("ns", POD, "old", 0)
    placing.settle.assert_not_called()
    placing.release.assert_called_once_with(KEY)


# ---- what goes, until the watches show it -------------------------------------------------------


async def test_it_tells_which_units_wait_until_the_deployment_goes() -> None:
    waits, store, placing = Waits(lambda seconds: None), Mock(), Mock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    decide = Mock(return_value=Decision(whole={"u0": False}))
    parts = (store, AsyncMock(), decide, Mock(), placing, AsyncMock(), Mock(), Mock(), waits)
    reconciler = Reconciler(*parts)
    await reconciler.reconcile(KEY)
    assert waits.counts() == {("ns/opt",): 1}
    store.observe.return_value = None
    await reconciler.reconcile(KEY)
    assert waits.counts() == {}


async def test_it_tells_of_units_that_get_ready_while_the_spec_is_refused() -> None:
    told: list[float] = []
    waits, store, placing = Waits(told.append), Mock(), Mock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    decide = Mock(return_value=Decision(whole={"u0": False, "u1": False}))
    parts = (store, AsyncMock(), decide, Mock(), placing, AsyncMock(), Mock(), Mock(), waits)
    reconciler = Reconciler(*parts)
    await reconciler.reconcile(KEY)
    decide.return_value = Decision(standing={"u0": True})
    await reconciler.reconcile(KEY)
    assert waits.counts() == {("ns/opt",): 1}, "the other one was never made"
    assert len(told) == 1


SET = Ref("apps/v1", "StatefulSet", "opt-u0-decode-0")
SETS = kind_of(SET.api_version, SET.kind)
GONE = {"kind": "Status", "status": "Success", "details": {"name": SET.name, "uid": "s1"}}


def made(ref: Ref, uid: str, version: int, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {
            "namespace": "ns", "name": ref.name, "uid": uid, "resourceVersion": str(version),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {
                "app.kubernetes.io/managed-by": "distserve-operator",
                "distserve.io/deployment": "opt", "distserve.io/unit": "u0",
            },
            "ownerReferences": [
                {"apiVersion": "distserve.io/v1alpha1", "kind": "DistServeDeployment",
                 "name": "opt", "uid": "d", "controller": True}
            ],
            **metadata,
        },
        "spec": {"containers": []} if ref.kind == "Pod" else {},
        "status": {},
    }  # fmt: skip


class Ends:
    """A store as the watches filled it, and an API server that answers one Delete."""

    def __init__(self, ref: Ref, answer: dict[str, Any]) -> None:
        self.ref, self.kind = ref, kind_of(ref.api_version, ref.kind)
        self.store = Store()
        self.store.put(DEPLOYMENTS, made(Ref("distserve.io/v1alpha1", "", "opt"), "d", 1) | {
            "spec": {}
        })  # fmt: skip
        self.store.put(self.kind, made(ref, "s1", 5))
        self.cluster = AsyncMock()
        self.cluster.delete.return_value = answer
        self.deciding = Mock(return_value=Decision(actions=(Delete(ref, "s1"),)))
        placing = Mock()
        placing.gathers.return_value = False
        idleness = Mock()
        idleness.known.return_value = None
        engines = Mock()
        engines.known.return_value = {}
        self.reconciler = Reconciler(
            *(self.store, self.cluster, self.deciding, Mock(), placing, AsyncMock()),
            *(engines, idleness, Mock()),
        )

    async def act(self) -> None:
        await self.reconciler.reconcile(KEY)

    @property
    def observed(self) -> Observed:
        found = self.store.observe(KEY, 0.0)
        assert found is not None
        return found


async def test_what_went_at_once_is_not_deleted_again_before_the_watch_shows_it() -> None:
    world = Ends(SET, GONE)
    (before,) = world.observed.children.values()
    assert deletion(SET, before)
    await world.act()
    (live,) = world.observed.children.values()
    assert live == before | {"metadata": before["metadata"] | {
        "deletionTimestamp": live["metadata"]["deletionTimestamp"]
    }}  # fmt: skip
    assert not deletion(SET, live)
    assert world.store.drop(SETS, ("ns", SET.name), "s1") == {KEY}, "its end wakes the deployment"
    assert not world.observed.children


async def test_a_pod_that_ends_is_known_to_end() -> None:
    answer = made(POD, "s1", 6, deletionTimestamp="2026-01-02T03:05:05Z")
    world = Ends(POD, answer)
    await world.act()
    (pod,) = world.observed.pods
    assert pod.terminating
    assert world.store.drop(PODS, ("ns", POD.name), "s1") == {KEY}


@pytest.mark.parametrize("ref", [SET, POD])
@pytest.mark.parametrize("successor", [False, True])
async def test_an_answer_that_comes_after_the_watch_brings_nothing_back(
    ref: Ref, successor: bool
) -> None:
    answer = GONE if ref == SET else made(ref, "s1", 6, deletionTimestamp="2026-01-02T03:05:05Z")
    world = Ends(ref, answer)

    async def delete(*_: Any) -> Any:
        world.store.drop(world.kind, ("ns", ref.name), "s1")
        if successor:
            world.store.put(world.kind, made(ref, "s2", 5))
        return answer

    world.cluster.delete.side_effect = delete
    await world.act()
    assert world.store.seen(world.kind).keys() == ({("ns", ref.name)} if successor else set())
    for one in world.observed.children.values():
        assert one["metadata"]["uid"] == "s2" and "deletionTimestamp" not in one["metadata"]
    for pod in world.observed.pods:
        assert pod.uid == "s2" and not pod.terminating


async def test_an_answer_is_older_than_what_the_watch_showed_meanwhile() -> None:
    """As all answers: newer news of the same object stay."""
    ends = "2026-01-02T03:05:05Z"
    world = Ends(SET, made(SET, "s1", 6, deletionTimestamp=ends, finalizers=["example.com/a"]))

    async def delete(*_: Any) -> Any:
        newer = made(SET, "s1", 7, deletionTimestamp=ends)
        world.store.put(SETS, newer)
        return made(SET, "s1", 6, deletionTimestamp=ends, finalizers=["example.com/a"])

    world.cluster.delete.side_effect = delete
    await world.act()
    (live,) = world.observed.children.values()
    assert "finalizers" not in live["metadata"]
