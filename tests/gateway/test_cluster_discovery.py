"""Discovery against real API servers and their EndpointSlice controllers, with the one right that a
gateway has."""

import asyncio
import base64
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tools.cluster import fake_nodes
from tools.cluster.cluster import Cluster
from tools.cluster.profiles import Profile

from distserve.gateway.api_server import ApiServer
from distserve.gateway.discovery import Endpoint
from distserve.gateway.slice_discovery import Pace, SliceDiscovery

PATIENT = Pace()
WAIT_SECONDS = 120.0
"""For controllers and schedulers; three times what is seen on a busy machine."""
RULES = [
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
]
"""What the ClusterRole of gateways needs, and all that it needs."""


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "tiny-instances"},
    "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"app": "tiny"},
        "ports": [{"name": "engine", "port": 8100}, {"name": "migrator", "port": 8101}],
    },
}


def stateful_set(name: str) -> dict[str, Any]:
    pod = {
        "tolerations": [fake_nodes.TOLERATION],
        "containers": [{"name": "engine", "image": "engine"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": "tiny-instances",
            "selector": {"matchLabels": {"app": "tiny", "instance": name}},
            "template": {
                "metadata": {"labels": {"app": "tiny", "instance": name}},
                "spec": pod,
            },
        },
    }


GATEWAYS = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tiny-gateway"},
        "spec": {"selector": {"app": "gateway"}, "ports": [{"name": "http", "port": 8000}]},
    },
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "tiny-gateway"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "gateway"}},
            "template": {
                "metadata": {"labels": {"app": "gateway"}},
                "spec": {
                    "tolerations": [fake_nodes.TOLERATION],
                    "containers": [{"name": "gateway", "image": "gateway"}],
                },
            },
        },
    },
]


def api_of(cluster: Cluster, folder: Path, namespace: str, account: str) -> ApiServer:
    """As in a pod of this service account: the cluster's authority, and a token that ends."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = config.get("certificate-authority-data")
    text = (
        base64.b64decode(authority)
        if authority
        else Path(config["certificate-authority"]).read_bytes()
    )
    (folder / "ca.crt").write_bytes(text)
    token = cluster.kubectl("create", "token", account, f"--namespace={namespace}")
    (folder / "token").write_text(token)
    return ApiServer(config["server"], folder)


@contextlib.contextmanager
def gateway_account(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A service account that has RULES in its namespace, and nothing else anywhere."""
    role = f"gateway-{namespace}"
    cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": RULES,
        }
    )
    try:
        here = f"--namespace={namespace}"
        cluster.kubectl("create", "serviceaccount", "gateway", here)
        bound = (f"--clusterrole={role}", f"--serviceaccount={namespace}:gateway")
        cluster.kubectl("create", "rolebinding", "gateway", here, *bound)
        yield "gateway"
    finally:
        cluster.kubectl("delete", "clusterrole", role)


def hand_made(name: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "tiny-instances"}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "engine", "port": 8100, "protocol": "TCP"}],
    }


def endpoint(name: str, address: str, *, serving: bool = True, terminating: bool = False) -> Any:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "name": name, "uid": f"uid-{name}"},
    }


class Follower:
    def __init__(self) -> None:
        self.seen: list[list[Endpoint]] = []

    @property
    def last(self) -> dict[str, Endpoint]:
        return {e.name: e for e in self.seen[-1]} if self.seen else {}

    def ready(self) -> list[str]:
        return [e.name for e in self.last.values() if e.ready and not e.terminating]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_ready(self, *names: str) -> None:
        try:
            await self.until(lambda: bool(self.seen) and self.ready() == sorted(names))
        except TimeoutError:
            pytest.fail(f"last seen: {self.last}")


@contextlib.asynccontextmanager
async def following(
    api: ApiServer, namespace: str, pace: Pace = PATIENT, discovery: SliceDiscovery | None = None
) -> AsyncIterator[Follower]:
    follower = Follower()
    found = discovery or SliceDiscovery(api, namespace, "tiny-instances", pace=pace)

    async def follow() -> None:
        async for endpoints in found.watch():
            follower.seen.append(endpoints)

    task = asyncio.create_task(follow())
    try:
        yield follower
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def status_of(api: ApiServer, path: str) -> int:
    async with api.session() as session, session.get(api.url + path, headers=api.headers()) as got:
        return got.status


async def test_pods_are_found_with_one_right(control_plane: Cluster, tmp_path: Path) -> None:
    """By the slices that Kubernetes' own controller makes."""
    cluster = control_plane
    nodes = await asyncio.to_thread(cluster.nodes, 1, prefix="discovery")
    try:
        with cluster.namespace() as namespace, gateway_account(cluster, namespace) as account:
            sets = [f"tiny-u{n}-{role}-0" for n in range(2) for role in ("prefill", "decode")]
            cluster.apply([SERVICE, *map(stateful_set, sets)], namespace)
            api = api_of(cluster, tmp_path, namespace, account)
            names = [f"{name}-0" for name in sets]
            async with following(api, namespace) as follower:
                await follower.until_ready(*names)
                pods = cluster.get("pods", namespace=namespace, selector="app=tiny")["items"]
                assert {e.name: e.url for e in follower.seen[-1]} == {
                    pod["metadata"]["name"]: f"http://{pod['status']['podIP']}:8100" for pod in pods
                }

                # A pod that leaves is terminating for as long as something holds it.
                held = {"metadata": {"finalizers": ["distserve.io/test"]}}
                patch = ("patch", "pod", names[0], f"--namespace={namespace}", "--type=merge")
                cluster.kubectl(*patch, f"--patch={yaml.safe_dump(held)}")
                cluster.kubectl(
                    "delete", "pod", names[0], f"--namespace={namespace}", "--wait=false"
                )
                await follower.until_ready(*names[1:])
                assert follower.last[names[0]].terminating
                held["metadata"]["finalizers"] = []
                cluster.kubectl(*patch, f"--patch={yaml.safe_dump(held)}")
                await follower.until_ready(*names)

            for path, status in {
                "apis/discovery.k8s.io/v1/namespaces/{}/endpointslices": 200,
                "api/v1/namespaces/{}/pods": 403,
                "api/v1/namespaces/{}/services": 403,
                "api/v1/namespaces/{}/secrets": 403,
                "apis/discovery.k8s.io/v1/namespaces/default/endpointslices": 403,
            }.items():
                assert await status_of(api, "/" + path.format(namespace)) == status, path
    finally:
        await asyncio.to_thread(cluster.remove_nodes, nodes)


