"""What a deployment's status says, and what is done, where the API server does not take a write."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from tests.control.deciding.conftest import SETTINGS, SPEC

from distserve.operator.cluster import _error
from distserve.operator.decide import decide
from distserve.operator.errors import (
    ClusterError,
    Conflict,
    Refused,
    Tripped,
    Unavailable,
    WebhookDown,
)
from distserve.operator.kinds import DEPLOYMENTS, NODES, PODS, Kind
from distserve.operator.model import Features, Key, Object, Ref
from distserve.operator.placing import Placing
from distserve.operator.reconciler import Reconciler
from distserve.operator.restoring import stated
from distserve.operator.settings import QueueSettings
from distserve.operator.store import Store
from distserve.operator.worker import Worker
from distserve.operator.workqueue import WorkQueue

KEY = Key("llm", "tiny")
NOW = 1_800_000_000.0
MADE = "2026-01-02T03:04:05Z"
SERVED = frozenset(f"monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule"))
REFUSED = Refused("apply /apis/.../prometheusrules/tiny: spec.groups is invalid")
DOWN = WebhookDown('apply /apis/.../prometheusrules/tiny: failed calling webhook "rules": EOF')
LATE = Unavailable("apply /apis/.../tiny: no answer within 32 s")
RULE = Ref("monitoring.coreos.com/v1", "PrometheusRule", KEY.name)
GATEWAY = Ref("apps/v1", "Deployment", f"{KEY.name}-gateway")
SECRET = Ref("v1", "Secret", f"{KEY.name}-key")


class Api:
    """Keeps what it is sent, but for what `refuses` says."""

    def __init__(self) -> None:
        self.live: dict[Ref, Object] = {}
        self.refuses: Callable[[Object], ClusterError | None] = lambda document: None
        self.theirs: set[Ref] = set()
        """Names that objects of somebody else have."""
        self.version = 10
        self.reports = 0
        """Writes of the status."""

    async def apply(
        self,
        document: Object,
        uid: str = "",
        *,
        force: bool = True,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        ref = Ref.of(document)
        if ref in self.theirs:
            raise Refused(f"apply {ref.name}: spec.selector: field is immutable")
        if not subresource and (error := self.refuses(document)) is not None:
            raise error
        if dry_run:
            return document
        self.version += 1
        self.reports += subresource == "status"
        before = self.live.get(ref, {"metadata": {"uid": f"uid-{self.version}"}})
        metadata = before["metadata"] | document["metadata"] | {
            "resourceVersion": str(self.version), "creationTimestamp": MADE,
        }  # fmt: skip
        self.live[ref] = {**before, **document, "metadata": metadata}
        return self.live[ref]

    async def apply_new(self, document: Object) -> Object:
        if Ref.of(document) in self.theirs | self.live.keys():
            raise Conflict("there is one")
        return await self.apply(document)

    create = apply_new

    async def get(self, kind: Kind, namespace: str, name: str, **_: Any) -> Object | None:
        ref = Ref(kind.api_version, kind.kind, name)
        if ref in self.theirs:
            return {"metadata": {"namespace": namespace, "name": name, "uid": "theirs"}}
        return self.live.get(ref)


class World:
    """An operator's reconciles of one deployment, on a node that has room."""

    def __init__(self) -> None:
        self.store, self.api, self.events, self.now = Store(), Api(), AsyncMock(), NOW
        self.store.features = Features(served=SERVED)
        status = {
            "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        node = {"metadata": {"name": "a", "uid": "n", "resourceVersion": "1"}, "status": status}
        self.store.put(NODES, node)
        self.write(1, units=1)
        placing = Placing(self.store.inventory, lambda key: None, lambda: self.now, stated)
        engines, idleness, cluster = Mock(), Mock(), self.api
        engines.known.return_value, idleness.known.return_value = {}, None
        engines.ask.return_value, idleness.ask.return_value = {}, None
        self.reconciler = Reconciler(
            self.store,
            cluster,  # type: ignore[arg-type]
            lambda observed, answers: decide(observed, answers, SETTINGS),
            *(Mock(), placing, self.events, engines, idleness, Mock()),
            clock=lambda: self.now,
        )

    def write(self, generation: int, **spec: Any) -> None:
        """As a user does."""
        self.api.version += 1
        metadata = {
            "name": KEY.name, "namespace": KEY.namespace, "uid": "d", "generation": generation,
            "resourceVersion": str(self.api.version), "creationTimestamp": MADE,
        }  # fmt: skip
        document: Object = {
            "apiVersion": "distserve.io/v1alpha1", "kind": "DistServeDeployment",
            "metadata": metadata, "spec": SPEC | spec, "status": self.status,
        }  # fmt: skip
        self.api.live[Ref.of(document)] = document
        self.store.put(DEPLOYMENTS, document)

    async def settle(self) -> ClusterError | None:
        """Reconciles until nothing is written; what the last one ended with."""
        for _ in range(10):
            before, ended = self.api.version, None
            self.now += 1.0
            try:
                await self.reconciler.reconcile(KEY)
            except ClusterError as error:
                ended = error
            if self.api.version == before:
                return ended
        raise AssertionError("it writes on and on")

    def run(
        self, name: str, made_by: str, template: Object, ready: bool, phase: str = "Running"
    ) -> None:
        """A pod as the kubelet tells of it."""
        self.api.version += 1
        conditions = [{"type": kind, "status": str(ready)} for kind in ("Ready", "ContainersReady")]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": MADE}
        metadata = {
            "name": name, "namespace": KEY.namespace, "uid": f"uid-{name}",
            "resourceVersion": str(self.api.version), "creationTimestamp": MADE,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [{"kind": made_by, "name": name[:-2], "controller": True}],
        }  # fmt: skip
        status = {"phase": phase, "podIP": "10.0.0.1", "conditions": [*conditions, scheduled]}
        pod = {"metadata": metadata, "spec": template["spec"] | {"nodeName": "a"}, "status": status}
        self.store.put(PODS, pod)

    def all_run(self) -> None:
        for ref, found in self.api.live.items():
            if ref.kind in ("StatefulSet", "Deployment"):
                for ordinal in range(found["spec"]["replicas"]):
                    self.run(f"{ref.name}-{ordinal}", ref.kind, found["spec"]["template"], True)

    def named(self, kind: str) -> set[str]:
        return {ref.name for ref in self.api.live if ref.kind == kind}

    @property
    def status(self) -> Object:
        found = self.api.live.get(Ref("distserve.io/v1alpha1", "DistServeDeployment", KEY.name))
        status: Object = (found or {}).get("status") or {}
        return status

    def condition(self, name: str) -> Object:
        (found,) = (one for one in self.status["conditions"] if one["type"] == name)
        return dict(found)

    @property
    def told(self) -> set[str]:
        return {call.args[1].reason for call in self.events.tell.await_args_list}


@pytest.fixture
async def world() -> World:
    return World()


@pytest.mark.parametrize("error", [REFUSED, DOWN], ids=["refused", "webhook-down"])
async def test_what_serving_does_not_need_holds_up_nothing_else(
    world: World, error: ClusterError
) -> None:
    world.api.refuses = lambda found: error if found["kind"] == "PrometheusRule" else None
    assert await world.settle() is error
    assert len(world.named("StatefulSet")) == 2 and world.named("PodMonitor")
    assert not world.named("PrometheusRule")
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "RefusedByApiServer")
    assert accepted["message"].startswith(str(error))
    world.all_run()
    await world.settle()
    assert world.condition("Ready")["status"] == "True" and world.status["replicas"] == 1
    world.write(2, units=2)
    await world.settle()
    assert len(world.named("StatefulSet")) == 4 and world.status["observedGeneration"] == 2
    world.api.refuses = lambda found: None
    assert await world.settle() is None
    assert world.named("PrometheusRule") and world.condition("Accepted")["status"] == "True"


