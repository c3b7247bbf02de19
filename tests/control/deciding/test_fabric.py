"""What is said and done about the links of a deployment, with what engines measured."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distserve.api import labels
from distserve.operator.engines import FINGERPRINT_CHARACTERS
from distserve.operator.fabric import quantity, rate
from distserve.operator.model import Apply
from distserve.operator.pairs import Link, LinksQuestion, Pair
from distserve.operator.records import pod_record
from distserve.placement.nodes import node_from

FAST, SLOW = 2.5e9, 20e6
LEVELS = [
    {"name": "leaf", "nodeLabel": "leaf"},
    {"name": "zone", "nodeLabel": "zone"},
]
EXPECTED = {"levels": LEVELS, "packWithin": "leaf", "expectedBandwidth": {"leaf": "1G"}}
REQUIRED = EXPECTED | {"fabricRequired": True}


def measured(bandwidth: float, **changes: Any) -> Callable[[Pair], Link]:
    return lambda pair: replace(Link(pair, "TCP", 0.21, bandwidth), **changes)


def node(name: str, **marks: str) -> Any:
    return node_from(
        {
            "metadata": {"name": name, "labels": marks},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }
    )


def events(world: Any, reason: str) -> list[Any]:
    return [event for event in world.events if event.reason == reason]


def test_it_is_unknown_until_it_is_measured(new_world: Any) -> None:
    world = new_world(topology=EXPECTED).settle()
    found = world.condition("FabricVerified")
    assert (found["status"], found["reason"]) == ("Unknown", "NotMeasured")
    world.link = lambda pair: Link(pair, trouble="http://10.0.0.1:8102/links: no answer")
    world.settle()
    assert "10.0.0.1:8102/links: no answer" in world.condition("FabricVerified")["message"]
    assert world.condition("Ready")["status"] == "True", "nothing waits for it"


def test_a_slow_link_is_told_with_both_numbers_and_one_event(new_world: Any) -> None:
    world = new_world(topology=EXPECTED)
    world.link = measured(FAST)
    world.settle()
    found = world.condition("FabricVerified")
    assert (found["status"], found["reason"]) == ("True", "AsExpected")
    assert "2.5 GB/s" in found["message"] and "1 GB/s" in found["message"]
    for bandwidth in (SLOW, SLOW * 1.1):
        world.link = measured(bandwidth, trouble="SharedMemory: the peer shares no memory")
        world.settle()
    found = world.condition("FabricVerified")
    assert (found["status"], found["reason"]) == ("False", "SlowFabric")
    for part in (
        "unit u0: tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0 over TCP at 22 MB/s",
        "expected of level leaf: 1 GB/s",
        "latency 0.21 ms",
        "SharedMemory: the peer shares no memory",
        "topology.expectedBandwidth.leaf",
    ):
        assert part in found["message"]
    (event,) = events(world, "SlowFabric")
    assert event.type == "Warning"
    assert "tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0" in event.message
    (unit,) = world.status["units"]
    assert unit["fingerprint"] == "f"
    assert unit["fabric"] == {
        "reader": "tiny-u0-decode-0-0",
        "source": "tiny-u0-prefill-0-0",
        "transport": "TCP",
        "level": "leaf",
        "bandwidth": "22M",
        "expected": "1G",
        "latency": "0.21ms",
    }
    world.link = measured(FAST)
    world.settle()
    assert world.condition("FabricVerified")["status"] == "True"


def test_engines_that_loaded_different_things_are_told_with_the_cure(new_world: Any) -> None:
    """One decode instance of two: the links of the other are measured."""
    world = new_world(topology=REQUIRED, decode={"instancesPerUnit": 2})
    prints = {"tiny-u0-decode-1-0": "fedcba9876543210"}
    world.fingerprint = lambda pod: prints.get(pod, "0123456789abcdef")
    refused = "refused: fingerprint fedcba98 at the peer"

    def link(pair: Pair) -> Link:
        other = pair.reader.pod == "tiny-u0-decode-1-0"
        return Link(pair, trouble=refused) if other else measured(FAST)(pair)

    world.link = link
    world.settle()
    found = world.condition("FabricVerified")
    assert (found["status"], found["reason"]) == ("False", "FingerprintMismatch")
    for part in (
        "unit u0: tiny-u0-decode-1-0 cannot use the KV of tiny-u0-prefill-0-0",
        "01234567, fedcba98",
        refused,
        "imageID",
        "podTemplate",
        "delete the pods that differ",
    ):
        assert part in found["message"]
    (event,) = events(world, "FingerprintMismatch")
    assert event.type == "Warning" and event.message == found["message"]
    held = [name for name, pod in world.pods.items() if pod.fabric_gate is False]
    assert held == ["tiny-u0-decode-1-0"], "fabricRequired keeps it from serving"
    prints.clear()
    world.link = measured(FAST)
    world.settle()
    assert world.condition("FabricVerified")["status"] == "True"


def apart(world: Any, *different: str) -> None:
    """These pods' engines loaded something else than all others."""
    world.fingerprint = lambda pod: "b" * 16 if pod in different else "a" * 16

    def link(pair: Pair) -> Link:
        prints = {world.fingerprint(one.pod) for one in (pair.reader, pair.source)}
        return Link(pair, trouble="refused") if len(prints) > 1 else measured(FAST)(pair)

    world.link = link


