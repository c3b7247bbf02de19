"""The operator's reader in front of two real migrators, with a link between them that is throttled.

Engines --/instance--> p, d (what an engine says of itself)
   '----/links-------> migrator d ====[ Wire ]====> migrator p
"""

import asyncio
import contextlib
import socket

import pytest
from aiohttp import web

from distserve.operator.asking import Asking, NotAnswered, Where, WrongKey
from distserve.operator.conditions import merged, transitions
from distserve.operator.engines import Engines, EngineSettings
from distserve.operator.fabric import Fabric, fact_of
from distserve.operator.model import Key
from distserve.operator.pairs import LinksQuestion, Member, Pair
from distserve.wire import auth, messages

DEPLOYMENT = Key("llm", "tiny")
EXPECTED = 20_000_000
THROTTLED = 2_000_000
"""Bytes per second: what any machine gives is far above the one, the wire is far below."""
CHUNK = 16 << 10
PAIR = Pair(
    Member("tiny-u0-decode-0-0", "uid-d", "d", "node-b"),
    Member("tiny-u0-prefill-0-0", "uid-p", "p", "node-a"),
    "leaf",
    EXPECTED,
)


class Wire:
    """Forwards TCP at no more than `limit` bytes per second, of each direction of a connection."""

    def __init__(self, address):
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.limit = float("inf")
        self.connections = 0
        self._tasks = set()

    async def start(self):
        self._server = await asyncio.start_server(self._meet, self.host, 0)
        return "{}:{}".format(*self._server.sockets[0].getsockname())

    async def _meet(self, reader, writer):
        self.connections += 1
        self._tasks.add(asyncio.current_task())
        there = await asyncio.open_connection(self.host, self.port)
        try:
            await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        finally:
            for one in (writer, there[1]):
                one.close()

    async def _pump(self, reader, writer):
        clock = asyncio.get_running_loop().time
        free_at = clock()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                free_at = max(free_at, clock()) + len(data) / self.limit
                await asyncio.sleep(free_at - clock())
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def close(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Scene:
    """What the operator reaches."""

    def __init__(self, harness, migrators):
        self.harness = harness
        self.migrators = {name: f"http://{address}" for name, address in migrators.items()}
        self.addresses = {}
        """What each engine says of its migrator."""

    async def serve_instances(self):
        """`GET /instance` of both engines, as /p/instance and /d/instance."""

        async def instance(request):
            if not auth.has_key(request.headers.get("authorization"), self.harness.key):
                return web.Response(status=401)
            name = request.match_info["name"]
            said = {"instance": name, "fingerprint": "f", "migrator": self.addresses[name]}
            return web.json_response(said | {"chat_template": "x" * 100_000})

        app = web.Application()
        app.router.add_get("/{name}/instance", instance)
        runner = web.AppRunner(app)
        await runner.setup()
        self.harness.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.engines = "http://{}:{}".format(*runner.addresses[0])

    def where(self, member):
        return Where(f"{self.engines}/{member.host}", self.migrators[member.host])


@pytest.fixture
async def scene(harness):
    """Two migrators as pods run them, each with an engine; nothing was transferred yet."""
    processes = {name: harness.process(name, "TCP") for name in "pd"}
    addresses = {name: await process.metrics_address() for name, process in processes.items()}
    found = Scene(harness, addresses)
    await found.serve_instances()
    found.p, found.d = await harness.engine("p"), await harness.engine("d")
    found.addresses = {"p": found.p.address, "d": found.d.address}
    return found


@pytest.fixture
async def wire(harness, scene):
    """Between d and p."""
    found = Wire(scene.p.address)
    scene.addresses["p"] = await found.start()
    harness.stack.push_async_callback(found.close)
    return found


@pytest.fixture
async def engines(harness, scene):
    """The operator's room, which looks again all the time."""

    async def read_key(namespace, secret):
        return harness.key

    woken = asyncio.Event()
    settings = EngineSettings(refresh_seconds=0.05, retry_seconds=0.05, tries=1)
    room = Engines(Asking(scene.where), read_key, lambda key: woken.set(), settings)
    running = asyncio.create_task(room.run())
    yield room, woken
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until(engines, status):
    """The fact and the links, when they say so; each wake is a reconcile."""
    room, woken = engines
    question = LinksQuestion("tiny-key", {"u0": (PAIR,)})
    async with asyncio.timeout(60):
        while True:
            woken.clear()
            links = room.ask(DEPLOYMENT, question)
            fact = fact_of(links, 1)
            if fact.status == status:
                return fact, links
            await woken.wait()


async def test_a_throttled_link_turns_it_false_with_both_numbers(scene, wire, engines):
    verified, links = await until(engines, "True")
    assert links["u0"].fingerprints == ("f",)
    (link,) = links["u0"].links
    assert (link.transport, link.pair) == ("TCP", PAIR)
    assert link.latency_ms > 0
    assert link.bandwidth > EXPECTED
    assert wire.connections == 2, "control and data, and no more for each measurement"

    wire.limit = THROTTLED
    slow, links = await until(engines, "False")
    (link,) = links["u0"].links
    assert link.bandwidth < 1.5 * THROTTLED
    assert slow.reason == "SlowFabric"
    for part in (
        "tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0 over TCP at ",
        "MB/s",
        "expected of level leaf: 20 MB/s",
        "the path from node node-a to node-b",
    ):
        assert part in slow.message
    shown = Fabric(units=links).status_of("u0")["fabric"]
    assert shown["expected"] == "20M"
    assert float(shown["bandwidth"].rstrip("kM")) > 0

    before = merged([], {"FabricVerified": verified}, 1, 0.0)
    (event,) = transitions(before, merged(before, {"FabricVerified": slow}, 1, 1.0))
    assert (event.type, event.reason) == ("Warning", "SlowFabric")
    assert "tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0" in event.message

    wire.limit = float("inf")
    await until(engines, "True")


async def test_the_first_transfer_finds_the_link_open(scene, wire, engines):
    await until(engines, "True")
    p, d, span = scene.p, scene.d, scene.harness.span
    there, here = span(0, 20, 8, 7), span(0, 20, 9, 3)
    await p.offer("t", there)
    d.expect("t", scene.addresses["p"])
    d.fetch("t", here)
    p.ready("t", there)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)
    assert wire.connections == 2


