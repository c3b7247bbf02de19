"""Wherever a reconcile is cut off, the next ones end where it would have: on a real API server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools.cluster.cluster import Cluster

from distserve.operator.cluster import Cluster as Client
from distserve.operator.cluster import Verb
from distserve.operator.errors import ClusterError, Conflict, Refused, Unavailable
from distserve.operator.model import Object
from distserve.operator.process import run
from distserve.operator.settings import LeaseSettings, QueueSettings, Settings, WatchSettings

Sample = Callable[..., dict[str, Any]]
UNITS = "test/units"
LAST_WRITE = 6
"""More than the longest reconcile makes: three ServiceAccounts, the status, an event."""


class Fault(NamedTuple):
    write: int
    """The how manieth from now fails."""
    error: ClusterError
    done: bool
    """Whether it came through, and only its answer did not."""


class FaultyClient(Client):
    """Fails one write when it is told to."""

    fault: Fault | None = None

    async def write(
        self,
        verb: Verb,
        path: str,
        body: Object,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        fault, strikes = self.fault, False
        if fault is not None:
            strikes = fault.write == 1
            self.fault = None if strikes else fault._replace(write=fault.write - 1)
        if fault is not None and strikes and not fault.done:
            raise fault.error
        live = await super().write(verb, path, body, query=query, content_type=content_type)
        if fault is not None and strikes:
            raise fault.error
        return live


@pytest.fixture
async def client(
    crd: Cluster, namespace: str, decide: Any, free_ports: Callable[[int], list[int]]
) -> AsyncIterator[FaultyClient]:
    """The client of an operator that runs in this process."""
    clients: list[FaultyClient] = []

    def make(*args: Any) -> FaultyClient:
        clients.append(FaultyClient(*args))
        return clients[0]

    health, metrics = free_ports(2)
    settings = Settings(
        kubeconfig=Path(crd.kubeconfig),
        host="127.0.0.1",
        health_port=health,
        metrics_port=metrics,
        namespaces=(namespace,),
        lease=LeaseSettings(namespace=namespace),
        queue=QueueSettings(backoff_seconds=0.02, backoff_cap_seconds=0.2),
        watch=WatchSettings(),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(run(settings, decide, _no_statefulsets, stop, make))
    while not clients:
        await asyncio.sleep(0.01)
    yield clients[0]
    stop.set()
    await asyncio.wait_for(running, 20)


def _no_statefulsets(*_: Any) -> Any:
    raise AssertionError("these deployments have no StatefulSets")


async def expect(cluster: Cluster, namespace: str, name: str, wanted: dict[str, str]) -> None:
    """Waits for just these ServiceAccounts and a status that counts them."""
    found: Any = None
    for _ in range(200):
        seen = await asyncio.to_thread(
            cluster.get, "sa,dsd", "", namespace, selector=f"distserve.io/deployment={name}"
        )
        found = {
            one["metadata"]["name"]: one["metadata"]["annotations"][UNITS]
            for one in seen["items"]
            if one["kind"] == "ServiceAccount"
        }
        counts = [
            (one.get("status") or {}).get("replicas", 0)
            for one in seen["items"]
            if one["kind"] != "ServiceAccount"
        ]
        if found == wanted and counts == [len(wanted)]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name}: {found} instead of {wanted}")


ERRORS: list[ClusterError] = [
    Unavailable("429: busy", 0.1),
    Unavailable("500: no leader"),
    Conflict("409: changed meanwhile"),
    Refused("403: not now"),
]


@pytest.mark.parametrize("done", [False, True], ids=["before-the-write", "after-the-write"])
async def test_a_cut_after_any_write_of_create_edit_and_prune_heals(
    crd: Cluster, namespace: str, sample: Sample, client: FaultyClient, done: bool
) -> None:
    errors = itertools.cycle(ERRORS)
    for write in range(1, LAST_WRITE + 1):
        name = f"opt{write}"
        for units, wanted in (
            (1, {f"{name}-{number}": "1" for number in range(3)}),
            (2, {f"{name}-{number}": "2" for number in range(3)}),
            (0, {f"{name}-0": "0"}),
        ):
            client.fault = Fault(write, next(errors), done)
            document = sample(name, units=units)
            document["metadata"]["labels"] = {"distserve.io/deployment": name}
            await asyncio.to_thread(crd.apply, document, namespace)
            await expect(crd, namespace, name, wanted)
            assert write > 3 or client.fault is None, "the fault was met"
