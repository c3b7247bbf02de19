"""Discovery by EndpointSlices against a server that fails in all the ways that servers do."""

import asyncio
import itertools
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.api_stub import GATEWAYS, INSTANCES, ApiStub, endpoint

from distserve.gateway.api_server import KEEPALIVE, NotInCluster, api_server_of_pod
from distserve.gateway.discovery import Endpoint, make_discovery
from distserve.gateway.slice_discovery import Pace, SliceDiscovery
from distserve.gateway.slices import EndpointSlice, instances

WAIT_SECONDS = 20.0
QUICK = Pace(first_pause_seconds=0.01, max_pause_seconds=0.05, quick_seconds=0.0)


@dataclass(eq=False)
class Follower:
    """Somebody who follows a discovery."""

    discovery: SliceDiscovery
    seen: list[list[Endpoint]] = field(default_factory=list)

    async def follow(self) -> None:
        async for endpoints in self.discovery.watch():
            self.seen.append(endpoints)

    @property
    def ready(self) -> list[str]:
        """Who may get work by the last word."""
        last = self.seen[-1] if self.seen else []
        return [e.name for e in last if e.ready and not e.terminating]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_ready(self, *names: str) -> None:
        await self.until(lambda: bool(self.seen) and self.ready == list(names))


@pytest.fixture
async def follow(stub: ApiStub) -> AsyncIterator[Callable[..., Any]]:
    """follow(pace=QUICK) -> a Follower that has seen the list and watches."""
    tasks: list[asyncio.Task[None]] = []

    async def start(pace: Pace = QUICK, gateways: str = "") -> Follower:
        draw = random.Random(1)
        follower = Follower(SliceDiscovery(stub.api, "n", INSTANCES, gateways, pace, draw))
        tasks.append(asyncio.create_task(follower.follow()))
        await follower.until_ready("a", "b")
        await follower.until(lambda: stub.watching == 1)
        return follower

    yield start
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---- what it says -------------------------------------------------------------------------------


async def test_changes_come_as_they_happen(stub: ApiStub, follow: Any) -> None:
    follower = await follow()
    stub.put("s2", endpoint("c", "10.0.0.3", serving=False))
    await follower.until(lambda: len(follower.seen[-1]) == 3)
    assert follower.ready == ["a", "b"]
    stub.put("s2", endpoint("c", "10.0.0.3"))
    await follower.until_ready("a", "b", "c")
    stub.put("s1", endpoint("a", "10.0.0.1", terminating=True), endpoint("b", "10.0.0.2"))
    await follower.until_ready("b", "c")
    assert [e.terminating for e in follower.seen[-1]] == [True, False, False]
    stub.delete("s1")
    await follower.until_ready("c")
    stub.put("s2")
    await follower.until_ready()
    assert follower.seen[-1] == []
    assert (stub.lists, len(stub.watches)) == (1, 1)


async def test_what_changes_nothing_is_not_told(stub: ApiStub, follow: Any) -> None:
    follower = await follow()
    stub.bookmark()
    stub.put("s2", endpoint("b", "10.0.0.2"))  # on its way from one slice to another
    stub.put("s1", endpoint("a", "10.0.0.1"))
    stub.put("s3", endpoint("c", "10.0.0.3"))
    await follower.until_ready("a", "b", "c")
    assert len(follower.seen) == 2


async def test_a_watch_goes_on_where_the_last_one_ended(stub: ApiStub, follow: Any) -> None:
    follower = await follow()
    stub.bookmark()
    noted = str(stub.version)
    await follower.until(lambda: stub.watching == 1)
    stub.misbehave("end")
    await follower.until(lambda: len(stub.watches) > 3)
    stub.put("s2", endpoint("c", "10.0.0.3"))
    stub.misbehave("")
    await follower.until_ready("a", "b", "c")
    assert stub.lists == 1
    assert stub.watches[1]["resourceVersion"] == noted
    asked = stub.watches[0]
    assert asked["allowWatchBookmarks"] == "true"
    assert int(asked["timeoutSeconds"]) == QUICK.watch_seconds


async def test_gateways_are_counted_that_serve(stub: ApiStub, follow: Any) -> None:
    """By the slices of their own Service, which are no instances."""
    stub.put("g1", endpoint("me"), service=GATEWAYS)
    follower = await follow(gateways=GATEWAYS)
    found = follower.discovery
    assert found.gateways == 1 and len(follower.seen) == 1
    both = [endpoint("me"), endpoint("you")]
    stub.put("g1", *both, endpoint("starts", serving=False), service=GATEWAYS)
    stub.put("g2", endpoint("you"), service=GATEWAYS)  # on its way from one slice to another
    await follower.until(lambda: found.gateways == 2)
    await stub.stop()
    await follower.until(lambda: found._failures >= 2)
    assert found.gateways == 2, "what was found last stays"
    await stub.start()
    stub.put("g1", *both, endpoint("starts"), service=GATEWAYS)
    await follower.until(lambda: found.gateways == 3)
    ends = [endpoint("me", serving=False), endpoint("you", terminating=True)]
    stub.put("g1", *ends, service=GATEWAYS)
    await follower.until(lambda: found.gateways == 1)
    assert len(follower.seen) == 1, "no instance came or went"


