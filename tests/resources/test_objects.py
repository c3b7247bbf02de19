"""Properties of the rendered objects, checked against Kubernetes' own types and rules."""

import base64
import re
from typing import Any

import kubernetes.client as k8s
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.resources.documents import Make, Object, flag, of_kind, revisions, templates

from distserve.api.deployment import DistServeDeployment
from distserve.api.status import RolePlan, UnitPlan
from distserve.resources import naming


def selected_by(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# ---- against Kubernetes' own types --------------------------------------------------------------

MODELS = {
    "ServiceAccount": k8s.V1ServiceAccount,
    "RoleBinding": k8s.V1RoleBinding,
    "Secret": k8s.V1Secret,
    "ConfigMap": k8s.V1ConfigMap,
    "NetworkPolicy": k8s.V1NetworkPolicy,
    "Service": k8s.V1Service,
    "PodDisruptionBudget": k8s.V1PodDisruptionBudget,
    "StatefulSet": k8s.V1StatefulSet,
    "Deployment": k8s.V1Deployment,
}
PLAIN = {"bytes": str, "str": str, "int": int, "bool": bool, "float": float}
"""bytes: base64 in the document."""


def conforms(value: Any, kind: str, path: str) -> None:
    """Every field is one that Kubernetes' type has, with the type that it has."""
    if kind == "object":  # int-or-string
        assert isinstance(value, int | str), path
    elif kind in PLAIN:
        assert type(value) is PLAIN[kind], f"{path}: {value!r} is no {kind}"
    elif match := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        assert isinstance(value, list), path
        for index, item in enumerate(value):
            conforms(item, match[1], f"{path}[{index}]")
    elif match := re.fullmatch(r"[dD]ict[\[(]str, (.+)[\])]", kind):
        assert isinstance(value, dict), path
        for key, item in value.items():
            conforms(item, match[1], f"{path}.{key}")
    else:
        model = getattr(k8s, kind)
        fields = {alias: name for name, alias in model.attribute_map.items()}
        assert isinstance(value, dict), path
        for key, item in value.items():
            assert key in fields, f"{path}.{key} is unknown to {kind}"
            conforms(item, model.openapi_types[fields[key]], f"{path}.{key}")


def test_objects_are_of_kubernetes_types(objects: list[Object]) -> None:
    for found in objects:
        conforms(found, MODELS[found["kind"]].__name__, found["kind"])


def test_the_type_check_finds_mistakes() -> None:
    for wrong in ({"spec": {"replicas": "1"}}, {"spec": {"replica": 1}}, {"spec": []}):
        with pytest.raises(AssertionError):
            conforms(wrong, "V1StatefulSet", "x")


# ---- names, labels, selectors -------------------------------------------------------------------


def test_names_and_labels_are_valid(objects: list[Object]) -> None:
    identities = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(identities)) == len(identities)
    for found in objects:
        metadata = found["metadata"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", metadata["name"])
        assert len(metadata["name"]) <= (52 if found["kind"] == "StatefulSet" else 63)
        assert metadata["namespace"] == "llm"
        assert metadata["ownerReferences"][0]["uid"] == "1234"
        for labels in (metadata["labels"], *(t["metadata"]["labels"] for t in templates([found]))):
            assert labels["distserve.io/deployment"] == "opt-13b"
            for key, value in labels.items():
                assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]{0,62}", key)
                assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True),
    unit=st.integers(9_990, 9_999),
    index=st.integers(60, 64),
)
@settings(max_examples=20, deadline=None)
def test_no_instance_name_is_too_long(name: str, unit: int, index: int) -> None:
    deployment = DistServeDeployment.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "model": {"id": "m", "source": {"builtin": "tiny"}},
                "prefill": {"instancesPerUnit": index}, "decode": {},
            },
        }
    )  # fmt: skip
    shape = UnitPlan(prefill=RolePlan(instances=index, tensor=1, pipeline=1))
    longest = naming.instances(deployment, f"u{unit}", shape)[-1].name
    assert len(longest) <= 52


