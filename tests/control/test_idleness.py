"""How the operator finds idle units: whom it asks, how often, and what it makes of no answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from distserve.operator.asking import Asking, Instance, NotAnswered, Where, WrongKey
from distserve.operator.idle import Idle, IdleQuestion
from distserve.operator.idleness import Idleness, IdleSettings
from distserve.operator.model import Key
from distserve.operator.pairs import Member
from distserve.wire.auth import has_key

KEY = Key("llm", "tiny")
AT_ONCE = IdleSettings(pause_seconds=0.0)


def member(pod: str, uid: str = "") -> Member:
    return Member(pod, uid or f"uid-{pod}", "10.0.0.1", "node-a")


def question(*units: str, after: float = 300.0, **more: tuple[Member, ...]) -> IdleQuestion:
    both = {unit: (member(f"{unit}-p"), member(f"{unit}-d")) for unit in units}
    return IdleQuestion("tiny-key", both | more, after)


class Fleet:
    """Engines as the operator hears them; those without a figure do not answer."""

    def __init__(self, **idle: float | None) -> None:
        self.idle: dict[str, float | None] = {k.replace("_", "-"): v for k, v in idle.items()}
        self.asked: list[str] = []
        self.key = b"k" * 32
        self.woken: asyncio.Queue[Key] = asyncio.Queue()
        self.now = 1000.0

    async def read_key(self, namespace: str, secret: str) -> bytes:
        assert (namespace, secret) == ("llm", "tiny-key")
        return self.key

    async def instance(self, member: Member, key: bytes) -> Instance:
        self.asked.append(member.pod)
        if key != self.key:
            raise WrongKey("it has another key")
        if member.pod not in self.idle:
            raise NotAnswered("no answer")
        return Instance(fingerprint="f", idle_seconds=self.idle[member.pod])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0)


@pytest.fixture
async def start() -> AsyncIterator[Callable[[Fleet], Idleness]]:
    made: list[Idleness] = []

    def begin(fleet: Fleet, settings: IdleSettings = AT_ONCE) -> Idleness:
        made.append(
            Idleness(
                fleet, fleet.read_key, fleet.woken.put_nowait, settings, clock=lambda: fleet.now
            )
        )
        return made[-1]

    yield begin
    for one in made:
        one.release(KEY)


async def test_a_unit_is_idle_when_all_of_its_engines_are(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=299.9, u1_p=340.0, u1_d=320.0)
    idleness = start(fleet)
    asked = question("u0", "u1")
    assert idleness.ask(KEY, asked) is None, "a reconcile never waits for it"
    async with asyncio.timeout(20):
        assert await fleet.woken.get() == KEY
    assert idleness.ask(KEY, asked) == idleness.known(KEY) == Idle("u1", 320.0)
    fleet.now += AT_ONCE.holds_seconds + 1
    assert idleness.ask(KEY, asked) is None, "a request may have come since"


@pytest.mark.parametrize("told", [{"u0_p": 900.0}, {"u0_p": 900.0, "u0_d": None}])
async def test_what_is_not_known_is_not_idle(start: Any, told: Mapping[str, Any]) -> None:
    """An engine that does not answer, and one of a version that does not tell."""
    fleet = Fleet(**told)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    await fleet.until(lambda: len(fleet.asked) == 2)
    fleet.idle["u0-d"] = 900.0
    assert idleness.ask(KEY, question("u0")) is None
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(fleet.asked) == 2, "not asked again at once"
    fleet.now += 301
    idleness.ask(KEY, question("u0", "u1"))
    await fleet.until(lambda: idleness.known(KEY) == Idle("u0", 900.0))


async def test_a_busy_unit_is_asked_again_when_it_could_be_idle(start: Any) -> None:
    fleet = Fleet(u0_p=0.0, u0_d=299.99)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    await fleet.until(lambda: len(fleet.asked) == 2)
    (followed,) = idleness._followed.values()
    await fleet.until(lambda: bool(followed.due))
    assert followed.due == {"u0": 1300.0}
    fleet.idle["u0-p"] = 250.0
    fleet.now = 1300.0
    idleness.ask(KEY, question("u0", "u1"))  # Any change has it look at the clock.
    await fleet.until(lambda: followed.due.get("u0") == 1350.0)


@pytest.mark.parametrize(("idle", "again"), [(300.0, 300.0), (900.0, 900.0), (1e6, 3600.0)])
async def test_the_longer_a_unit_is_idle_the_rarer_it_is_looked_at(
    start: Any, idle: float, again: float
) -> None:
    """Each look costs a search for a better place; after an hour there may be one again."""
    fleet = Fleet(u0_p=idle, u0_d=2 * idle)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    (followed,) = idleness._followed.values()
    await fleet.until(lambda: bool(followed.due))
    assert followed.due == {"u0": fleet.now + again}


async def test_one_unit_is_asked_about_at_a_time(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=900.0, u1_p=900.0, u1_d=900.0)
    idleness = start(fleet, IdleSettings(pause_seconds=3600.0))
    idleness.ask(KEY, question("u0", "u1"))
    async with asyncio.timeout(20):
        await fleet.woken.get()
    for _ in range(50):
        await asyncio.sleep(0)
    assert fleet.asked == ["u0-p", "u0-d"]


async def test_a_pod_that_is_new_is_asked_at_once_and_the_old_answer_is_void(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=900.0)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    async with asyncio.timeout(20):
        await fleet.woken.get()
    assert idleness.known(KEY) is not None
    fleet.idle["u0-p"] = 3.0
    renewed = question(u0=(member("u0-p", "another"), member("u0-d")))
    assert idleness.ask(KEY, renewed) is None
    await fleet.until(lambda: len(fleet.asked) == 4)
    assert idleness.known(KEY) is None


async def test_who_is_not_asked_about_any_more_is_left_alone(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=900.0)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    idleness.release(KEY)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not fleet.asked and idleness.known(KEY) is None
    idleness.release(KEY)


async def test_what_was_begun_ends_with_the_leading(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=900.0)
    idleness = start(fleet)
    leading = asyncio.create_task(idleness.run())
    await asyncio.sleep(0)
    idleness.ask(KEY, question("u0"))
    (followed,) = idleness._followed.values()
    leading.cancel()
    await asyncio.wait([leading, followed.task])
    assert followed.task.cancelled() and not idleness._followed


async def test_a_key_that_was_made_anew_is_read_anew(start: Any) -> None:
    fleet = Fleet(u0_p=900.0, u0_d=900.0, u1_p=900.0, u1_d=900.0)
    idleness = start(fleet)
    idleness.ask(KEY, question("u0"))
    await fleet.until(lambda: idleness.known(KEY) == Idle("u0", 900.0))
    fleet.key = b"n" * 32
    fleet.asked.clear()
    idleness.ask(KEY, question("u1"))
    await fleet.until(lambda: len(fleet.asked) == 2)
    fleet.now += 301
    idleness.ask(KEY, question("u0", "u1"))
    await fleet.until(lambda: idleness.known(KEY) is not None)


async def test_engines_that_really_answer(start: Any) -> None:
    """Over HTTP, with the deployment's key; the one that restarted knows of no request."""
    key, idle = b"k" * 32, {"/p": 4000.5, "/d": 400.25}

    async def instance(request: web.Request) -> web.Response:
        if not has_key(request.headers.get("Authorization"), key):
            raise web.HTTPUnauthorized
        where = request.path.removesuffix("/instance")
        return web.json_response({"fingerprint": "f", "idle_seconds": idle[where], "more": 1})

    app = web.Application()
    app.router.add_get("/p/instance", instance)
    app.router.add_get("/d/instance", instance)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    asking = Asking(lambda one: Where(f"http://127.0.0.1:{port}/{one.pod[-1]}", ""))
    woken: asyncio.Queue[Key] = asyncio.Queue()

    async def read_key(namespace: str, secret: str) -> bytes:
        return key

    idleness = Idleness(asking, read_key, woken.put_nowait, AT_ONCE)
    try:
        idleness.ask(KEY, question("u0"))
        async with asyncio.timeout(20):
            assert await woken.get() == KEY
        assert idleness.known(KEY) == Idle("u0", 400.25)
    finally:
        idleness.release(KEY)
        await asking.close()
        await runner.cleanup()
