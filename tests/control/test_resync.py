"""The comparison with a listing finds what watches did not tell, and watches that tell nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distserve.operator.errors import ClusterError, Refused, Unavailable
from distserve.operator.kinds import CHILDREN, DEPLOYMENTS, OPTIONAL_CHILDREN, Kind
from distserve.operator.model import Key
from distserve.operator.namespaces import kept_namespaces
from distserve.operator.resync import Resync, WatchDead
from distserve.operator.settings import WatchSettings
from distserve.operator.store import Store

KEY = Key("ns", "opt")


class Listings:
    """A cluster of which only listings are asked."""

    def __init__(self) -> None:
        self.there: dict[Kind, list[dict[str, Any]]] = {}
        self.listed: list[Kind] = []
        self.fail = 0
        self.groups: list[Any] = []
        self.closed: dict[str, ClusterError] = {}
        """Namespaces that cannot be looked into."""
        self.turned_away = 0

    async def call(self, verb: str, path: str, query: Any = None) -> Any:
        for namespace, error in self.closed.items():
            if path.startswith(f"/apis/distserve.io/v1alpha1/namespaces/{namespace}/"):
                self.turned_away += 1
                raise error
        if path == "/version":
            return {"major": "1", "minor": "34+"}
        if path == "/apis":
            return {"groups": self.groups}
        return {"resources": [{"kind": "PodMonitor"}]}

    async def list_metadata(
        self, kind: Kind, namespace: str, selector: str, chunk: int
    ) -> AsyncIterator[Any]:
        self.listed.append(kind)
        if self.fail:
            self.fail -= 1
            raise Unavailable("not now")
        for one in self.there.get(kind, []):
            yield one


def deployment(version: int = 1, uid: str = "u") -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": "opt", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}}


class World:
    def __init__(self, proof_seconds: float = 0.3) -> None:
        self.listings, self.store = Listings(), Store()
        self.woken: list[Key] = []
        settings = WatchSettings(
            proof_seconds=proof_seconds, resync_seconds=3600, discover_seconds=0.01
        )
        cluster: Any = self.listings
        self.resync = Resync(cluster, self.store, settings, (), self.woken.append, lambda: 0.5)


async def test_what_is_gone_is_dropped_and_its_deployment_decided_anew() -> None:
    world = World()
    world.store.put(DEPLOYMENTS, deployment())
    await world.resync.compare()
    assert world.store.keys == []
    assert world.woken == [KEY]


async def test_a_watch_that_shows_nothing_is_dead() -> None:
    world = World()
    world.listings.there[DEPLOYMENTS] = [deployment()]
    with pytest.raises(WatchDead, match=r"distservedeployments does not show 1 .* ns/opt"):
        await world.resync.compare()


async def test_a_watch_that_shows_only_old_versions_is_dead() -> None:
    world = World()
    world.store.put(DEPLOYMENTS, deployment(version=1))
    world.listings.there[DEPLOYMENTS] = [deployment(version=2)]
    with pytest.raises(WatchDead):
        await world.resync.compare()


async def test_a_watch_that_is_only_late_is_waited_for() -> None:
    world = World(proof_seconds=30.0)
    world.listings.there[DEPLOYMENTS] = [deployment(version=2)]
    asyncio.get_running_loop().call_later(0.1, world.store.put, DEPLOYMENTS, deployment(version=3))
    await asyncio.wait_for(world.resync.compare(), 10)
    assert world.listings.listed.count(DEPLOYMENTS) == 1


async def test_what_goes_while_it_is_waited_for_is_no_fault_of_the_watch() -> None:
    """And it is seen long before the watch would be called dead: until then nobody leads."""
    world = World(proof_seconds=90.0)
    world.listings.there[DEPLOYMENTS] = [deployment()]
    asyncio.get_running_loop().call_later(0.1, world.listings.there.clear)
    await asyncio.wait_for(world.resync.compare(), 15)


async def test_ready_is_when_all_was_seen_though_the_api_server_failed_first() -> None:
    world = World()
    world.store.put(DEPLOYMENTS, deployment())
    world.listings.there[DEPLOYMENTS] = [deployment()]
    world.listings.fail = 1
    running = asyncio.create_task(world.resync.run())
    await asyncio.wait_for(world.resync.ready.wait(), 10)
    running.cancel()
    assert world.store.keys == [KEY] and world.woken == []


async def test_kinds_that_are_installed_later_are_known_soon() -> None:
    world = World()
    world.store.put(DEPLOYMENTS, deployment())
    world.listings.there[DEPLOYMENTS] = [deployment()]
    running = asyncio.create_task(world.resync.run())
    await asyncio.wait_for(world.resync.ready.wait(), 10)
    world.listings.groups = [{"versions": [{"groupVersion": "monitoring.coreos.com/v1"}]}]
    async with asyncio.timeout(10):
        while not world.woken:
            await asyncio.sleep(0)
    running.cancel()
    assert world.store.features.served == {"monitoring.coreos.com/v1/PodMonitor"}
    assert world.woken == [KEY], "and nothing was listed for it"
    assert world.listings.listed.count(DEPLOYMENTS) == 1


async def test_kinds_that_are_not_served_are_not_listed() -> None:
    world = World()
    await world.resync.compare()
    assert not set(OPTIONAL_CHILDREN) & set(world.listings.listed)
    assert set(CHILDREN) <= set(world.listings.listed)
    assert world.store.features.kubernetes == (1, 34)
    world.listings.groups = [{"versions": [{"groupVersion": "monitoring.coreos.com/v1"}]}]
    await world.resync.compare()
    assert world.store.features.served == {"monitoring.coreos.com/v1/PodMonitor"}
    assert OPTIONAL_CHILDREN[0] in world.listings.listed
    assert OPTIONAL_CHILDREN[1] not in world.listings.listed


NO = Refused("distservedeployments.distserve.io is forbidden")


@pytest.mark.parametrize(
    ("closed", "kept"),
    [
        ({"chat": NO}, ("llm", "ops")),
        ({"chat": Unavailable("later")}, ("llm", "chat", "ops")),
        (dict.fromkeys(("llm", "chat", "ops"), NO), ("llm", "chat", "ops")),
    ],
    ids=["its-role-is-gone", "nobody-knows", "no-fault-of-one-namespace"],
)
async def test_a_namespace_that_may_not_be_looked_into_is_left_out(
    closed: dict[str, ClusterError], kept: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    listings: Any = Listings()
    listings.closed = closed
    assert await kept_namespaces(listings, ("llm", "chat", "ops")) == kept
    assert ("namespace chat is left out" in caplog.text) == ("chat" not in kept)


async def test_a_namespace_that_was_left_out_is_taken_up_by_a_restart() -> None:
    world = World()
    world.resync.left_out = ("chat",)
    running = asyncio.create_task(world.resync.run())
    for error in (NO, Unavailable("later")):
        world.listings.closed["chat"] = error
        before = world.listings.turned_away
        async with asyncio.timeout(10):
            while world.listings.turned_away < before + 2 and not running.done():
                await asyncio.sleep(0)
        assert not running.done()
    del world.listings.closed["chat"]
    with pytest.raises(WatchDead, match="namespace chat may be looked into now"):
        await asyncio.wait_for(running, 10)
