"""Every call is bounded, every answer is typed, and nothing is written without the lease."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from distserve.operator.cluster import Cluster, NoCluster, load_configuration
from distserve.operator.errors import (
    Conflict,
    LeaseLost,
    NotFound,
    Refused,
    Unavailable,
    WebhookDown,
)
from distserve.operator.kinds import PODS, kind_of
from distserve.operator.model import Ref
from distserve.operator.settings import CallSettings

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
ACCOUNT = {
    "apiVersion": "v1",
    "kind": "ServiceAccount",
    "metadata": {"namespace": "ns", "name": "sa", "labels": {"a": "b"}},
}
ACCOUNTS = kind_of("v1", "ServiceAccount")


class Api:
    """Answers as the test says, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answer: Answer = self.say(200, {})

    def say(self, status: int, body: Any, **headers: str) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status, headers=headers)

        return answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.method, request.path_qs, body))
        return await self.answer(request)


@pytest.fixture
async def api() -> Api:
    return Api()


@pytest.fixture
async def counted() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def cluster(api: Api, counted: list[tuple[str, str]]) -> AsyncIterator[Cluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    client = Cluster(
        configuration,
        CallSettings(seconds=0.3),
        lambda verb, outcome: counted.append((verb, outcome)),
    )
    client.may_write = lambda: True
    yield client
    await client.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (403, Refused),
        (404, NotFound),
        (409, Conflict),
        (422, Refused),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_each_status_is_a_type(
    api: Api, cluster: Cluster, status: int, error: type[Exception]
) -> None:
    api.answer = api.say(status, {"kind": "Status", "message": "what is wrong"})
    with pytest.raises(error, match="what is wrong"):
        await cluster.apply(ACCOUNT)


async def test_the_wait_that_a_busy_server_asks_for_is_kept(api: Api, cluster: Cluster) -> None:
    api.answer = api.say(429, {}, **{"Retry-After": "7"})
    with pytest.raises(Unavailable) as busy:
        await cluster.apply(ACCOUNT)
    assert busy.value.retry_after_seconds == 7.0


async def test_an_answer_that_is_no_json_is_still_an_error(api: Api, cluster: Cluster) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<html>bad gateway")

    api.answer = answer
    with pytest.raises(Unavailable, match="bad gateway"):
        await cluster.get(ACCOUNTS, "ns", "sa")


async def test_a_long_refusal_is_cut(api: Api, cluster: Cluster) -> None:
    """The server repeats what it refuses, and conditions, events and the log take it from there."""
    api.answer = api.say(422, {"kind": "Status", "message": f"labels: {'x' * (1 << 20)}"})
    with pytest.raises(Refused, match="serviceaccounts/sa: labels: x") as refused:
        await cluster.apply(ACCOUNT)
    assert len(str(refused.value)) < 2000


async def test_a_server_that_does_not_answer_is_not_waited_for(
    api: Api, cluster: Cluster, counted: list[tuple[str, str]]
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    api.answer = answer
    with pytest.raises(Unavailable, match="no answer within"):
        await asyncio.wait_for(cluster.get(ACCOUNTS, "ns", "sa"), 10)
    assert counted == [("get", "unavailable")]


async def test_a_write_is_waited_for_until_a_webhook_must_have_ended(
    api: Api, cluster: Cluster
) -> None:
    """Then it is the API server who says what it waited for."""
    assert CallSettings().write_seconds > 30, "Kubernetes lets no webhook take longer"
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await ended.wait()
        return web.json_response({"message": "failed calling webhook: timeout"}, status=500)

    api.answer = answer
    write = asyncio.create_task(cluster.apply(ACCOUNT))
    with pytest.raises(Unavailable, match="no answer within"):
        await asyncio.wait_for(cluster.get(ACCOUNTS, "ns", "sa"), 10)
    ended.set()
    with pytest.raises(WebhookDown, match="failed calling webhook"):
        await asyncio.wait_for(write, 10)


async def test_nothing_is_written_without_the_lease(api: Api, cluster: Cluster) -> None:
    cluster.may_write = lambda: False
    writes = (
        cluster.apply(ACCOUNT),
        cluster.create(ACCOUNT),
        cluster.delete("ns", Ref("v1", "ServiceAccount", "sa"), "uid"),
    )
    for write in writes:
        with pytest.raises(LeaseLost):
            await write
    assert api.asked == []
    assert await cluster.get(ACCOUNTS, "ns", "sa") == {}, "reading needs no lease"


async def test_what_is_new_asks_for_a_version_that_no_object_has(
    api: Api, cluster: Cluster
) -> None:
    await cluster.apply_new(ACCOUNT)
    ((method, path, body),) = api.asked
    assert method == "PATCH" and path.endswith("force=false")
    assert body["metadata"] == ACCOUNT["metadata"] | {"resourceVersion": "1"}  # type: ignore[operator]


async def test_apply_is_server_side_by_one_manager(api: Api, cluster: Cluster) -> None:
    await cluster.apply(ACCOUNT, uid="u1")
    ((method, path, body),) = api.asked
    assert method == "PATCH"
    assert path == (
        "/api/v1/namespaces/ns/serviceaccounts/sa?fieldManager=distserve-operator&force=true"
    )
    assert body["metadata"] == {**ACCOUNT["metadata"], "uid": "u1"}  # type: ignore[dict-item]
    assert "uid" not in ACCOUNT["metadata"], "what was decided is not changed"


async def test_delete_hits_no_successor(api: Api, cluster: Cluster) -> None:
    await cluster.delete("ns", Ref("apps/v1", "StatefulSet", "set"), "u1", grace_seconds=5)
    ((method, path, body),) = api.asked
    assert (method, path) == ("DELETE", "/apis/apps/v1/namespaces/ns/statefulsets/set")
    assert body["preconditions"] == {"uid": "u1"}
    assert body["gracePeriodSeconds"] == 5


async def test_what_is_not_there_is_none(api: Api, cluster: Cluster) -> None:
    api.answer = api.say(404, {"message": "not found"})
    assert await cluster.get(ACCOUNTS, "ns", "sa") is None


async def test_a_listing_goes_through_all_pages(api: Api, cluster: Cluster) -> None:
    pages = [
        {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "a"}}]},
        {"metadata": {}, "items": [{"metadata": {"name": "b"}}]},
    ]

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(pages.pop(0))

    api.answer = answer
    names = [one["metadata"]["name"] async for one in cluster.list_metadata(PODS, selector="x")]
    assert names == ["a", "b"]
    assert [path for _, path, _ in api.asked] == [
        "/api/v1/pods?limit=250&labelSelector=x",
        "/api/v1/pods?limit=250&labelSelector=x&continue=more",
    ]


