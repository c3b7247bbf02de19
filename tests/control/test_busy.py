"""A pass over all that waits takes seconds in a large cluster: the one that decides it leads on."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from distserve.operator.apart import apart
from distserve.operator.cluster import Cluster
from distserve.operator.errors import Conflict, LeaseLost
from distserve.operator.kinds import DEPLOYMENTS, LEASES, NODES
from distserve.operator.metrics import Metrics
from distserve.operator.model import Answers, Decision, Key, Object, Observed, PlacementQuestion
from distserve.operator.process import Operator
from distserve.operator.restoring import stated
from distserve.operator.settings import CallSettings, LeaseSettings, Settings
from distserve.placement.placing import place
from distserve.placement.requests import InstanceRequest, UnitId, UnitRequest

DEADLINE_SECONDS = 1.5
SETTINGS = Settings(
    lease=LeaseSettings(
        duration_seconds=2, renew_deadline_seconds=DEADLINE_SECONDS, renew_seconds=0.1
    )
)
KEY = Key("ns", "opt")
DOCUMENT: Object = {
    "apiVersion": "distserve.io/v1alpha1",
    "kind": "DistServeDeployment",
    "metadata": {"name": "opt", "namespace": "ns", "uid": "d", "resourceVersion": "1"},
    "spec": {},
}
UNIT = UnitRequest(UnitId(*KEY, "u0"), (InstanceRequest("opt-u0-decode-0", 1, {}),), 0.0)


class Api:
    """One Lease, from any thread, and the deployment's status."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.renewals = 0
        self.closed = 0
        self.statuses: list[Object] = []
        self.may_write: Callable[[], bool] = lambda: False
        self.deployment_key = None

    def another(self) -> "Api":
        return self

    async def close(self) -> None:
        self.closed += 1

    async def get(self, kind: Any, *_: Any, **__: Any) -> Any:
        return self.lease if kind == LEASES else None

    async def call(self, verb: str, path: str, *, body: Object, seconds: float) -> Object:
        if verb == "update" and body["metadata"]["resourceVersion"] != str(self.renewals):
            raise Conflict("another version is there")
        self.renewals += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.renewals)}
        self.lease = {**body, "metadata": metadata}
        return dict(self.lease)

    async def apply(self, document: Object, uid: str = "", **_: Any) -> Object:
        if not self.may_write():
            raise LeaseLost("this replica does not hold the lease")
        self.statuses.append(document["status"])
        return {**DOCUMENT, "status": document["status"]}


def decide(observed: Observed, answers: Answers) -> Decision:
    placed = {"url": "placed"} if answers.placements else None
    return Decision(questions=(PlacementQuestion((UNIT,)),), status=placed)


async def test_a_pass_that_takes_longer_than_the_lease_lasts_does_not_cost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pass holds the loop on purpose: it is one consistent look at the inventory. What must not
    wait for it is the renewal alone."""
    api: Any = Api()
    operator = Operator(SETTINGS, decide, stated, api, Metrics())
    status = {"allocatable": {"pods": "9"}, "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": "a", "uid": "n", "resourceVersion": "1"}
    operator.store.put(NODES, {"metadata": metadata, "status": status})
    operator.store.put(DEPLOYMENTS, DOCUMENT)
    operator.resync.ready.set()

    def long(inventory: Any, waiting: Sequence[UnitRequest], now: float) -> Any:
        renewals, began = api.renewals, time.monotonic()
        while api.renewals < renewals + 3 or time.monotonic() < began + 2 * DEADLINE_SECONDS:
            if time.monotonic() > began + 20 * DEADLINE_SECONDS:
                break  # Nobody renews.
        return place(inventory, waiting, now)

    monkeypatch.setattr("distserve.operator.placing.place", long)
    leading = asyncio.create_task(operator.lead())
    async with asyncio.timeout(60):
        while not api.statuses and not leading.done():
            await asyncio.sleep(0.01)
    assert not leading.done(), leading.exception()
    assert api.statuses[0] == {"url": "placed"} and operator.lease.held
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert api.closed == 1, "the client of the other loop"
    await operator.lease.release()
    assert api.lease["spec"]["holderIdentity"] == "", "it is given back at once"


async def test_what_runs_apart_ends_with_its_error_and_with_its_thread() -> None:
    threads = list[threading.Thread]()

    async def fails() -> None:
        threads.append(threading.current_thread())
        raise LeaseLost("another replica took it")

    with pytest.raises(LeaseLost, match="another replica"):
        await apart(fails, "fails")
    assert threads[0] is not threading.current_thread() and not threads[0].is_alive()


async def test_what_runs_apart_is_cancelled_to_its_end() -> None:
    begun, closed = threading.Event(), list[str]()

    async def waits() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    running = asyncio.create_task(apart(waits, "waits"))
    assert await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)
    assert closed == ["closed"]


async def test_a_client_of_another_loop_counts_as_the_first() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"minor": "35"})

    app = web.Application()
    app.router.add_get("/version", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    counted, found = list[tuple[str, str]](), list[Object]()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    first = Cluster(configuration, CallSettings(), lambda *call: counted.append(call))

    async def ask() -> None:
        client = first.another()
        found.append(await client.call("get", "/version"))
        await client.close()

    await apart(ask, "asks")
    found.append(await first.call("get", "/version"))
    assert found == [{"minor": "35"}] * 2 and counted == [("get", "200")] * 2
    await first.close()
    await runner.cleanup()