async def test_without_a_service_of_its_own_a_gateway_is_alone(stub: ApiStub, follow: Any) -> None:
    follower = await follow()
    stub.put("g1", endpoint("x"), endpoint("y"), service=GATEWAYS)
    stub.put("s2", endpoint("c", "10.0.0.3"))
    await follower.until_ready("a", "b", "c")
    assert follower.discovery.gateways == 1


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["event", "refused"])
async def test_lost_history_is_a_new_list(stub: ApiStub, follow: Any, how: str) -> None:
    follower = await follow()
    stub.slices["s1"]["endpoints"].append(endpoint("c", "10.0.0.3"))  # nobody is told
    stub.forget_history()
    stub.misbehave("refused" if how == "refused" else "end")
    await follower.until(lambda: len(stub.watches) >= 2)
    stub.misbehave("")
    await follower.until_ready("a", "b", "c")
    assert stub.lists >= 2


async def test_a_watch_that_died_in_silence_is_noticed(stub: ApiStub, follow: Any) -> None:
    """It has not ended when it was to end."""
    follower = await follow(Pace(watch_seconds=1.0, late_seconds=0.1, first_pause_seconds=0.01))
    stub.misbehave("silent")
    stub.put("s2", endpoint("c", "10.0.0.3"))
    await follower.until_ready("a", "b", "c")
    assert stub.lists >= 2


async def test_a_machine_that_is_gone_is_noticed_by_the_kernel(stub: ApiStub) -> None:
    query = {"labelSelector": "kubernetes.io/service-name in (tiny-instances)", "watch": "true"}
    path = "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices"
    headers = stub.api.headers()
    async with (
        stub.api.session() as http,
        http.get(
            stub.api.url + path, params=query | {"resourceVersion": "100"}, headers=headers
        ) as answer,
    ):
        assert answer.status == 200 and answer.connection is not None
        assert answer.connection.transport is not None
        used = answer.connection.transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in KEEPALIVE.items():
            assert used.getsockopt(socket.IPPROTO_TCP, option) == value


@pytest.mark.parametrize(
    ("fault", "garbage"),
    [
        ("cut", b""),
        ("garbage", b"<html>gateway time-out</html>\n"),
        ("garbage", b'{"type": "ADDED", "object": {"metadata": {"name": "\xff"}}}\n'),
        ("garbage", b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n"),
        ("garbage", b'[]\n{"type": 1}\n'),
    ],
    ids=["cut", "html", "text", "nesting", "types"],
)
async def test_broken_answers_lose_nothing(
    stub: ApiStub, follow: Any, fault: str, garbage: bytes
) -> None:
    follower = await follow()
    before = len(follower.seen)
    stub.garbage = garbage
    stub.misbehave(fault)
    await follower.until(lambda: len(stub.watches) >= 4)
    assert len(follower.seen) == before
    stub.put("s2", endpoint("c", "10.0.0.3"))
    stub.misbehave("")
    await follower.until_ready("a", "b", "c")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("RENAMED", {"metadata": {"name": "s1"}}),
        ("ERROR", {"metadata": {}, "code": 500, "message": "etcd is away"}),
        ("MODIFIED", {"metadata": {"name": "s1"}, "endpoints": 7}),
    ],
)
async def test_events_that_cannot_be_are_a_new_list(
    stub: ApiStub, follow: Any, kind: str, found: dict[str, Any]
) -> None:
    follower = await follow()
    stub.say(kind, found)
    await follower.until(lambda: stub.lists >= 2)
    stub.put("s2", endpoint("c", "10.0.0.3"))
    await follower.until_ready("a", "b", "c")


async def test_what_no_watch_told_comes_with_the_next_list(stub: ApiStub, follow: Any) -> None:
    follower = await follow(Pace(relist_seconds=0.2, quick_seconds=0.0))
    stub.slices["s1"]["endpoints"].append(endpoint("c", "10.0.0.3"))
    stub.misbehave("end")
    await follower.until_ready("a", "b", "c")
    assert stub.lists >= 2


