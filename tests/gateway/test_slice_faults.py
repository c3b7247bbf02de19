"""Discovery by EndpointSlices from a server that fails in all the ways that servers do."""

import asyncio
import itertools
import logging
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.api_stub import ApiStub, endpoint
from tests.gateway.sockets import assert_kept_alive

from distserve.gateway.slice_discovery import Pace, SliceDiscovery
from distserve.gateway.slices import EndpointSlice, instances


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
        assert_kept_alive(answer)


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