def test_where_no_two_instances_can_serve_it_is_not_ready_and_says_what_to_do(
    new_world: Any,
) -> None:
    world = new_world(topology=EXPECTED, units=2).settle()
    assert world.condition("Ready")["status"] == "True"
    decodes = [f"tiny-u{unit}-decode-0-0" for unit in (0, 1)]
    apart(world, *decodes)
    world.settle()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "FingerprintMismatch")
    for part in ("no request is served", "aaaaaaaa, bbbbbbbb", "imageID", "delete the pods that"):
        assert part in ready["message"]
    assert world.condition("Degraded")["reason"] == "Starting", "it does not serve at all"
    (event,) = [one for one in events(world, "FingerprintMismatch") if "no request" in one.message]
    assert event.type == "Warning"
    apart(world)
    world.settle()
    assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize(
    "different",
    [
        ("tiny-u0-decode-0-0",),
        # What the one unit's prefill computes the other one's decode can use, and the reverse.
        ("tiny-u0-decode-0-0", "tiny-u1-prefill-0-0"),
    ],
)
def test_who_can_serve_with_anybody_keeps_it_ready(
    new_world: Any, different: tuple[str, ...]
) -> None:
    world = new_world(topology=EXPECTED, units=2).settle()
    apart(world, *different)
    world.settle()
    assert world.condition("FabricVerified")["reason"] == "FingerprintMismatch"
    assert world.condition("Ready")["status"] == "True"


def test_who_does_not_answer_may_serve(new_world: Any) -> None:
    world = new_world(topology=EXPECTED).settle()
    world.fingerprint = lambda pod: "" if "decode" in pod else "a"
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_of_several_units_the_worst_is_named(new_world: Any) -> None:
    world = new_world(topology=EXPECTED, units=3)
    world.link = lambda pair: measured(SLOW if "u1" in pair.reader.pod else FAST)(pair)
    world.settle()
    found = world.condition("FabricVerified")
    assert found["status"] == "False"
    assert found["message"].startswith("unit u1: tiny-u1-decode-0-0 reads from")
    assert [unit["fabric"]["bandwidth"] for unit in world.status["units"]] == [
        "2.5G", "20M", "2.5G",
    ]  # fmt: skip


def test_nothing_is_verified_where_nothing_is_expected(world: Any) -> None:
    world.link = measured(FAST)
    world.settle()
    found = world.condition("FabricVerified")
    assert (found["status"], found["reason"]) == ("Unknown", "NoExpectation")
    assert "2.5 GB/s" in found["message"]
    assert "topology.expectedBandwidth" in found["message"]


def test_instances_without_partners_have_no_fabric(new_world: Any) -> None:
    world = new_world(strategy={"name": "Colocated"}, hybrid={})
    for role in ("prefill", "decode"):
        del world.document["spec"][role]
    world.settle()
    assert not [c for c in world.status["conditions"] if c["type"] == "FabricVerified"]
    assert not [one for one in world.questions if isinstance(one, LinksQuestion)]