async def test_gateways_count_one_another(control_plane: Cluster, tmp_path: Path) -> None:
    """With the same right, by the slices of their own Service."""
    cluster = control_plane
    nodes = await asyncio.to_thread(cluster.nodes, 1, prefix="gateways")
    try:
        with cluster.namespace() as namespace, gateway_account(cluster, namespace) as account:
            cluster.apply([SERVICE, *GATEWAYS], namespace)
            api = api_of(cluster, tmp_path, namespace, account)
            discovery = SliceDiscovery(api, namespace, "tiny-instances", "tiny-gateway")
            assert discovery.gateways == 1
            async with following(api, namespace, discovery=discovery) as follower:
                for replicas in (2, 4, 1):
                    scale = ("scale", "deployment/tiny-gateway", f"--replicas={replicas}")
                    cluster.kubectl(*scale, f"--namespace={namespace}")
                    await follower.until(lambda wanted=replicas: discovery.gateways == wanted)
                assert follower.seen == [[]], "gateways are no instances"
    finally:
        await asyncio.to_thread(cluster.remove_nodes, nodes)


async def test_readiness_and_moves_between_slices(control_plane: Cluster, tmp_path: Path) -> None:
    cluster = control_plane
    with cluster.namespace() as namespace, gateway_account(cluster, namespace) as account:
        api = api_of(cluster, tmp_path, namespace, account)
        many = [endpoint(f"pod-{n:03}-0", f"10.1.{n // 100}.{n % 100 + 1}") for n in range(250)]
        cluster.apply(
            [hand_made(f"s{n}", *many[n * 100 : n * 100 + 100]) for n in range(3)], namespace
        )
        everyone = [one["targetRef"]["name"] for one in many]
        async with following(api, namespace) as follower:
            await follower.until_ready(*everyone)
            unready = endpoint("pod-249-0", "10.1.2.50", serving=False)
            cluster.apply(hand_made("s2", *many[200:249], unready), namespace)
            await follower.until_ready(*everyone[:-1])
            leaving = endpoint("pod-249-0", "10.1.2.50", terminating=True)
            cluster.apply(hand_made("s2", *many[200:249], leaving), namespace)
            await follower.until(lambda: follower.last["pod-249-0"].terminating)
            assert follower.last["pod-249-0"].ready
            # Into a slice of its own, then out of the old one: never missed in between.
            told = len(follower.seen)
            cluster.apply(hand_made("s3", many[0]), namespace)
            cluster.apply(hand_made("s0", *many[1:100]), namespace)
            cluster.kubectl("delete", "endpointslice", "s2", f"--namespace={namespace}")
            await follower.until_ready(*everyone[:200])
            assert all("pod-000-0" in {e.name for e in seen} for seen in follower.seen[told:])


async def test_a_token_without_the_right_is_told_what_is_missing(
    control_plane: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with control_plane.namespace() as namespace:
        api = api_of(control_plane, tmp_path, namespace, "default")
        async with following(api, namespace) as follower:
            await follower.until(lambda: "bind the gateway's service account" in caplog.text)
        assert "endpointslices.discovery.k8s.io is forbidden" in caplog.text


async def test_an_api_server_that_dies_takes_no_endpoint_with_it(
    start_cluster: Callable[..., Cluster], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster = start_cluster(Profile.CONTROL_PLANE)
    with cluster.namespace() as namespace, gateway_account(cluster, namespace) as account:
        api = api_of(cluster, tmp_path, namespace, account)
        first = hand_made("s", endpoint("a", "10.1.0.1"), endpoint("b", "10.1.0.2"))
        cluster.apply(first, namespace)
        async with following(api, namespace, Pace(max_pause_seconds=1.0)) as follower:
            await follower.until_ready("a", "b")
            server = cluster.processes["kube-apiserver"]
            server.stop(signal.SIGKILL)
            await follower.until(lambda: caplog.text.count("2 known instances stay") >= 3)
            assert len(follower.seen) == 1
            server.start()

            def answers() -> bool:
                with contextlib.suppress(Exception):
                    cluster.apply(hand_made("s", endpoint("b", "10.1.0.2")), namespace)
                    return True
                return False

            await asyncio.to_thread(cluster.wait_for, "the API server to be back", answers)
            await follower.until_ready("b")
            with pytest.raises(aiohttp.ClientError):
                async with aiohttp.ClientSession() as stranger:
                    await stranger.get(api.url)  # no certificate of a public authority