async def test_a_webhook_that_is_down_is_told_before_anything_is_made(world: World) -> None:
    """Of what all are asked about: the dry run ends in a condition as well."""
    world.api.refuses = lambda found: DOWN if found["kind"] == "StatefulSet" else None
    assert await world.settle() is None
    assert not world.named("StatefulSet") and not world.named("Service")
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "RefusedByApiServer" and accepted["message"] == str(DOWN)


async def test_the_status_follows_what_runs_while_a_quota_is_full(world: World) -> None:
    await world.settle()
    world.all_run()
    assert await world.settle() is None
    assert world.condition("Ready")["status"] == "True"
    full = Refused("apply statefulsets/tiny-u1-prefill-0: exceeded quota: count/statefulsets.apps")
    of_u1 = "tiny-u1-"
    world.api.refuses = lambda found: full if found["metadata"]["name"].startswith(of_u1) else None
    world.write(2, units=2)
    assert await world.settle() is full
    assert world.status["observedGeneration"] == 2
    assert "exceeded quota" in world.condition("Accepted")["message"]
    assert world.condition("Degraded")["status"] == "True"
    (decode,) = (ref for ref in world.api.live if ref.name == "tiny-u0-decode-0")
    template = world.api.live[decode]["spec"]["template"]
    world.run("tiny-u0-decode-0-0", "StatefulSet", template, ready=False)
    assert await world.settle() is full
    assert world.condition("Ready")["status"] == "False" and world.status["replicas"] == 0
    assert {"RefusedByApiServer", "NoReadyUnit"} <= world.told