def test_selectors_match_exactly_their_pods(objects: list[Object]) -> None:
    pods = [t["metadata"]["labels"] for t in templates(objects)]
    for found in of_kind(objects, "StatefulSet") + of_kind(objects, "Deployment"):
        selector = found["spec"]["selector"]["matchLabels"]
        assert [p for p in pods if selected_by(selector, p)] == [
            found["spec"]["template"]["metadata"]["labels"]
        ]
    engines = [p for p in pods if "distserve.io/role" in p]
    gateways = [p for p in pods if "distserve.io/role" not in p]
    services = {o["metadata"]["name"]: o["spec"]["selector"] for o in of_kind(objects, "Service")}
    assert [p for p in pods if selected_by(services["opt-13b-gateway"], p)] == gateways
    assert [p for p in pods if selected_by(services["opt-13b-instances"], p)] == engines
    for policy in of_kind(objects, "NetworkPolicy"):
        wanted = gateways if policy["metadata"]["name"] == "opt-13b-gateway" else engines
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert [p for p in pods if selected_by(chosen, p)] == wanted


def test_one_leader_pod_per_unit(make: Make) -> None:
    objects = make(units=3)
    leaders = [
        p["metadata"]["labels"]["distserve.io/unit"]
        for p in templates(objects)
        if p["metadata"]["labels"].get("distserve.io/unit-leader") == "true"
    ]
    assert leaders == ["u0", "u1", "u2"]


def test_unit_budgets_keep_what_was_asked(make: Make) -> None:
    objects = make(units=3, disruption={"minAvailableUnits": 2})
    budgets = {
        o["spec"]["selector"]["matchLabels"].get("distserve.io/unit"): o["spec"]["maxUnavailable"]
        for o in of_kind(objects, "PodDisruptionBudget")
    }
    assert budgets == {"u0": 0, "u1": 0, "u2": "100%", None: 1}


# ---- the rest -----------------------------------------------------------------------------------


def test_key_is_the_given_one_and_never_a_known_one(make: Make) -> None:
    (secret,) = of_kind(make(), "Secret")
    assert base64.b64decode(secret["data"]["key"]) == b"k" * 64
    assert secret["immutable"] is True


def test_slo_reaches_the_gateway(make: Make) -> None:
    (gateway,) = of_kind(make(slo={"ttft": "250ms", "tpot": "1s"}), "Deployment")
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    assert (flag(container, "slo-ttft"), flag(container, "slo-tpot")) == ("250ms", "1s")
    (gateway,) = of_kind(make(), "Deployment")
    assert "--slo-ttft" not in gateway["spec"]["template"]["spec"]["containers"][0]["args"]


def test_what_a_gateway_has_in_hand_gets_the_drain_deadline(make: Make) -> None:
    """And the pod's grace that, besides 5 s before and 15 s after."""
    for deadline, grace in (("60s", 80), ("1h1500ms", 3622)):
        (gateway,) = of_kind(make(rollout={"drainDeadline": deadline}), "Deployment")
        pod = gateway["spec"]["template"]["spec"]
        assert flag(pod["containers"][0], "drain-deadline") == deadline
        assert pod["terminationGracePeriodSeconds"] == grace
    (gateway,) = of_kind(make(), "Deployment")
    assert flag(gateway["spec"]["template"]["spec"]["containers"][0], "drain-deadline") == "60s"


def test_revision_changes_with_the_pods_and_not_with_their_number(make: Make) -> None:
    (base,) = revisions(make())
    assert revisions(make(units=5)) == {base}
    assert revisions(make(prefill={"instancesPerUnit": 1})) == {base}
    assert revisions(make(gateway={"replicas": 7})) == {base}
    assert revisions(make(images={"gateway": "x"})) == {base}
    for change in (
        {"images": {"engine": "x"}},
        {"kvTransfer": {"blockTokens": 32}},
        {"decode": {"scheduling": {"maxNumSeqs": 1}}},
        {"prefill": {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}},
        {"rollout": {"drainDeadline": "5s"}},
    ):
        assert revisions(make(**change)) != {base}, change


def test_network_is_closed_but_for_the_known_paths(make: Make) -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in of_kind(make(), "NetworkPolicy")}
    ports = [
        (r["ports"][0]["port"], bool(r["from"])) for r in policies["opt-13b-engine"]["ingress"]
    ]
    assert ports == [(8100, True), (8101, True), (8102, True)]
    assert policies["opt-13b-gateway"]["ingress"] == [
        {"ports": [{"protocol": "TCP", "port": 8000}]}
    ]
    assert not of_kind(make(networkPolicy={"enabled": False}), "NetworkPolicy")


def test_rendering_is_pure(make: Make) -> None:
    assert make() == make()