async def test_what_cannot_be_measured_says_why_and_is_tried_again(scene, engines):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
    address, scene.addresses["p"] = scene.addresses["p"], away
    _, woken = engines
    async with asyncio.timeout(60):
        while "unreachable" not in (await until(engines, "Unknown"))[0].message:
            await woken.wait()
    scene.addresses["p"] = address
    await until(engines, "True")


async def test_another_key_is_nobodys_answer(scene):
    asking = Asking(scene.where)
    scene.harness.stack.push_async_callback(asking.close)
    for call in (
        asking.instance(PAIR.reader, b"x" * 32),
        asking.measure(PAIR.reader, scene.p.address, b"x" * 32),
    ):
        with pytest.raises(WrongKey):
            await call
    wrong = Asking(lambda member: Where(scene.migrators["d"], scene.engines))
    scene.harness.stack.push_async_callback(wrong.close)
    with pytest.raises(NotAnswered, match="HTTP 404"):
        await wrong.instance(PAIR.reader, scene.harness.key)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"links": {}}',
        b'{"links": {"p:1": 3}}',
        b" " * (9 << 20),
    ],
    ids=["empty", "list", "cut", "nobody", "number", "long"],
)
async def test_answers_that_make_no_sense_are_told_as_such(scene, body):
    async def answer(request):
        return web.Response(body=body)

    app = web.Application()
    app.router.add_route("*", "/{any}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    scene.harness.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0])
    asking = Asking(lambda member: Where(url, url))
    scene.harness.stack.push_async_callback(asking.close)
    with pytest.raises(NotAnswered):
        await asking.measure(PAIR.reader, "p:1", scene.harness.key)
    with pytest.raises(NotAnswered):
        await asking.instance(PAIR.reader, scene.harness.key)