@pytest.mark.parametrize(
    ("marks", "expectations", "level", "expected"),
    [
        (({"leaf": "a", "zone": "z"}, {"leaf": "a", "zone": "z"}), {"leaf": "1G"}, "leaf", 10**9),
        (({"leaf": "a", "zone": "z"}, {"leaf": "b", "zone": "z"}), {"leaf": "1G"}, "zone", None),
        (
            ({"leaf": "a", "zone": "z"}, {"leaf": "a", "zone": "z"}),
            {"zone": "1G"}, "zone", 10**9,
        ),
        (({"leaf": "a"}, {}), {"leaf": "1G", "zone": "1G"}, "", None),
        (({}, {}), {"leaf": "1G", "zone": "1G"}, "", None),
    ],
)  # fmt: skip
def test_a_pair_has_the_tightest_level_that_its_nodes_share(
    new_world: Any, marks: Any, expectations: Any, level: str, expected: int | None
) -> None:
    world = new_world(topology={"levels": LEVELS, "expectedBandwidth": expectations})
    names = ("tiny-u0-prefill-0-0", "tiny-u0-decode-0-0")
    world.nodes = {name: node(name, **mark) for name, mark in zip(names, marks, strict=True)}
    world.settle()
    for name in names:
        world.pods[name] = replace(world.pods[name], node=name)
    world.reconcile()
    (question,) = (one for one in world.questions if isinstance(one, LinksQuestion))
    ((pair,),) = question.units.values()
    assert (pair.source.pod, pair.reader.pod) == names
    assert (pair.level, pair.expected) == (level, expected)


def test_pairs_are_asked_about_when_the_containers_of_both_run(new_world: Any) -> None:
    world = new_world(topology=EXPECTED, decode={"instancesPerUnit": 2}, units=2)
    late = "tiny-u1-decode-0-0"
    world.broken = lambda pod: "prefill" in pod.name or pod.name == late
    world.settle()
    assert not [one for one in world.questions if isinstance(one, LinksQuestion)]
    world.broken = lambda pod: pod.name == late
    world.settle()
    (question,) = (one for one in world.questions if isinstance(one, LinksQuestion))
    assert question.secret == "tiny-key"
    asked = {unit: sorted(p.reader.pod for p in pairs) for unit, pairs in question.units.items()}
    assert asked == {
        "u0": ["tiny-u0-decode-0-0", "tiny-u0-decode-1-0"],
        "u1": ["tiny-u1-decode-1-0"],
    }


# ---- fabricRequired -----------------------------------------------------------------------------


def test_a_required_fabric_holds_its_unit_until_it_is_verified(new_world: Any) -> None:
    world = new_world(topology=REQUIRED)
    for one in world.settle().named("StatefulSet").values():
        pod = one["spec"]["template"]["spec"]
        assert pod["readinessGates"] == [{"conditionType": labels.FABRIC_VERIFIED}]
    gateway = world.named("Deployment")["tiny-gateway"]["spec"]["template"]["spec"]
    assert "readinessGates" not in gateway
    assert world.condition("Ready")["reason"] == "FabricNotVerified"
    world.link = measured(SLOW)
    world.settle()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "FabricNotVerified")
    assert re.search("holds 2 pods; unit u0: .* at 20 MB/s .* 1 GB/s", ready["message"])
    assert world.condition("DecodeReady")["status"] == "False"
    world.link = measured(FAST)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.status["units"][0]["ready"]


def test_who_serves_goes_on_when_its_link_gets_slow(new_world: Any) -> None:
    world = new_world(topology=REQUIRED)
    world.link = measured(FAST)
    world.settle()
    world.link = measured(SLOW)
    world.settle()
    assert world.condition("FabricVerified")["status"] == "False"
    assert world.condition("Ready")["status"] == "True"
    assert len(events(world, "SlowFabric")) == 1


