"""Discovery by EndpointSlices: what it says, where it finds its server, how old its word is."""

from pathlib import Path
from typing import Any

import pytest
from tests.gateway.api_stub import GATEWAYS, ApiStub, endpoint
from tests.gateway.follower import QUICK

from distserve.gateway.api_server import NotInCluster, api_server_of_pod
from distserve.gateway.discovery import make_discovery
from distserve.gateway.slice_discovery import SliceDiscovery

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