async def test_the_last_endpoints_stay_while_the_server_is_away(
    stub: ApiStub, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    follower = await follow()
    before = len(follower.seen)
    await stub.stop()
    await follower.until(lambda: caplog.text.count("2 known instances stay") >= 5)
    assert len(follower.seen) == before
    stub.put("s1", endpoint("b", "10.0.0.2"))
    await stub.start()
    await follower.until_ready("b")
    stub.bookmark()
    await follower.until(lambda: "are followed again" in caplog.text)


async def test_a_token_that_was_replaced_is_used(
    stub: ApiStub, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    follower = await follow()
    stub.token = "t2"
    stub.misbehave("end")
    await follower.until(lambda: caplog.text.count("401: Unauthorized") >= 2)
    assert "automountServiceAccountToken" in caplog.text
    assert follower.ready == ["a", "b"]
    stub.misbehave("")
    stub.put("s2", endpoint("c", "10.0.0.3"))
    stub.write_token()
    await follower.until_ready("a", "b", "c")
    assert "t1" not in caplog.text and "t2" not in caplog.text


@pytest.mark.parametrize("token", [None, b"\xff", b"t\n1"])
async def test_a_token_that_cannot_be_read_is_waited_for(
    stub: ApiStub, follow: Any, token: bytes | None
) -> None:
    follower = await follow()
    if token is None:
        (stub.credentials / "token").unlink()
    else:
        (stub.credentials / "token").write_bytes(token)
    stub.misbehave("end")
    await follower.until(lambda: follower.discovery._failures >= 3)
    stub.misbehave("")
    stub.put("s2", endpoint("c", "10.0.0.3"))
    stub.write_token()
    await follower.until_ready("a", "b", "c")


async def test_a_missing_right_is_said_with_its_cure(
    stub: ApiStub, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    follower = await follow()
    stub.refuse = (403, "endpointslices is forbidden")
    stub.misbehave("end")
    await follower.until(lambda: caplog.text.count("403: endpointslices is forbidden") >= 2)
    assert "ClusterRole distserve-gateway" in caplog.text
    assert follower.ready == ["a", "b"]


async def test_watches_that_end_at_once_are_failures(
    stub: ApiStub, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a broken proxy would be asked without a pause."""
    follower = await follow(Pace(first_pause_seconds=0.01, max_pause_seconds=0.02))
    stub.misbehave("end")
    await follower.until(lambda: caplog.text.count("ends watches at once") >= 3)
    assert follower.ready == ["a", "b"]


def test_pauses_grow_with_jitter_and_a_bound(tmp_path: Path) -> None:
    discovery = SliceDiscovery(ApiStub(tmp_path).api, "n", "s", draw=random.Random(1))
    pauses = [discovery._pause_seconds() for _ in range(40)]
    for at, pause in enumerate(pauses):
        longest = min(0.25 * 2**at, 30.0)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses[10:])) > 20


# ---- the flag -----------------------------------------------------------------------------------


def test_a_pod_knows_its_api_server(tmp_path: Path) -> None:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    for host, url in (("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        said = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}
        assert api_server_of_pod(said, tmp_path).url == url


def test_outside_of_a_cluster_it_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pod of a cluster.*file:PATH"):
        make_discovery("endpointslices:n/s", {})
    with pytest.raises(NotInCluster, match="automountServiceAccountToken"):
        api_server_of_pod({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)


def test_the_gateways_service_is_named_behind_a_comma(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = ApiStub(tmp_path).api
    monkeypatch.setattr("distserve.gateway.api_server.api_server_of_pod", lambda environment: api)
    for words, gateways in (("n/s", ""), ("n/s,g", "g")):
        found = make_discovery(f"endpointslices:{words}", {})
        assert found == SliceDiscovery(api, "n", "s", gateways, draw=found.draw)


@pytest.mark.parametrize(
    "rest",
    ["", "n", "n/", "/s", "n/s/t", "N/s", "n/s?x=1", "n/../s", "-n/s", "n/s,", "n/s,G", "n/s,g,h"],
)
def test_names_that_are_none_are_refused(rest: str) -> None:
    with pytest.raises(ValueError, match="endpointslices:NAMESPACE/SERVICE"):
        make_discovery(f"endpointslices:{rest}", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_the_last_word_is_the_servers(
    stub: ApiStub, follow: Any, seed: int
) -> None:
    draw = random.Random(seed)
    follower = await follow()
    faults = ["end", "refused", "cut", "garbage"]
    stub.garbage = b"<html>\n"

    def agrees() -> bool:
        known = (msgspec.convert(one, EndpointSlice) for one in stub.slices.values())
        return follower.seen[-1] == instances(known)

    for _ in range(100):
        match draw.randrange(12):
            case 0 | 1 | 2:
                some = draw.sample("abcdef", draw.randrange(4))
                serving = draw.random() < 0.7
                stub.put(
                    draw.choice(["s1", "s2", "s3"]), *(endpoint(n, serving=serving) for n in some)
                )
            case 3 if stub.slices:
                stub.delete(draw.choice(sorted(stub.slices)))
            case 4:
                stub.forget_history()
            case 5:
                await stub.stop()
                await stub.start()
            case 6:
                stub.misbehave(draw.choice(faults))
            case 7:
                for _ in range(draw.randrange(80)):
                    await asyncio.sleep(0)
            case _:
                stub.misbehave("")
                await follower.until(agrees)
    assert all(now != then for now, then in itertools.pairwise(follower.seen))


# ---- how old the word is ------------------------------------------------------------------------


async def test_signs_of_life_are_counted_as_such(stub: ApiStub, follow: Any) -> None:
    follower = await follow()
    listed = follower.discovery.heard_at
    stub.bookmark()
    await follower.until(lambda: follower.discovery.heard_at > listed)
    await stub.stop()
    before = follower.discovery.heard_at
    await follower.until(lambda: follower.discovery._failures >= 3)
    assert follower.discovery.heard_at == before
