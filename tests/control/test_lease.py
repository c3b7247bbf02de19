"""One holder at a time, whatever the API server does: with a clock that the tests move."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distserve.operator.errors import Conflict, LeaseLost, Unavailable
from distserve.operator.lease import Lease
from distserve.operator.settings import LeaseSettings

SETTINGS = {"duration_seconds": 10, "renew_deadline_seconds": 7.0, "renew_seconds": 0.01}


class Leases:
    """The one Lease of an API server, with optimistic concurrency."""

    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.away = False
        self.changed = asyncio.Event()

    async def get(self, *_: Any) -> Any:
        self._answer()
        return self.live

    async def call(self, verb: str, path: str, *, body: Any, seconds: float) -> Any:
        self._answer()
        if verb == "create" and self.live is not None:
            raise Conflict("it is there")
        if verb == "update":
            assert self.live is not None
            if body["metadata"]["resourceVersion"] != self.live["metadata"]["resourceVersion"]:
                raise Conflict("another version is there")
        return self.put(body)

    def put(self, body: Any) -> Any:
        version = int(self.live["metadata"]["resourceVersion"]) + 1 if self.live else 1
        metadata = {**body["metadata"], "resourceVersion": str(version)}
        self.live = {**body, "metadata": metadata}
        self.changed.set()
        self.changed = asyncio.Event()
        return self.live

    async def watch_lines(self, *_: Any) -> AsyncIterator[Any]:
        while True:
            await self.changed.wait()
            yield {"type": "MODIFIED", "object": self.live}

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("no answer")


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.api = Leases()

    def replica(self, identity: str) -> Lease:
        settings = LeaseSettings(identity=identity, **SETTINGS)  # type: ignore[arg-type]
        cluster: Any = self.api
        return Lease(cluster, settings, lambda: self.now)


@pytest.fixture
async def world() -> World:
    return World()


def client(world: World) -> Any:
    return world.api


async def acquired(lease: Lease) -> Lease:
    await asyncio.wait_for(lease.acquire(), 5)
    return lease


async def still_waits(task: "asyncio.Task[Any]") -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


async def would_wait(lease: Lease) -> bool:
    task = asyncio.create_task(lease.acquire())
    waits = await still_waits(task)
    task.cancel()
    return waits


async def test_the_first_gets_it_and_the_second_waits(world: World) -> None:
    first, second = await acquired(world.replica("a")), world.replica("b")
    waiting = asyncio.create_task(second.acquire())
    assert await still_waits(waiting)
    assert first.held and not second.held
    waiting.cancel()


async def test_what_is_given_back_is_taken_at_once(world: World) -> None:
    first, second = await acquired(world.replica("a")), world.replica("b")
    waiting = asyncio.create_task(second.acquire())
    assert await still_waits(waiting)
    await first.release()
    assert not first.held, "not for a moment two"
    await asyncio.wait_for(waiting, 5)
    assert second.held


async def test_it_is_given_back_also_amid_a_renewal(world: World) -> None:
    first, second = await acquired(world.replica("a")), world.replica("b")
    waits = asyncio.create_task(second.acquire())
    assert await still_waits(waits)
    assert world.api.live is not None
    world.api.put(world.api.live)  # It got through, and nobody was told.
    await first.release()
    await asyncio.wait_for(waits, 5)
    assert second.held
    await first.release()
    assert second.held, "nothing is given back twice"


async def test_what_another_took_is_not_given_back(world: World) -> None:
    first = await acquired(world.replica("a"))
    assert world.api.live is not None
    spec = {**world.api.live["spec"], "holderIdentity": "b"}
    world.api.put({**world.api.live, "spec": spec})
    await first.release()
    assert world.api.live["spec"]["holderIdentity"] == "b"


async def test_a_silent_holder_has_stopped_before_another_begins(world: World) -> None:
    first, second = await acquired(world.replica("a")), world.replica("b")
    assert await would_wait(second)
    world.now += SETTINGS["renew_deadline_seconds"]
    assert not first.held
    assert await would_wait(second)
    world.now += SETTINGS["duration_seconds"] - SETTINGS["renew_deadline_seconds"]
    await acquired(second)
    assert second.held


async def test_a_holder_that_cannot_renew_ends_in_time(world: World) -> None:
    lease = await acquired(world.replica("a"))
    world.api.away = True
    keeping = asyncio.create_task(lease.keep(client(world)))
    assert await still_waits(keeping)
    world.now += SETTINGS["renew_deadline_seconds"]
    with pytest.raises(LeaseLost, match="not renewed for 7 s"):
        await asyncio.wait_for(keeping, 5)


async def test_a_holder_whose_lease_was_taken_ends(world: World) -> None:
    lease = await acquired(world.replica("a"))
    live = world.api.live
    assert live is not None
    world.api.put({**live, "spec": {**live["spec"], "holderIdentity": "b"}})
    with pytest.raises(LeaseLost, match="another replica"):
        await asyncio.wait_for(lease.keep(client(world)), 5)
    assert not lease.held


async def test_a_renewal_whose_answer_was_lost_is_no_loss(world: World) -> None:
    lease = await acquired(world.replica("a"))
    live = world.api.live
    assert live is not None
    world.api.put(live)  # Ours, but newer than the last answer.
    keeping = asyncio.create_task(lease.keep(client(world)))
    done, _ = await asyncio.wait([keeping], timeout=0.2)
    assert not done and lease.held
    keeping.cancel()


@pytest.mark.parametrize("hangs", [True, False])
async def test_it_is_let_go_where_what_decides_hangs_and_not_while_it_is_busy(
    world: World, hangs: bool
) -> None:
    """It is renewed on another loop than that one, which gives signs of life."""
    lease = await acquired(world.replica("a"))
    keeping = asyncio.create_task(lease.keep(client(world)))
    living = asyncio.create_task(asyncio.Event().wait() if hangs else lease.live())
    for _ in range(12):
        assert world.api.live is not None
        before = world.api.live["metadata"]["resourceVersion"]
        world.now += 6.0
        async with asyncio.timeout(10):
            while world.api.live["metadata"]["resourceVersion"] == before and not keeping.done():
                await asyncio.sleep(0.001)
    if hangs:
        with pytest.raises(LeaseLost, match="has hung for 60 s"):
            await asyncio.wait_for(keeping, 5)
    assert lease.held != hangs
    keeping.cancel()
    living.cancel()


async def test_of_two_that_see_it_free_one_gets_it(world: World) -> None:
    replicas = [world.replica(name) for name in "abc"]
    tasks = [asyncio.create_task(one.acquire()) for one in replicas]
    await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        await still_waits(task)
    assert [one.held for one in replicas].count(True) == 1
    for task in tasks:
        task.cancel()