async def test_what_was_only_late_is_no_news_of_the_spec(world: World) -> None:
    """A timeout, and another version: both are tried again in a moment."""
    await world.settle()
    for error in (LATE, Conflict("another version")):
        world.api.refuses = lambda found, error=error: error  # type: ignore[misc]
        world.write(2, units=2)
        assert await world.settle() is error
        assert world.condition("Accepted")["status"] == "True"


async def test_words_that_differ_each_time_are_told_once(world: World) -> None:
    """A write of the status wakes the deployment, whatever the pause after the failure is."""
    ports = itertools.count(51234)
    world.api.refuses = lambda found: (
        WebhookDown(f"{DOWN}: read tcp 10.0.0.1:{next(ports)}->10.0.0.2:443: reset by peer")
        if found["kind"] == "PrometheusRule"
        else None
    )
    await world.settle()
    told = world.condition("Accepted")["message"]
    written = world.api.reports
    for _ in range(3):
        assert await world.settle() is not None
    assert world.api.reports == written and world.condition("Accepted")["message"] == told
    said = [call.args[1] for call in world.events.tell.await_args_list]
    assert {one.of for one in said if one.reason == "ApplyRefused"} == {
        str(DOWN).partition(": ")[0]
    }
    # Others are news.
    world.api.refuses = lambda found: REFUSED if found["kind"] == "PrometheusRule" else None
    assert await world.settle() is REFUSED
    assert world.condition("Accepted")["message"].startswith(str(REFUSED))
    assert world.api.reports == written + 1


async def test_words_of_a_dry_run_that_differ_each_time_are_told_once(world: World) -> None:
    ports = itertools.count(51234)
    world.api.refuses = lambda found: (
        WebhookDown(f"{DOWN}: read tcp 10.0.0.1:{next(ports)}: reset by peer")
        if found["kind"] == "StatefulSet"
        else None
    )
    assert await world.settle() is None and world.api.reports == 1
    assert await world.settle() is None and world.api.reports == 1


async def test_words_of_any_length_are_compared_at_once(world: World) -> None:
    """A tenant's podTemplate may be all of them."""
    long = Refused(f"apply /apis/.../prometheusrules/tiny: {'x' * (1 << 20)}")
    world.api.refuses = lambda found: long if found["kind"] == "PrometheusRule" else None
    assert await world.settle() is long
    written = world.api.reports
    assert await world.settle() is long and world.api.reports == written


@pytest.mark.parametrize("reason", ["RefusedByApiServer", "NameTaken"])
async def test_what_was_told_stays_while_the_api_server_is_late(world: World, reason: str) -> None:
    if reason == "NameTaken":
        world.api.theirs = {RULE}
    else:
        world.api.refuses = lambda found: REFUSED if Ref.of(found) == RULE else None
    await world.settle()
    before = world.condition("Accepted")
    assert before["reason"] == reason
    world.api.theirs = set()
    world.api.refuses = lambda found: LATE if found["kind"] == "PrometheusRule" else None
    written = world.api.reports
    assert await world.settle() is LATE
    assert world.condition("Accepted") == before and world.api.reports == written
    world.write(2, units=2)
    assert await world.settle() is LATE
    assert world.condition("Accepted")["status"] == "True", "nothing is known of this spec yet"