def test_one_slow_partner_holds_its_pair_and_nobody_else(new_world: Any) -> None:
    world = new_world(topology=REQUIRED, units=2)
    world.link = lambda pair: measured(SLOW if "u1" in pair.reader.pod else FAST)(pair)
    world.settle()
    assert world.serving() == {"u0"}
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Degraded")["status"] == "True"


def test_a_missing_partner_keeps_no_replacement_from_serving(new_world: Any) -> None:
    """Readiness depends on no particular peer."""
    world = new_world(topology=REQUIRED, decode={"instancesPerUnit": 2})
    world.link = measured(FAST)
    world.broken = lambda pod: pod.name == "tiny-u0-decode-1-0"
    world.settle()
    assert world.pods["tiny-u0-prefill-0-0"].ready
    assert world.pods["tiny-u0-decode-0-0"].ready


def test_a_gate_that_nobody_asks_for_any_more_is_opened(new_world: Any) -> None:
    """The rollout that takes the gates away must not wait for them."""
    world = new_world(topology=REQUIRED).settle()
    world.edit(topology=EXPECTED)
    decision = world.decide()
    opened = [one for one in decision.actions if isinstance(one, Apply) and one.subresource]
    assert {one.object["metadata"]["name"] for one in opened} == {
        "tiny-u0-prefill-0-0", "tiny-u0-decode-0-0",
    }  # fmt: skip
    world.settle()
    assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("digits", [32, FINGERPRINT_CHARACTERS])
def test_a_unit_whose_engines_all_differ_has_a_status(new_world: Any, digits: int) -> None:
    """`reconcile` has the model validate it, with the API server's bounds."""
    world = new_world(topology=EXPECTED, decode={"instancesPerUnit": 8})
    world.fingerprint = lambda pod: f"{pod:x<{digits}}"
    world.settle()
    (unit,) = world.status["units"]
    said = unit["fingerprint"].split(",")
    assert len(said) > 1 and all(len(one) == digits for one in said)


def test_requiring_it_is_a_new_revision_and_expecting_other_numbers_is_not(new_world: Any) -> None:
    world = new_world(topology=EXPECTED)
    world.link = measured(FAST)
    first = world.settle().units()
    more = {"leaf": "2G"}
    assert world.edit(topology=EXPECTED | {"expectedBandwidth": more}).settle().units() == first
    assert world.edit(topology=REQUIRED).settle().units() != first
    assert world.condition("Ready")["status"] == "True"


def test_a_crash_anywhere_leaves_something_to_go_on_from(new_world: Any) -> None:
    for writes in range(14):
        world = new_world(topology=REQUIRED)
        world.link = measured(FAST)
        for _ in range(12):
            world.fail_after = writes
            world.reconcile_or_crash()
            world.fail_after = None
            world.step()
        world.settle()
        assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0.0, "0"), (999.4, "999"), (999.6, "1k"), (3.14159e9, "3.14G"), (312.5e6, "312M")],
)
def test_numbers_have_three_digits(number: float, said: str) -> None:
    assert quantity(number) == said
    assert rate(2.5e9) == "2.5 GB/s"


@pytest.mark.parametrize(
    ("gates", "status", "found"),
    [
        ([], "True", None),
        (["example.com/other"], "True", None),
        ([labels.FABRIC_VERIFIED], "False", False),
        ([labels.FABRIC_VERIFIED], None, False),
        (["example.com/other", labels.FABRIC_VERIFIED], "True", True),
    ],
)
def test_a_gate_is_seen_in_the_pod(gates: list[str], status: str | None, found: Any) -> None:
    conditions = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "X"}]
    if status is not None:
        conditions.append({"type": labels.FABRIC_VERIFIED, "status": status})
    pod = pod_record(
        {
            "metadata": {
                "name": "tiny-u0-decode-0-0", "uid": "1", "namespace": "llm",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"readinessGates": [{"conditionType": gate} for gate in gates]},
            "status": {"podIP": "10.0.0.7", "conditions": conditions},
        }
    )  # fmt: skip
    assert (pod.fabric_gate, pod.containers_ready, pod.host) == (found, True, "10.0.0.7")
