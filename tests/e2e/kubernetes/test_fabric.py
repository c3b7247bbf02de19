"""The proof of the fabric on two real nodes: what is measured, and what a required fabric holds."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from tools.cluster.conditions import conditions

from distserve.cli.main import main as distserve

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ZONE = "topology.kubernetes.io/zone"
TOO_MUCH, LITTLE = "900T", "1M"
"""Bytes per second that no link between two processes gives, and that any does."""


def topology(expected: str) -> dict[str, Any]:
    return {
        "levels": [{"name": "zone", "nodeLabel": ZONE}],
        "packWithin": "zone",
        "expectedBandwidth": {"zone": expected},
        "fabricRequired": True,
    }


@pytest.fixture(scope="module")
def deployment(new_deployment: Any) -> Iterator[Any]:
    """With a link that cannot be what is asked of it."""
    found = new_deployment()
    for node in ("node1", "node2"):
        found.cluster.kubectl("label", "node", node, f"{ZONE}=z")
    found.apply(topology=topology(TOO_MUCH))
    found.cluster.wait_for("a first status", lambda: "status" in found.live())
    yield found
    where = f"--namespace={found.namespace}"
    found.cluster.kubectl("delete", "dsd", found.name, where, "--wait=true", "--timeout=60s")
    for node in ("node1", "node2"):
        found.cluster.kubectl("label", "node", node, f"{ZONE}-")


def engines(deployment: Any) -> list[Any]:
    return [deployment.pod(role=role) for role in ("prefill", "decode")]


def said(pod: Any, condition: str) -> str:
    return str(conditions(pod).get(condition, {}).get("status"))


def serving(deployment: Any) -> set[bool]:
    """As EndpointSlices tell gateways."""
    items = deployment.cluster.get(
        "endpointslices",
        namespace=deployment.namespace,
        selector=f"kubernetes.io/service-name={deployment.name}-instances",
    )["items"]
    return {e["conditions"]["serving"] for one in items for e in one["endpoints"] or ()}


def test_a_slow_link_holds_its_unit_and_is_told_with_both_numbers(deployment: Any) -> None:
    found = deployment.wait_for("FabricVerified", "False")
    assert found["reason"] == "SlowFabric"
    pattern = (
        r"unit u0: tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0 over TCP at [0-9.]+ [kMG]B/s "
        r"\(latency [0-9.]+ ms\), expected of level zone: 900 TB/s; "
    )
    assert re.match(pattern, found["message"])
    print(f"\n{found['message']}")
    for pod in engines(deployment):
        assert said(pod, "ContainersReady") == "True"
        assert said(pod, "Ready") == "False"
    assert serving(deployment) == {False}
    ready = deployment.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "FabricNotVerified")
    (event,) = deployment.wait_until_told("SlowFabric")
    assert event["type"] == "Warning"


def test_why_names_the_slow_link(deployment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kubeconfig = str(deployment.cluster.kubeconfig)
    distserve(["why", deployment.name, "--namespace", deployment.namespace,
               "--kubeconfig", kubeconfig])  # fmt: skip
    assert "tiny-u0-decode-0-0 reads from tiny-u0-prefill-0-0" in capsys.readouterr().out


def test_a_link_that_is_as_expected_opens_the_gate_of_the_same_pods(deployment: Any) -> None:
    before = {pod["metadata"]["uid"] for pod in engines(deployment)}
    deployment.apply(topology=topology(LITTLE))
    deployment.wait_for("Ready")
    found = deployment.wait_for("FabricVerified")
    assert "1 of 1 links are measured" in found["message"]
    assert {pod["metadata"]["uid"] for pod in engines(deployment)} == before
    assert serving(deployment) == {True}
    (unit,) = deployment.live()["status"]["units"]
    assert unit["fingerprint"]
    assert unit["fabric"]["transport"] == "TCP"
    assert re.fullmatch(r"[0-9.]+[kMG]", unit["fabric"]["bandwidth"])
    (answer,) = deployment.ask("The river")
    assert answer["chunks"] > 4


def test_who_serves_goes_on_when_more_is_expected(deployment: Any) -> None:
    deployment.apply(topology=topology(TOO_MUCH))
    deployment.wait_for("FabricVerified", "False")
    assert deployment.condition("Ready")["status"] == "True"
    assert serving(deployment) == {True}


def test_the_operator_has_it_as_metrics(deployment: Any) -> None:
    pods = deployment.cluster.get(
        "pods", namespace="distserve-system", selector="app.kubernetes.io/name=distserve-operator"
    )["items"]
    pages = [deployment.place.metrics(pod, 8080) for pod in pods if said(pod, "Ready") == "True"]
    measured = {
        name: value
        for page in pages
        for name, value in page.items()
        if name.startswith("distserve_fabric_bandwidth_bytes_per_second{")
    }
    ((name, value),) = measured.items()
    for label in (f'deployment="{deployment.namespace}/tiny"', 'unit="u0"', 'level="zone"'):
        assert label in name
    assert value > 1e6
