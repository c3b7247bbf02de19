"""From no nodes to a unit that serves: who adds nodes sees pods for which there are none."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

Object = dict[str, Any]
KEY = ("opt", "u0")


REQUESTS = "provisioningrequests.autoscaling.x-k8s.io"


@pytest.fixture
def requests_served(crd: Any) -> Iterator[None]:
    """As cluster-autoscaler's kind is, in what we use of it."""
    reference = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "maxLength": 253}},
    }
    pod_set = {
        "type": "object",
        "required": ["count", "podTemplateRef"],
        "properties": {
            "count": {"type": "integer", "minimum": 1},
            "podTemplateRef": reference,
        },
    }
    immutable = [{"rule": "self == oldSelf", "message": "Value is immutable"}]
    strings = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 255}}
    spec = {
        "type": "object",
        "required": ["podSets", "provisioningClassName"],
        "properties": {
            "provisioningClassName": {"type": "string", "x-kubernetes-validations": immutable},
            "parameters": {**strings, "maxProperties": 100, "x-kubernetes-validations": immutable},
            "podSets": {
                "type": "array",
                "minItems": 1,
                "maxItems": 32,
                "items": pod_set,
                "x-kubernetes-validations": immutable,
            },
        },
    }
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}
        },
    }
    crd.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": REQUESTS},
            "spec": {
                "group": "autoscaling.x-k8s.io",
                "names": {"kind": "ProvisioningRequest", "plural": "provisioningrequests"},
                "scope": "Namespaced",
                "versions": [version],
            },
        }
    )
    crd.wait_for(
        "the kind to be served",
        lambda: "ProvisioningRequest" in crd.kubectl("api-resources").split(),
    )
    yield
    crd.kubectl("delete", f"crd/{REQUESTS}", "--wait=false")


def unschedulable(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(one.get("reason") == "Unschedulable" for one in conditions)


def places(fabric: Any) -> list[Object]:
    """What the StatefulSets say of where their unit is."""
    found = fabric.cluster.get("statefulsets", namespace=fabric.namespace)["items"]
    return [json.loads(one["metadata"]["annotations"]["distserve.io/place"]) for one in found]


def test_nodes_that_come_for_a_unit_are_its_domain(
    fabric: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fabric.whole_domain
    with fabric.watched() as history:
        began = time.monotonic()
        fabric.apply(fabric.deployment("opt", whole, whenNoFit="Provision"))

        def waits() -> bool:
            pods = history.units().get(KEY, [])
            return len(pods) == whole.pods and all(map(unschedulable, pods))

        fabric.wait_until("the scheduler finds no node for its pods", waits)
        made = time.monotonic() - began
        fabric.wait_until("it says so", lambda: history.placed()["opt"]["reason"] == "Provisioning")
        message = history.placed()["opt"]["message"]
        assert "4 of its 4 pods wait" in message and "provisionTimeout" in message
        terms = [
            pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            for pod in history.units()[KEY]
        ]
        assert {term["topologyKey"] for (term,) in terms} == {"nvidia.com/gpu.clique"}

        # The autoscaler adds more than is needed: pods must not be drawn apart.
        began = time.monotonic()
        with fabric.domains(2, 2, "new-") as cliques:
            fabric.wait_until_whole(history, {"opt": whole.pods})
            fabric.wait_until("Placed", lambda: history.placed()["opt"]["status"] == "True")
            took = time.monotonic() - began
            pods = history.units()[KEY]
            homes = {cliques[pod["spec"]["nodeName"]] for pod in pods}
            assert len(homes) == 1, "tied to one domain"
            fabric.wait_until(
                "the domain is its place",
                lambda: {place["value"] for place in places(fabric)} == homes,
            )
            bound = {
                one["metadata"]["uid"]: cliques[one["spec"]["nodeName"]]
                for one in history.events
                if one["kind"] == "Pod"
                and one["spec"].get("nodeName")
                and "distserve.io/unit" in one["metadata"].get("labels", {})
            }
            assert set(bound.values()) == homes and len(bound) == whole.pods, "none was moved"
            # A pod that is lost returns into the domain, which its template names by now.
            victim = pods[0]["metadata"]["name"]
            fabric.cluster.kubectl(
                "delete", f"pod/{victim}", f"-n{fabric.namespace}", "--wait=false"
            )
            uid = pods[0]["metadata"]["uid"]
            fabric.wait_until("the pod is gone", lambda: uid not in history.live)
            fabric.wait_until_whole(history, {"opt": whole.pods})
            again = {cliques[pod["spec"]["nodeName"]] for pod in history.units()[KEY]}
            assert again == homes
    with capsys.disabled():
        print(f"\n  asked -> pods wait for nodes: {made:.1f} s; nodes come -> Placed: {took:.1f} s")


def test_it_is_taken_back_whole_when_no_nodes_come(fabric: Any) -> None:
    whole = fabric.whole_domain
    with fabric.watched() as history:
        fabric.apply(fabric.deployment("opt", whole, whenNoFit="Provision", provisionTimeout="2s"))

        def made() -> set[str]:
            """Pods that ever were: those of the first attempt may be gone again."""
            return {
                one["metadata"]["uid"]
                for one in list(history.events)
                if one["kind"] == "Pod"
                and "distserve.io/unit" in (one["metadata"].get("labels") or {})
            }

        fabric.wait_until("its pods are made", lambda: len(made()) >= 4)

        def taken_back() -> bool:
            reason = history.placed()["opt"]["reason"]
            return reason == "ProvisioningTimedOut" and KEY not in history.units()

        fabric.wait_until("it is taken back", taken_back)
        message = history.placed()["opt"]["message"]
        assert "within topology.provisionTimeout, 2s" in message and "made again at " in message
        with fabric.domains(1, 2, "late-") as cliques:
            fabric.wait_until_whole(history, {"opt": whole.pods})
            labels = [pod["metadata"]["labels"] for pod in history.units()[KEY]]
            assert {one["distserve.io/domain"] for one in labels} == set(cliques.values())


def test_nodes_are_asked_for_by_a_request_where_that_is_served(
    requests_served: None, fabric: Any
) -> None:
    whole = fabric.whole_domain

    def requests() -> list[Object]:
        found: list[Object] = fabric.cluster.get(REQUESTS, namespace=fabric.namespace)["items"]
        return found

    with fabric.watched() as history:
        fabric.apply(fabric.deployment("opt", whole, whenNoFit="Provision"))
        fabric.wait_until("its nodes are asked for", lambda: len(requests()) == 1)
        (request,) = requests()
        templates = fabric.cluster.get("podtemplates", namespace=fabric.namespace)["items"]
        named = {one["metadata"]["name"] for one in templates}
        asked = {one["podTemplateRef"]["name"]: one["count"] for one in request["spec"]["podSets"]}
        assert asked.keys() == named and set(asked.values()) == {whole.prefill, whole.decode}
        fabric.wait_until("its pods are made", lambda: len(history.units().get(KEY, [])) == 4)
        for pod in history.units()[KEY]:
            annotations = pod["metadata"]["annotations"]
            consumed = annotations["autoscaling.x-k8s.io/consume-provisioning-request"]
            assert consumed == request["metadata"]["name"]
        with fabric.domains(1, 2, "asked-"):
            fabric.wait_until_whole(history, {"opt": whole.pods})
            fabric.wait_until("nothing is asked for any more", lambda: not requests())
            assert {pod["metadata"]["uid"] for pod in history.units()[KEY]} <= history.live.keys()