async def test_no_cluster_says_what_to_give(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(NoCluster, match="--kubeconfig"):
        await load_configuration(tmp_path / "none")


NO_CERTIFICATE = base64.b64encode(b"words").decode()


def kubeconfig(cluster: str) -> bytes:
    """With a user and a context; what is wrong is said of its cluster."""
    return f"""
current-context: a
contexts: [{{name: a, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: t}}}}]
clusters: [{{name: c, cluster: {{{cluster}}}}}]
""".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"words", b"a: [", b"\xff\xfe", b"clusters: 3", b"contexts: [{}]",
        b"{current-context: a, contexts: [{name: a, context: {cluster: c}}], clusters: 3}",
        b"{current-context: a, contexts: [{name: a, context: 1}], clusters: []}",
        kubeconfig("server: 1"),
        kubeconfig("server: https://a, certificate-authority-data: x"),
        kubeconfig(f"server: https://a, certificate-authority-data: {NO_CERTIFICATE}"),
    ],
)  # fmt: skip
async def test_a_kubeconfig_of_another_shape_is_no_cluster(tmp_path: Any, content: bytes) -> None:
    file = tmp_path / "config"
    file.write_bytes(content)
    with pytest.raises(NoCluster, match=r"^no cluster: .*; name one with --kubeconfig$"):
        Cluster(await load_configuration(file), CallSettings())
