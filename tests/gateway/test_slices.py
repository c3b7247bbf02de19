"""What several EndpointSlices say together, as a pure function."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.gateway.discovery import Endpoint
from distserve.gateway.slices import EndpointSlice, count_serving, instances

PORTS = [{"name": "migrator", "port": 8101}, {"name": "engine", "port": 8100}]


def endpoint(name: str, address: str, uid: str = "1", **conditions: bool | None) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False} | conditions,
        "targetRef": {"kind": "Pod", "namespace": "n", "name": name, "uid": uid},
        "nodeName": "node1",
        "zone": "a",
    }


def slice_of(
    *endpoints: dict[str, Any], name: str = "s", family: str = "IPv4", ports: Any = PORTS
) -> EndpointSlice:
    """Through JSON, as from the API server."""
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "n", "resourceVersion": "7", "labels": {}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": ports,
    }
    return msgspec.json.decode(msgspec.json.encode(document), type=EndpointSlice)


def test_a_pod_is_an_endpoint_on_the_engines_port() -> None:
    (found,) = instances([slice_of(endpoint("tiny-u0-prefill-0-0", "10.1.0.2"))])
    assert found == Endpoint(name="tiny-u0-prefill-0-0", url="http://10.1.0.2:8100")
    assert found.ready and not found.terminating
    assert found.role == found.unit == found.revision == ""


def test_the_first_pod_of_an_instance_answers_for_it() -> None:
    pods = [endpoint(f"big-u0-decode-10-{index}", f"10.1.0.{index + 2}") for index in range(12)]
    (found,) = instances([slice_of(*pods)])
    assert found == Endpoint(name="big-u0-decode-10-0", url="http://10.1.0.2:8100")


@pytest.mark.parametrize(
    ("conditions", "ready", "terminating"),
    [
        ({}, True, False),
        # The Service publishes addresses that are not ready: `ready` is always true.
        ({"serving": False}, False, False),
        ({"serving": True, "terminating": True}, True, True),
        ({"serving": False, "terminating": True}, False, True),
        # What is not known: serving is as ready, ready is true, terminating is false.
        ({"serving": None, "ready": False}, False, False),
        ({"serving": None, "ready": None, "terminating": None}, True, False),
    ],
)
def test_serving_is_readiness(
    conditions: dict[str, bool | None], ready: bool, terminating: bool
) -> None:
    said = endpoint("a", "10.1.0.2")
    (found,) = instances([slice_of(said | {"conditions": said["conditions"] | conditions})])
    assert (found.ready, found.terminating) == (ready, terminating)


def test_conditions_may_be_missing() -> None:
    bare = endpoint("a", "10.1.0.2") | {"conditions": {}}
    del bare["nodeName"]
    assert instances([slice_of(bare)])[0].ready


def test_ipv6_addresses_get_brackets() -> None:
    (found,) = instances([slice_of(endpoint("a", "fd00::2"), family="IPv6")])
    assert found.url == "http://[fd00::2]:8100"


def test_a_pod_of_two_families_is_one_endpoint() -> None:
    both = [
        slice_of(endpoint("a", "fd00::2"), name="six", family="IPv6"),
        slice_of(endpoint("a", "10.1.0.2"), name="four"),
    ]
    assert [found.url for found in instances(both)] == ["http://10.1.0.2:8100"]


def test_what_is_no_engine_is_left_out() -> None:
    node = endpoint("a", "10.1.0.2") | {"targetRef": {"kind": "Node", "name": "a", "uid": "1"}}
    nobody = endpoint("a", "10.1.0.2")
    del nobody["targetRef"]
    assert instances([slice_of(node, nobody)]) == []
    assert instances([slice_of(endpoint("a", "engine.example"), family="FQDN")]) == []
    other_port = [{"name": "metrics", "port": 8102}]
    assert instances([slice_of(endpoint("a", "10.1.0.2"), ports=other_port)]) == []
    assert instances([slice_of(ports=None)]) == []


def test_go_writes_no_endpoints_as_null() -> None:
    document = b'{"metadata":{"name":"s"},"addressType":"IPv4","endpoints":null,"ports":null}'
    assert instances([msgspec.json.decode(document, type=EndpointSlice)]) == []


def test_slices_may_have_different_ports() -> None:
    """A named target port may have another number in each pod."""
    found = instances(
        [
            slice_of(endpoint("a", "10.1.0.2"), ports=[{"name": "engine", "port": 1}]),
            slice_of(endpoint("b", "10.1.0.3"), ports=[{"name": "engine", "port": 2}]),
        ]
    )
    assert [e.url for e in found] == ["http://10.1.0.2:1", "http://10.1.0.3:2"]


@pytest.mark.parametrize("ends", ["1", "2"])
def test_a_pod_made_anew_is_the_one_that_does_not_end(ends: str) -> None:
    """A slice that lags behind still has the old one, under the same name."""
    lives = [
        endpoint("a", f"10.1.0.{uid}", uid, terminating=uid == ends, serving=uid == ends)
        for uid in ("1", "2")
    ]
    (found,) = instances([slice_of(one, name=one["addresses"][0]) for one in lives])
    assert not found.terminating
    assert found.url != f"http://10.1.0.{ends}:8100"


# ---- properties ---------------------------------------------------------------------------------

sightings = st.lists(
    st.builds(
        lambda name, uid, serving, terminating: endpoint(
            name,
            f"10.1.{ord(name)}.{uid}",
            uid,
            ready=True,
            serving=serving,
            terminating=terminating,
        ),
        st.sampled_from("abc"),
        st.sampled_from("12"),
        st.sampled_from([True, False, None]),
        st.sampled_from([True, False, None]),
    ),
    max_size=12,
)


@given(sightings, st.data())
def test_order_and_cut_of_the_slices_make_no_difference(
    seen: list[dict[str, Any]], data: st.DataObject
) -> None:
    expected = instances([slice_of(*seen)])
    order = data.draw(st.permutations(seen))
    slices: list[EndpointSlice] = []
    rest = list(order)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        slices.append(slice_of(*rest[:size], name=str(len(slices))))
        rest = rest[size:]
    again = data.draw(st.lists(st.sampled_from(slices), max_size=3)) if slices else []
    assert instances([*slices, *again]) == expected


@given(sightings)
def test_no_work_on_the_word_of_one_slice_alone(seen: list[dict[str, Any]]) -> None:
    found = instances([slice_of(one, name=str(at)) for at, one in enumerate(seen)])
    names = [e.name for e in found]
    assert names == sorted({one["targetRef"]["name"] for one in seen})
    for chosen in found:
        lives: dict[str, list[dict[str, Any]]] = {}
        for one in seen:
            if one["targetRef"]["name"] == chosen.name:
                lives.setdefault(one["targetRef"]["uid"], []).append(one["conditions"])
        ending = {u: any(c["terminating"] for c in said) for u, said in lives.items()}
        serves = {u: all(c["serving"] is not False for c in said) for u, said in lives.items()}
        uid = chosen.url.removesuffix(":8100").rpartition(".")[2]
        assert (chosen.ready, chosen.terminating) == (serves[uid], ending[uid])
        # Terminating only where no life of that name goes on; not ready only where none serves.
        assert chosen.terminating == all(ending.values())
        assert chosen.ready or not any(serves[u] and not ending[u] for u in lives)


# ---- gateways -----------------------------------------------------------------------------------

HTTP = [{"name": "http", "port": 8000}]
CONDITION = st.fixed_dictionaries(
    {name: st.sampled_from([True, False, None]) for name in ("ready", "serving", "terminating")}
)


def test_a_gateway_counts_whatever_its_random_name_ends_in() -> None:
    pods = [endpoint(f"tiny-gateway-7c9-{end}", "10.1.0.2", uid=end) for end in ("24567", "x4z2q")]
    assert count_serving([slice_of(*pods, ports=HTTP)]) == 2
    node = endpoint("a", "10.1.0.2") | {"targetRef": {"kind": "Node", "name": "a", "uid": "3"}}
    assert count_serving([slice_of(*pods, node), slice_of(ports=None)]) == 2


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), CONDITION), max_size=12),
    st.randoms(),
)
def test_a_pod_counts_once_and_only_on_the_word_of_all(said: list[Any], draw: Any) -> None:
    def cut(words: list[Any]) -> list[EndpointSlice]:
        return [
            slice_of(
                *(endpoint(f"p-{uid}", "10.1.0.2", uid, **c) for uid, at, c in words if at == n)
            )
            for n in range(3)
        ]

    def works(found: dict[str, bool | None]) -> bool:
        serves = found["serving"] if found["serving"] is not None else found["ready"] is not False
        return serves and not found["terminating"]

    wanted = {u for u, _, _ in said} - {u for u, _, found in said if not works(found)}
    assert count_serving(cut(said)) == len(wanted)
    draw.shuffle(said)
    assert count_serving(cut(said)) == len(wanted)