async def test_a_new_deployment_says_why_nobody_knows_whether_it_would_be_taken(
    world: World,
) -> None:
    """And what was told is no news while it goes on."""
    world.api.refuses = lambda found: LATE
    assert await world.settle() is LATE
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "RefusedByApiServer")
    assert accepted["message"] == str(LATE) and world.api.reports == 1
    assert world.told == {"RefusedByApiServer"} and not world.named("Service")
    world.api.refuses = lambda found: None
    assert await world.settle() is None
    assert world.condition("Accepted")["status"] == "True" and world.named("StatefulSet")


def test_a_webhook_is_told_from_an_api_server_that_is_busy() -> None:
    said = b'{"message": "Internal error occurred: failed calling webhook \\"rules\\": EOF"}'
    assert isinstance(_error("apply", 500, {}, said), WebhookDown)
    busy = _error("apply", 500, {}, b'{"message": "etcdserver: leader changed"}')
    assert isinstance(busy, Unavailable) and not isinstance(busy, WebhookDown)


@pytest.mark.parametrize("error", [Refused("no"), Unavailable("later"), Tripped(0.0)])
async def test_what_a_deployment_waits_for_is_not_late_for_a_refusal(error: Any) -> None:
    """The pause after a failure doubles; a timer of the decision may run out before."""
    error.again_seconds = 0.0
    slow = QueueSettings(backoff_seconds=3600.0, backoff_cap_seconds=3600.0)
    queue: WorkQueue[Key] = WorkQueue(slow)
    queue.add(KEY)
    working = asyncio.create_task(Worker(queue, AsyncMock(side_effect=error), tell := Mock()).run())
    async with asyncio.timeout(10):
        while tell.call_count < 2:
            await asyncio.sleep(0)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


# ---- names that somebody else's objects have -----------------------------------------------------


async def test_a_name_that_is_taken_is_told_where_ours_cannot_be_laid_over_theirs(
    world: World,
) -> None:
    """Of that the API server says which field cannot change, and not whose the object is."""
    world.api.theirs = {GATEWAY}
    assert await world.settle() is None
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "NameTaken" and "Deployment tiny-gateway" in accepted["message"]
    assert len(world.named("StatefulSet")) == 2 and "tiny-gateway" in world.named("Service")
    world.api.theirs = set()
    assert await world.settle() is None
    assert world.condition("Accepted")["status"] == "True" and GATEWAY in world.api.live


async def test_somebody_elses_secret_never_becomes_the_key(world: World) -> None:
    """Nothing is made that would name it: what is made after the key says that this is there."""
    world.api.theirs = {SECRET}
    assert await world.settle() is None
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "NameTaken" and "Secret tiny-key" in accepted["message"]
    assert not world.named("ServiceAccount") and not world.named("StatefulSet")
    world.api.theirs = set()
    assert await world.settle() is None
    assert world.condition("Accepted")["status"] == "True"
    assert SECRET in world.api.live and len(world.named("StatefulSet")) == 2


async def test_pods_that_wait_for_somebody_elses_secret_lose_no_key(world: World) -> None:
    """Who deleted ours and made one of that name is told so, as long as a pod waits for it."""
    await world.settle()
    world.all_run()
    assert await world.settle() is None
    del world.api.live[SECRET]
    world.api.theirs = {SECRET}
    made_by = Ref("apps/v1", "StatefulSet", "tiny-u0-prefill-0")
    template = world.api.live[made_by]["spec"]["template"]
    world.run("tiny-u0-prefill-0-0", "StatefulSet", template, ready=False, phase="Pending")
    assert await world.settle() is None
    accepted = world.condition("Accepted")
    assert accepted["reason"] == "NameTaken" and "Secret tiny-key" in accepted["message"]
    assert "KeyLost" not in world.told and world.named("Secret") == set()
